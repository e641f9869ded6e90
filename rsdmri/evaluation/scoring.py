"""One reconstruction, or a folder of them, scored against targets."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from rsdmri.data.volumes import read_attributes, read_optional, read_volume
from rsdmri.errors import InputError
from rsdmri.evaluation.matching import EVERYTHING, Pairs, Selection, pairs
from rsdmri.evaluation.record import signed, write_metrics
from rsdmri.metrics.haarpsi import LEAST_SIDE, haarpsi
from rsdmri.metrics.image import common_crop, complex_nrmse, evaluate_volume
from rsdmri.metrics.intervals import mean_interval
from rsdmri.metrics.uncertainty import coverage, object_mask
from rsdmri.runtime import numpy_generator
from rsdmri.training.manifest import file_digest

Volumes = Mapping[str, Mapping[str, Any]]


class Metric(NamedTuple):
    """A number of each volume: its label, and which way is better (1 up, -1 down, 0 neither)."""

    label: str
    better: int


METRICS = {
    "nmse": Metric("NMSE", -1),
    "nrmse": Metric("NRMSE", -1),
    "psnr": Metric("PSNR dB", 1),
    "ssim": Metric("SSIM", 1),
    "haarpsi": Metric("HaarPSI", 1),
    "nrmse_complex": Metric("complex NRMSE", -1),
    "coverage_90": Metric("coverage 90 %", 0),
    "held_out_residual": Metric("held-out residual", 0),
}

# A single-coil fastMRI file holds both targets; its challenge is scored against the emulated single coil.
TARGET_NAMES = ("reconstruction_esc", "reconstruction_rss", "reconstruction")
RECONSTRUCTION_NAMES = ("reconstruction",)
_COMPLEX, _LOW, _HIGH = "reconstruction_complex", "quantile_05", "quantile_95"


def evaluate(
    reconstruction: str | os.PathLike[str],
    target: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    selection: Selection = EVERYTHING,
) -> dict[str, Any]:
    """Score ``reconstruction`` against ``target``; write the result to ``out`` (JSON) if given.

    Each may be a file or a folder of ``.h5`` files, matched by file name (by its pseudonym where it tells of a person,
    see `rsdmri.privacy`). The result holds ``volumes`` (see `evaluate_files`), their ``mean``, ``two_std`` (twice the
    sample standard deviation; ``None`` for one volume) and ``interval`` (see `mean_interval`; ``None`` below three),
    ``count``, ``targets_without_reconstruction``, ``convention``, ``versions`` and ``sha256`` of it all.
    `InputError` when a reconstruction has no target, a pair cannot be scored, or ``selection`` leaves nothing.
    """
    found, missing = pairs(reconstruction, target, selection)
    volumes = score_pairs(found)
    result = signed(
        {
            "volumes": volumes,
            **summary(volumes),
            "targets_without_reconstruction": missing,
            "selection": str(selection) or None,
        }
    )
    if out is not None:
        write_metrics(out, result)
    return result


def score_pairs(found: Pairs) -> dict[str, dict[str, Any]]:
    """`evaluate_files` of each pair, in the order of their names."""
    return {name: evaluate_files(*pair) for name, pair in sorted(found.items())}


def evaluate_files(reconstruction: str | os.PathLike[str], target: str | os.PathLike[str]) -> dict[str, Any]:
    """Score one reconstruction file against one target file.

    Returns:
        ``nmse``, ``nrmse``, ``psnr`` in dB, ``ssim``, ``haarpsi`` (from 16x16 pixels on); what else the files have data
        for of `METRICS`; ``slices``, the ``target`` data set, and ``sha256`` of both files.
    """
    t, name = read_volume(target, TARGET_NAMES)
    r, _ = read_volume(reconstruction, RECONSTRUCTION_NAMES)
    try:
        metrics = evaluate_volume(t, r)
        cropped = common_crop(t, r)
        if min(cropped[0].shape[1:]) >= LEAST_SIDE:
            metrics["haarpsi"] = haarpsi(*cropped)
        metrics |= _further(Path(reconstruction), Path(target), t)
    except InputError as error:
        raise InputError(f"{reconstruction} against {target}: {error}") from None
    hashes = {"reconstruction": file_digest(Path(reconstruction)), "target": file_digest(Path(target))}
    return {**metrics, "slices": len(t), "target": name, "sha256": hashes}


def _further(reconstruction: Path, target: Path, t: NDArray[Any]) -> dict[str, float]:
    """What only some files have data for."""
    found: dict[str, float] = {}
    images = [read_optional(path, _COMPLEX, kind="c") for path in (target, reconstruction)]
    if images[0] is not None and images[1] is not None:
        found["nrmse_complex"] = complex_nrmse(images[0], images[1])
    noted = read_attributes(reconstruction, ("noise_floor", "held_out_residual"))
    floor, residual = noted.get("noise_floor"), noted.get("held_out_residual")
    low, high = (read_optional(reconstruction, name) for name in (_LOW, _HIGH))
    if low is not None and high is not None:
        reference, low = common_crop(t, low)
        _, high = common_crop(t, high)
        inside = object_mask(reference, floor=floor if isinstance(floor, float) else 0.0)
        if inside.any():  # not noise alone
            found["coverage_90"] = coverage(reference, low, high, inside)
    if isinstance(residual, float):
        found["held_out_residual"] = residual
    return found


def present(*volumes: Volumes) -> list[str]:
    """Names of the metrics that any volume has."""
    return [name for name in METRICS if any(name in volume for each in volumes for volume in each.values())]


def summary(volumes: Volumes) -> dict[str, Any]:
    """``mean``, ``two_std`` and ``interval`` of each metric over the volumes that have it, and ``count``."""
    values = {name: [float(v[name]) for v in volumes.values() if name in v] for name in present(volumes)}
    return {
        "mean": {name: statistics.fmean(found) for name, found in values.items()},
        "two_std": {name: _two_std(found) for name, found in values.items()},
        "interval": {name: interval(found) for name, found in values.items()},
        "count": {"volumes": len(volumes), "slices": sum(v["slices"] for v in volumes.values())},
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """Ends of `mean_interval`, from the same resamples for the same number of volumes."""
    ends = mean_interval(values, generator=numpy_generator("interval over volumes", len(values)))
    return None if ends is None else list(ends)


def _two_std(values: Sequence[float]) -> float | None:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return 2 * statistics.stdev(values)
