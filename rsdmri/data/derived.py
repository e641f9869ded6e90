"""What a derived image says of itself: provenance that names no person, and the note on research use."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.scan import Header

Attributes = Mapping[str, Any]

_KEPT = {
    "method": "ReconstructionMethod",
    "version": "SoftwareVersions",
    "acceleration": "Acceleration",
    "acceleration_nominal": "AccelerationNominal",
    "acs_lines": "CalibrationLines",
    "mask_family": "MaskFamily",
    "mask_sha256": "MaskSHA256",
    "prospective": "ProspectivelyUndersampled",
    "samples": "PosteriorSamples",
    "seed": "Seed",
    "scale": "Scale",
    "prior_sha256": "PriorSHA256",
    "quantile_estimator": "QuantileEstimator",
    "interval_factor": "IntervalFactor",
    "interval_source": "IntervalSource",
    "held_out_residual": "HeldOutResidual",
    "held_out_predicted": "HeldOutResidualPredicted",
    "alarm": "Alarm",
    "out_of_domain": "OutOfDomain",
}
_CONTRASTS = (("FLAIR", "FLAIR"), (r"T2\*|T2STAR", "T2starw"), ("T2", "T2w"), ("T1", "T1w"), (r"PD(W|FS|_|\b)", "PDw"))


def provenance(attrs: Attributes) -> dict[str, Any]:
    """What ``attrs`` of a reconstruction say of how it was made, by an allow-list, as plain numbers and texts.

    The source is named by the hash of its samples; its file's name and what is in it of a person are left out.
    """
    found: dict[str, Any] = {"SoftwareName": "rsdmri", "SoftwareVersions": __version__, "Note": RESEARCH_ONLY}
    found |= {name: _plain(attrs[key]) for key, name in _KEPT.items() if key in attrs}
    if "source_sha256" in attrs:
        found["Sources"] = [f"urn:sha256:{attrs['source_sha256']}"]
    return found


def digest(*parts: object) -> str:
    """Sha256 of arrays, mappings and texts, in this order, as hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            one = hashlib.sha256(f"{part.dtype.str} {part.shape}".encode())
            one.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            one = hashlib.sha256((part if isinstance(part, str) else json.dumps(part, sort_keys=True)).encode())
        total.update(one.digest())
    return total.hexdigest()


def contrast(acquisition: str) -> str | None:
    """BIDS suffix of the contrast that the name of an acquisition tells, such as ``T2w``; None where it tells none."""
    return next((suffix for pattern, suffix in _CONTRASTS if re.search(pattern, acquisition.upper())), None)


def acquisition_times(header: Header | None) -> dict[str, list[float]]:
    """``EchoTime``, ``RepetitionTime``, ``InversionTime`` in ms and ``FlipAngle`` in degrees, where known."""
    if header is None:
        return {}
    found = {
        "EchoTime": header.echo_times_ms,
        "RepetitionTime": header.repetition_times_ms,
        "InversionTime": header.inversion_times_ms,
        "FlipAngle": header.flip_angles_deg,
    }
    return {name: [float(value) for value in values] for name, values in found.items() if values}


def check_volume(volume: np.ndarray, name: str = "volume") -> np.ndarray:
    """``volume`` as float32; `ValueError` unless it is real (slice, h, w), finite and nowhere negative."""
    if volume.ndim != 3 or 0 in volume.shape or np.iscomplexobj(volume):
        raise ValueError(f"{name}: expected real (slice, h, w), got {volume.dtype} {volume.shape}")
    x = np.asarray(volume, np.float32)
    if not np.isfinite(x).all() or float(x.min()) < 0:
        raise ValueError(f"{name}: expected finite magnitudes, got values from {x.min()} to {x.max()}")
    return x


def _plain(value: Any) -> Any:
    """Numpy's numbers and arrays as Python's."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
