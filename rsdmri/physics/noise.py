"""Receiver noise: coil covariance from a noise scan, or from the acquired samples of the scan itself.

Noise is independent between samples and correlated between coils: n ~ CN(0, Psi), Psi = E[n n^H] per complex sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.fourier import ifft1c
from rsdmri.physics.noise_estimate import NoiseEstimate, combine_estimates, covariance_of_samples
from rsdmri.physics.whitening import whiten, whitening_matrix

__all__ = [
    "NoiseEstimate",
    "NoiseLevel",
    "combine_estimates",
    "covariance_from_edges",
    "covariance_from_noise_scan",
    "estimate_covariance",
    "noise_level",
    "whiten",
    "whitening_matrix",
]

_MOST_SLICES = 8  # evenly spaced; more would not change the estimate
_LEAST_SHARE = 0.06  # of the readout rows: what is used where no background can be told from signal
_ROUNDING = 1e-12  # energy of a row, relative to the brightest, that is only rounding
_DECAY = 3.0  # energy of the k-space of an object with edges falls like |k|^-3 (two dimensions)
_BINS = 8  # in which the outer half of k-space is averaged, to see that decay
_EXCESS = 4.0  # standard errors by which a test must fail


@dataclass(frozen=True)
class _Samples:
    """Noise samples (coil, n), the share of them that was acquired, and what is known about their source."""

    values: Tensor
    filled: float
    brightest: float
    source: str
    signal: tuple[float, float] | None


@dataclass(frozen=True)
class NoiseLevel:
    """Noise of whitened k-space: ``level`` ± ``error`` per complex sample (1 expected), from ``samples`` per coil.

    ``eigenvalues``: smallest and largest of the noise covariance, which whitening should make 1; ``expected``: where
    sampling alone puts them (Marchenko & Pastur 1967).
    """

    level: float
    error: float
    eigenvalues: tuple[float, float]
    expected: tuple[float, float]
    samples: int
    source: str

    @property
    def fits(self) -> bool:
        """Whether level (within 5 % or 4 errors) and eigenvalues (within a quarter) are those of whitened noise."""
        low, high = 0.75 * self.expected[0], 1.25 * self.expected[1]
        level = abs(self.level - 1) <= max(0.05, _EXCESS * self.error)
        return level and low <= self.eigenvalues[0] and self.eigenvalues[1] <= high

    def __str__(self) -> str:
        """One line: level, eigenvalues, and whether the noise covariance belongs to the scan."""
        words = "as expected" if self.fits else "the noise covariance does not belong to this scan"
        low, high = self.eigenvalues
        return (
            f"noise level {self.level:.3f} ± {self.error:.3f} after whitening (1 expected), covariance eigenvalues"
            f" {low:.2f} to {high:.2f} ({self.expected[0]:.2f} to {self.expected[1]:.2f} expected),"
            f" from {self.source}: {words}"
        )


def estimate_covariance(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """Noise covariance of ``kspace`` (slices, coil, y, x) from its acquired samples; ``mask`` (x,), (1, x) or (y, x).

    Whole lines: after a Fourier transform along the readout, the rows beside the object hold noise only. Noise is white
    along the phase encode and signal is not, so a row is background when its energy at the centre lines equals the
    energy of such rows at the outer lines, which then give the covariance (so the choice does not bias it); what the
    centre has more there, times the decay of signal from centre to outer lines in all other rows, is ``signal``.
    Single points: :func:`covariance_from_edges`. Few samples are shrunk towards the diagonal. The result is always
    positive definite: dead coils and noise-free data get a small floor, and ``source`` says so.
    Raises ``InputError`` when nothing was acquired or an acquired sample that is used is not finite.
    """
    return _estimate(_noise_samples(*_checked(kspace, mask)))


def covariance_from_edges(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """Noise covariance of ``kspace`` (slices, coil, y, x) from its outermost tenth of acquired samples.

    ``signal`` is the share that a fit of N + A |k|^-3 to the energy of the outer half leaves to the second term: the
    k-space of an object with edges decays so. Sharp detail or a bright object holds signal out to the edges, which
    makes this an upper bound of the noise. Raises ``InputError`` as :func:`estimate_covariance` does.
    """
    kspace, mask = _checked(kspace, mask)
    return _estimate(_from_points(kspace, mask.expand(kspace.shape[-2:])))


def covariance_from_noise_scan(
    samples: Tensor,
    *,
    noise_dwell: float | None = None,
    data_dwell: float | None = None,
    bandwidth_ratio: float = 1.0,
) -> NoiseEstimate:
    """Noise covariance from noise-only ``samples`` (coil, n) or (..., coil, y, x), as the scan's samples will have it.

    Psi = (noise_dwell / data_dwell) / bandwidth_ratio * mean(n n^H): white noise has a variance per sample in
    proportion to the bandwidth 1 / dwell, and the receiver's filter passes a share ``bandwidth_ratio`` of it (ISMRMRD's
    relativeReceiverNoiseBandwidth, e.g. 0.79) while the scan's samples lie where it is flat (Kellman & McVeigh 2005,
    doi:10.1002/mrm.20713; whitening times sqrt of the inverse factor in ISMRMRD's tools). Dwell times in one unit.
    Samples that are zero in all coils were not acquired. ``signal``: energy that drifts from the first to the second
    half, or comes in bursts, 1 = kurtosis mean|n|^4 / (2 mean^2|n|^2) of Gaussian noise.
    Raises ``InputError`` for NaN, fewer samples than coils, or dwell times and ratios that are not positive.
    """
    if samples.ndim < 2 or not samples.is_complex():
        raise ValueError(
            f"samples: expected complex (coil, n) or (..., coil, y, x), got {samples.dtype} {list(samples.shape)}"
        )
    factor = _bandwidth_factor(noise_dwell, data_dwell, bandwidth_ratio)
    flat = samples if samples.ndim == 2 else samples.movedim(-3, 0).flatten(1)
    if not bool(torch.isfinite(flat.abs()).all()):
        raise InputError("noise scan: holds NaN or infinite samples; repair it or estimate the noise from the scan")
    flat = flat[:, (flat != 0).any(dim=0)].to(torch.complex128)
    n_coils, count = flat.shape
    if count < n_coils:
        raise InputError(
            f"noise scan: {count} samples of {n_coils} coils give a singular covariance (rank {count} of {n_coils});"
            f" take a longer noise scan (at least {10 * n_coils} samples), or compress the coils first"
        )
    covariance = (factor * (flat @ flat.mH) / count).cpu()
    share, error = _stationarity(flat)
    return NoiseEstimate(covariance, count, "noise scan", share, error)


def noise_level(kspace: Tensor, mask: Tensor) -> NoiseLevel:
    """Noise level of whitened ``kspace`` (slices, coil, y, x), 1 where the covariance it was whitened with is right.

    Of the samples that :func:`estimate_covariance` would use: level^2 = mean over coils of median|n|^2 / ln 2, which
    spikes in less than half of them hardly move; standard error 1 / (2 ln 2 sqrt(samples coils)) of the level. Tells
    something only of a covariance from elsewhere: a noise scan, a file, another slice.
    Raises ``InputError`` as :func:`estimate_covariance` does, and when no noise is found.
    """
    found = _noise_samples(*_checked(kspace, mask))
    values = found.values.to(torch.complex128) / max(found.filled, 1e-6) ** 0.5
    values = values[(values != 0).any(dim=1)]
    if values.numel() == 0:
        raise InputError("kspace: no noise in it, the samples beside the object are all zero; its level is not known")
    n_coils, count = values.shape
    size = max(1, round(count * found.filled))
    median = values.abs().square().median(dim=1).values
    level = float(median.mean() / torch.log(median.new_tensor(2.0))) ** 0.5
    error = level / (2 * 0.6931 * (size * n_coils) ** 0.5)
    eigenvalues = torch.linalg.eigvalsh(values @ values.mH / count)
    ratio = (n_coils / size) ** 0.5
    expected = (max(0.0, 1 - ratio) ** 2, (1 + ratio) ** 2)
    return NoiseLevel(level, error, (float(eigenvalues[0]), float(eigenvalues[-1])), expected, size, found.source)


def _checked(kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """At most ``_MOST_SLICES`` slices of ``kspace``, and ``mask`` (1, x) or (y, x)."""
    if kspace.ndim != 4 or not kspace.is_complex():
        raise ValueError(f"kspace: expected complex (slices, coil, y, x), got {kspace.dtype} {list(kspace.shape)}")
    if mask.dtype != torch.bool or mask.shape not in ((kspace.shape[-1],), (1, kspace.shape[-1]), kspace.shape[-2:]):
        raise ValueError(f"mask: expected bool (x,), (1, x) or (y, x), got {mask.dtype} {list(mask.shape)}")
    mask = mask[None] if mask.ndim == 1 else mask
    step = max(1, -(-kspace.shape[0] // _MOST_SLICES))
    return kspace[step // 2 :: step] if kspace.shape[0] > 1 else kspace, mask


def _noise_samples(kspace: Tensor, mask: Tensor) -> _Samples:
    return _from_lines(kspace, mask[0]) if bool((mask == mask[:1]).all()) else _from_points(kspace, mask)


def _estimate(found: _Samples) -> NoiseEstimate:
    return covariance_of_samples(
        found.values, filled=found.filled, brightest=found.brightest, source=found.source, signal=found.signal
    )


def _from_lines(kspace: Tensor, mask: Tensor) -> _Samples:
    """Samples of the readout background; ``mask`` (x,)."""
    lines = _lines_with_data(kspace, mask)
    distance = (lines - mask.shape[0] // 2).abs()
    order = lines[distance.argsort(stable=True)]
    n_inner = min(len(order) - len(order) // 2, max(4, mask.shape[0] // 8))
    inner, outer = order[:n_inner], order[n_inner:] if len(order) > n_inner else order

    # a partial echo zero-fills readout samples, which lowers the noise of every row by the same factor
    filled = float((kspace[..., order] != 0).any(dim=(0, 1, 3)).double().mean())
    background, signal = _hybrid(kspace, outer), _hybrid(kspace, inner)
    energies = _energy(signal), _energy(background)
    rows, clear = _background_rows(*energies, signal.shape[1], len(inner), len(outer))
    samples = background.movedim(1, 0)[:, rows].flatten(1)
    brightest = float(energies[0].sum(-1).max()) / signal.shape[1]
    source = "readout background" if clear else "readout rows of least signal"
    share = _signal_in_rows(*energies, rows, len(inner), len(outer)) if len(order) > n_inner else None
    return _Samples(samples, filled, brightest, source, share)


def _background_rows(inner: Tensor, outer: Tensor, n_coils: int, n_inner: int, n_outer: int) -> tuple[Tensor, bool]:
    """Which rows [slices, y] are background, and whether they could be told from signal; energies [slices, y, coil]."""
    level = outer.mean(dim=(0, 1)).clamp(min=torch.finfo(outer.dtype).tiny)
    inner_energy, outer_energy = (inner / level).sum(-1), (outer / level).sum(-1)
    silent = outer_energy <= _ROUNDING * outer_energy.max()  # filtered out, or a simulation without noise
    spread = (1 / (n_coils * n_inner) + 1 / (n_coils * n_outer)) ** 0.5
    rows = ~silent & (inner_energy < (1.1 + 3 * spread) * outer_energy)
    least = max(1, round(_LEAST_SHARE * rows.numel()))
    if int(rows.sum()) >= least:  # again with the level they share: a row's own would choose rows of much outer noise
        common = outer_energy[rows].mean()
        again = ~silent & (inner_energy < (1.1 + 3 * (n_coils * n_inner) ** -0.5) * common)
        rows = again if int(again.sum()) >= least else rows
    if int(rows.sum()) >= least:
        return rows, True
    if int(silent.sum()) >= least:
        return silent, True
    return inner_energy <= inner_energy.flatten().kthvalue(least).values, False


def _signal_in_rows(
    inner: Tensor, outer: Tensor, rows: Tensor, n_inner: int, n_outer: int
) -> tuple[float, float] | None:
    """Share of signal in the outer lines of ``rows`` [slices, y], and its error; energies [slices, y, coil].

    Centre lines hold N + S there and outer lines N + d S, where d, the decay of signal, is that of all other rows.
    """
    level = outer[rows].mean(0)
    if not bool((level > 0).any()):
        return None
    inner, outer = ((energy / level)[..., level > 0].mean(-1) for energy in (inner, outer))
    decay, coils, others = 0.5, int((level > 0).sum()), max(int((~rows).sum()), 1)
    doubt = (others * coils * n_outer) ** -0.5
    if not bool(rows.all()):
        bright = float(inner[~rows].mean() - 1)
        decay = (float(outer[~rows].mean()) - 1) / bright if bright > 0 else 1.0
        doubt = doubt / bright if bright > doubt else 1.0
    decay = min(max(decay, 0.0), 0.9)
    excess = max(float(inner[rows].mean()) - 1, 0.0)
    error = (1 / (int(rows.sum()) * coils)) ** 0.5 * (1 / n_inner + 1 / n_outer) ** 0.5
    return excess * decay / (1 - decay), ((error * decay) ** 2 + (excess * doubt) ** 2) ** 0.5 / (1 - decay)


def _from_points(kspace: Tensor, mask: Tensor) -> _Samples:
    """The outermost acquired samples; ``mask`` (y, x)."""
    data = kspace[..., mask]
    position = mask.nonzero() - torch.tensor(mask.shape, device=mask.device) // 2
    radius = (position / torch.tensor(mask.shape, device=mask.device)).square().sum(-1)
    present = (data != 0).any(dim=0).any(dim=0)
    if not bool(present.any()):
        _require_acquired(mask)
        present = torch.ones_like(present)
    data, radius = data[..., present], radius[present]
    wanted = min(max(data.shape[-1] // 10, 20 * data.shape[1] // data.shape[0]), -(-data.shape[-1] // 2))
    outermost = radius.topk(max(1, wanted)).indices
    samples = data[..., outermost].movedim(1, 0).flatten(1)
    energy = data.abs().square()
    brightest = float(energy.sum(1).max()) / data.shape[1]
    share = _signal_at_edges(energy, radius.sqrt(), outermost)
    return _Samples(samples, 1.0, brightest, "k-space edges", share)


def _signal_at_edges(energy: Tensor, radius: Tensor, outermost: Tensor) -> tuple[float, float] | None:
    """Share A |k|^-3 of the ``outermost`` energy [slices, coil, n] in a fit of N + A |k|^-3 to the outer half."""
    level = energy[..., outermost].double().mean(dim=(0, 2))
    if not bool((level > 0).all()) or not bool(torch.isfinite(level).all()):
        return None
    relative = (energy.double() / level[:, None]).mean(dim=(0, 1))
    outer = (radius > 0.5 * radius.max()).nonzero()[:, 0]
    if len(outer) < 8 * _BINS:
        return None
    order = outer[radius[outer].argsort(stable=True)]
    decay = (radius / radius.max()).double() ** -_DECAY
    bins = list(order.tensor_split(_BINS))
    mean, weight = (torch.stack([f(relative[part]) for part in bins]) for f in (torch.mean, _precision))
    design = torch.stack([torch.ones_like(mean), torch.stack([decay[part].mean() for part in bins])], dim=1)
    normal = design.mT @ (weight[:, None] * design)
    inverse = torch.linalg.inv(normal)
    amplitude = float((inverse @ (design.mT @ (weight * mean)))[1])
    there = float(decay[outermost].mean())
    return max(amplitude * there, 0.0), float(inverse[1, 1]) ** 0.5 * there


def _precision(values: Tensor) -> Tensor:
    """Inverse variance of the mean of ``values``."""
    return len(values) / values.var().clamp(min=1e-12)


def _stationarity(samples: Tensor) -> tuple[float, float]:
    """Share of energy of noise ``samples`` (coil, n) that is not stationary Gaussian noise, and its error."""
    energy = samples.abs().square()
    energy = energy[energy.mean(1) > 0]
    if energy.numel() == 0:
        return 0.0, 0.0
    energy = energy / energy.mean(1, keepdim=True)
    error = energy.numel() ** -0.5
    first, second = (float(half.mean()) for half in energy.tensor_split(2, dim=1))
    excess = float(energy.square().mean(1).mean()) / 2 - 1
    bursts = min(1.0, excess**0.5) if excess > _EXCESS * error else 0.0
    return max(abs(first - second) / 2, bursts), error


def _bandwidth_factor(noise_dwell: float | None, data_dwell: float | None, ratio: float) -> float:
    if (noise_dwell is None) != (data_dwell is None):
        raise InputError("noise_dwell and data_dwell: give both or none")
    given = {"noise_dwell": noise_dwell, "data_dwell": data_dwell, "bandwidth_ratio": ratio}
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} {value:g}: expected a positive number")
    return (1.0 if noise_dwell is None or data_dwell is None else noise_dwell / data_dwell) / ratio


def _lines_with_data(kspace: Tensor, mask: Tensor) -> Tensor:
    """Indices of the acquired lines that are not exactly zero throughout (all acquired ones if every line is)."""
    _require_acquired(mask)
    lines = mask.nonzero()[:, 0]
    present = (kspace[..., lines] != 0).any(dim=0).any(dim=0).any(dim=0)
    return lines[present] if bool(present.any()) else lines


def _require_acquired(mask: Tensor) -> None:
    if not bool(mask.any()):
        raise InputError("mask: no sample was acquired")


def _hybrid(kspace: Tensor, lines: Tensor) -> Tensor:
    """Acquired ``lines`` transformed along the readout: [slices, coil, y, line]."""
    return ifft1c(kspace[..., lines], -2)


def _energy(hybrid: Tensor) -> Tensor:
    """Mean energy per sample of each row: [slices, y, coil]."""
    return hybrid.abs().double().square().mean(-1).movedim(1, -1)
