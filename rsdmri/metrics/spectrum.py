"""Power of k-space by spatial frequency: of samples, and of measurements from which only some lines are known."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsdmri.metrics.features import Array


@dataclass(frozen=True)
class PowerSums:
    """Sums over images at each position of k-space (y, x): their ``power``, and the ``count`` that acquired it.

    Sets of images add: ``a + b``.
    """

    power: Array
    count: Array

    def __add__(self, other: "PowerSums") -> "PowerSums":
        """Sums of both sets."""
        return PowerSums(self.power + other.power, self.count + other.count)


def power_sums(kspace: Tensor, mask: Tensor, sigma_y: Tensor | float = 0.0) -> PowerSums:
    """Sums of ``sum_c |y_c|^2 - 2 n_coils sigma_y^2`` where acquired: the signal's power without that of the noise.

    Dividing by the count at each position corrects for the sampling density, without bias as long as masks do not
    depend on images.

    Args:
        kspace: (n, coil, y, x) complex, centred; what ``mask`` excludes is not read.
        mask: bool (n, 1, x) or (n, y, x).
        sigma_y: noise in each real number, (n,) or one number.
    """
    if kspace.ndim != 4 or mask.dtype != torch.bool or mask.ndim != 3 or len(mask) != len(kspace):
        raise ValueError(
            f"kspace, mask: expected (n, coil, y, x) and bool (n, 1 or y, x), got shapes {list(kspace.shape)} and "
            f"{list(mask.shape)}, {mask.dtype}"
        )
    noise = torch.as_tensor(sigma_y, dtype=torch.float64).reshape(-1, 1, 1).square() * 2 * kspace.shape[1]
    acquired = mask.expand(len(kspace), *kspace.shape[-2:]).cpu()
    power = torch.where(acquired, kspace.abs().square().sum(1, dtype=torch.float64).cpu() - noise.cpu(), 0)
    return PowerSums(power.sum(0).numpy(), acquired.sum(0, dtype=torch.float64).numpy())


def radial_power(sums: PowerSums, *, bands: int = 16, seen: Array | None = None) -> tuple[Array, Array]:
    """Middle frequency in cycles per pixel of ``bands`` rings up to 0.5, and the mean power of each, both (bands,).

    Each position counts the same, however often it was acquired; those never acquired, or not ``seen`` (y, x), are left
    out. NaN where a ring has no position.
    """
    height, width = sums.power.shape
    ky, kx = ((np.arange(n) - n // 2) / n for n in (height, width))
    ring = (np.hypot(ky[:, None], kx) * 2 * bands).astype(int)
    known = (sums.count > 0) & (ring < bands)
    if seen is not None:
        known &= seen > 0
    mean = sums.power[known] / sums.count[known]
    total = np.bincount(ring[known], mean, minlength=bands)
    count = np.bincount(ring[known], minlength=bands)
    power = np.full(bands, np.nan)
    np.divide(total, count, out=power, where=count > 0)
    return (np.arange(bands) + 0.5) / (2 * bands), power


def log_power_ratio(samples: PowerSums, measured: PowerSums, *, bands: int = 16) -> tuple[Array, Array]:
    """Frequencies, and ``log10`` of the samples' mean power over the measured one in each ring, both (bands,).

    0 where samples have the right power, -0.3 where half of it (blur), above 0 where too much (noise, aliasing). Over
    positions that both sets acquired. NaN where noise leaves no power to compare.
    """
    frequency, numerator = radial_power(samples, bands=bands, seen=measured.count)
    _, denominator = radial_power(measured, bands=bands, seen=samples.count)
    ratio = np.full(bands, np.nan)
    valid = (numerator > 0) & (denominator > 0)
    ratio[valid] = np.log10(numerator[valid] / denominator[valid])
    return frequency, ratio
