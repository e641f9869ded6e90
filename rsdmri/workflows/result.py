"""What a reconstruction gives: images, what they are scored against, and how they came about."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.dataset import MaskLaw
from rsdmri.data.scan import Geometry, Header, Scan
from rsdmri.errors import InputError
from rsdmri.metrics.image import evaluate_volume
from rsdmri.metrics.uncertainty import coverage, object_mask
from rsdmri.physics import masks
from rsdmri.physics.fourier import ifft2c, rss
from rsdmri.priors import Prior
from rsdmri.reconstruction.held_out import HeldOutCheck
from rsdmri.workflows.slices import cropped


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """A reconstructed scan of S slices. Research use only, not for diagnosis."""

    name: str
    """Stem of the scan's file."""
    volume: np.ndarray
    """(S, h, w) float32 magnitude, in the units of the file, cropped to its image size."""
    std: np.ndarray | None
    """(S, h, w) float32: standard deviation of the magnitude over posterior draws; None for fewer than two."""
    quantiles: np.ndarray | None
    """(3, S, h, w) float32: median of the magnitude between the ends, 5 and 95 %, of the band that should hold 90 %.

    ``attrs`` say how it was estimated (``quantile_estimator``), by which factor it was widened (``interval_factor``)
    and where that comes from (``interval_source``); ``std`` is not widened. None for fewer than two draws.
    """
    complex_images: np.ndarray
    """(S, y, x) complex64 in scaled units, the mean of the draws, not cropped."""
    mask: np.ndarray
    """Acquired positions that were used, bool (1, x) or (y, x), the same for all slices."""
    scale: np.ndarray
    """(S,) units of whitened k-space per scaled unit."""
    sigma_y: np.ndarray
    """(S,) noise per complex k-space sample in scaled units; 0 for an empty slice."""
    target: np.ndarray | None
    """(S, h, w) fully sampled image that the scores are against."""
    scores: dict[str, float] | None
    """NMSE, NRMSE, PSNR and SSIM by fastMRI's convention; None where there is nothing to score against."""
    scored: str
    """What the scores are against, or why there are none."""
    attrs: dict[str, Any]
    """Provenance for the written file: method, prior, acceleration, mask, scale, seed, version, note."""
    warnings: tuple[str, ...]
    """What the reader and the method had to assume, one line each."""
    geometry: Geometry | None = None
    """Where the pixels of ``volume`` lie; None where the scan does not say."""
    header: Header | None = None
    acquisition: str = "unknown"
    """Of the scan's file."""
    held_out: HeldOutCheck | None = None
    """How the image explains acquired samples that it was not shown; None where it was not asked for."""
    undetermined: np.ndarray | None = None
    """(S, h, w) float32 in [0, 1]: share of the magnitude around each pixel that the samples do not determine.

    See `rsdmri.reconstruction.undetermined`. None where the check was not asked for.
    """

    @property
    def alarm(self) -> str | None:
        """Why the image is not to be trusted, for a banner; None where nothing measured speaks against it."""
        return None if self.held_out is None else self.held_out.alarm

    @property
    def object_mask(self) -> np.ndarray:
        """Pixels (S, h, w) of the target that show the object and not noise alone; `InputError` without a target."""
        if self.target is None:
            raise InputError(self.scored)
        return object_mask(self.target, floor=self.attrs["noise_floor"])

    @property
    def coverage(self) -> float | None:
        """Share of the object's pixels in the band; None without a target or a band."""
        if self.target is None or self.quantiles is None:
            return None
        low, _, high = self.quantiles
        return coverage(self.target, low, high, self.object_mask)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.volume.shape))
        return f"Reconstruction({self.name!r}, {self.attrs['method']}, {shape}, scores={self.scores})"


def score(
    scan: Scan, volume: np.ndarray, undersampled: bool
) -> tuple[np.ndarray | None, dict[str, float] | None, str, tuple[str, ...]]:
    """Target, scores, what they are against, warnings."""
    if scan.prospective:
        return None, None, "not scored: the scan was undersampled when it was acquired, there is no full image", ()
    if not undersampled:
        return (
            None,
            None,
            "not scored: reconstructed from all of the data; --acceleration R undersamples and scores",
            (),
        )
    target, source = scan.target, f"scored against {scan.target_source} of the file"
    if target is None:
        full = (rss(ifft2c(torch.from_numpy(kspace))) for kspace in scan.kspace)
        target = np.stack([cropped(image, scan.crop) for image in full])
        source = "scored against the root sum of squares of the full k-space"
    try:
        return target, evaluate_volume(target, volume), source, ()
    except InputError as error:
        return target, None, "not scored: no usable full image", (f"not scored: {error}",)


def provenance(scan: Scan, mask: Tensor, law: MaskLaw | None, method: str, prior: Prior | None) -> dict[str, Any]:
    """Attributes that say how an image came about; nothing of the file but its sampling."""
    array = mask.numpy()
    stored = array[0] if array.shape[0] == 1 else np.packbits(array, axis=1)
    attrs: dict[str, Any] = {
        "method": method,
        "version": __version__,
        "note": RESEARCH_ONLY,
        "acceleration": masks.achieved_acceleration(mask, torch.as_tensor(scan.absent)),
        "acs_lines": masks.acs_lines(mask),
        "prospective": scan.prospective,
        "mask_shape": np.array(array.shape),
        "mask_sha256": hashlib.sha256(np.packbits(array).tobytes()).hexdigest(),
    }
    if stored.nbytes <= 60_000:  # HDF5 keeps no attribute beyond 64 KiB
        attrs["mask"] = stored.astype(np.uint8)
    if law is not None:
        attrs |= {
            "acceleration_nominal": float(law.acceleration),
            "mask_family": law.family,
            "center_fraction": law.fraction(mask.shape[-1]),
        }
    if prior is not None:
        attrs["prior_sha256"] = prior.digest
    return attrs
