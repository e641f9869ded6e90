"""Receiver noise: coil covariance from the acquired samples of a scan, prewhitening.

Noise is independent between samples and correlated between coils: n ~ CN(0, Psi), Psi = E[n n^H] per complex sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.fourier import ifft1c

_MOST_SLICES = 8  # evenly spaced; more would not change the estimate
_LEAST_SHARE = 0.06  # of the readout rows: what is used where no background can be told from signal
_FLOOR = 1e-5  # least noise amplitude, relative to the brightest readout row (noise-free simulations)
_ROUNDING = 1e-12  # energy of a row, relative to the brightest, that is only rounding
_EMPTY = "none, the scan is empty"
_COIL_FLOOR = 1e-4  # least noise variance of a coil, relative to the median coil (dead coils)


@dataclass(frozen=True)
class NoiseEstimate:
    """Coil noise covariance (coil, coil) complex128 per complex sample, how many samples it rests on, and whence."""

    covariance: Tensor
    samples: int
    source: str

    @property
    def relative_error(self) -> float:
        """Relative standard error of a noise variance, 1 / sqrt(samples); infinite for a floor without samples."""
        return self.samples**-0.5 if self.samples > 0 else float("inf")


def estimate_covariance(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """Noise covariance of ``kspace`` (slices, coil, y, x) from its acquired samples; ``mask`` (x,), (1, x) or (y, x).

    Whole lines: after a Fourier transform along the readout, the rows beside the object hold noise only. Noise is white
    along the phase encode and signal is not, so a row is background when its energy at the centre lines equals its
    energy at the outer lines, which then give the covariance (so the choice does not bias it). Single points: the
    outermost tenth of the acquired samples. Few samples are shrunk towards the diagonal. The result is always positive
    definite: dead coils and noise-free data get a small floor, and ``source`` says so.
    Raises ``InputError`` when nothing was acquired or an acquired sample that is used is not finite.
    """
    if kspace.ndim != 4 or not kspace.is_complex():
        raise ValueError(f"kspace: expected complex (slices, coil, y, x), got {kspace.dtype} {list(kspace.shape)}")
    if mask.dtype != torch.bool or mask.shape not in ((kspace.shape[-1],), (1, kspace.shape[-1]), kspace.shape[-2:]):
        raise ValueError(f"mask: expected bool (x,), (1, x) or (y, x), got {mask.dtype} {list(mask.shape)}")
    mask = mask[None] if mask.ndim == 1 else mask
    step = max(1, -(-kspace.shape[0] // _MOST_SLICES))
    kspace = kspace[step // 2 :: step] if kspace.shape[0] > 1 else kspace
    if bool((mask == mask[:1]).all()):
        return _from_lines(kspace, mask[0])
    return _from_points(kspace, mask)


def combine_estimates(estimates: Sequence[NoiseEstimate]) -> NoiseEstimate:
    """One estimate from those of several slices of a scan: covariances averaged by their number of samples.

    Raises ``ValueError`` when there are none.
    """
    if not estimates:
        raise ValueError("estimates: expected at least one")
    # floors and empty slices rest on no samples; their values would drown noise in small units
    filled = [estimate for estimate in estimates if estimate.source != _EMPTY] or list(estimates[:1])
    estimates = [estimate for estimate in filled if estimate.samples > 0] or filled[:1]
    weights = torch.tensor([max(estimate.samples, 1) for estimate in estimates], dtype=torch.float64)
    stacked = torch.stack([estimate.covariance for estimate in estimates])
    covariance = torch.einsum("s,sij->ij", (weights / weights.sum()).to(stacked.dtype), stacked)
    return NoiseEstimate(covariance, sum(estimate.samples for estimate in estimates), estimates[0].source)


def whitening_matrix(covariance: Tensor) -> Tensor:
    """W = Psi^(-1/2) (coil, coil), Hermitian, so that W Psi W^H = I and the order of coils does not matter.

    Raises ``ValueError`` when ``covariance`` is not square, Hermitian and positive definite.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance: expected (coil, coil), got {list(covariance.shape)}")
    covariance = covariance.to(torch.complex128)
    if not torch.allclose(covariance, covariance.mH, rtol=1e-8, atol=1e-10 * float(covariance.abs().max())):
        raise ValueError("covariance: not Hermitian")
    values, vectors = torch.linalg.eigh(covariance)
    if not float(values[0]) > 0:
        raise ValueError("covariance: not positive definite")
    result: Tensor = (vectors * values.rsqrt()) @ vectors.mH
    return result


def whiten(kspace: Tensor, whitening: Tensor) -> Tensor:
    """Mix the coils of ``kspace`` [..., coil, y, x] with ``whitening`` (coil, coil); unit noise variance per sample."""
    n_coils = kspace.shape[-3]
    if whitening.shape != (n_coils, n_coils):
        raise ValueError(f"whitening: expected ({n_coils}, {n_coils}), got {list(whitening.shape)}")
    mixed = whitening.to(device=kspace.device, dtype=kspace.dtype) @ kspace.flatten(-2)
    return mixed.view(kspace.shape)


def _from_lines(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """Covariance from the readout background; ``mask`` (x,)."""
    lines = _lines_with_data(kspace, mask)
    distance = (lines - mask.shape[0] // 2).abs()
    order = lines[distance.argsort(stable=True)]
    n_inner = min(len(order) - len(order) // 2, max(4, mask.shape[0] // 8))
    inner, outer = order[:n_inner], order[n_inner:] if len(order) > n_inner else order

    # a partial echo zero-fills readout samples, which lowers the noise of every row by the same factor
    filled = float((kspace[..., order] != 0).any(dim=(0, 1, 3)).double().mean())
    background, signal = _hybrid(kspace, outer), _hybrid(kspace, inner)
    rows, clear = _background_rows(_energy(signal), _energy(background), signal.shape[1], len(inner), len(outer))
    samples = background.movedim(1, 0)[:, rows].flatten(1)
    brightest = float(_energy(signal).sum(-1).max()) / signal.shape[1]
    source = "readout background" if clear else "readout rows of least signal"
    return _estimate(samples, filled, brightest, source)


def _background_rows(inner: Tensor, outer: Tensor, n_coils: int, n_inner: int, n_outer: int) -> tuple[Tensor, bool]:
    """Which rows [slices, y] are background, and whether they could be told from signal; energies [slices, y, coil]."""
    level = outer.mean(dim=(0, 1)).clamp(min=torch.finfo(outer.dtype).tiny)
    inner_energy, outer_energy = (inner / level).sum(-1), (outer / level).sum(-1)
    silent = outer_energy <= _ROUNDING * outer_energy.max()  # filtered out, or a simulation without noise
    spread = (1 / (n_coils * n_inner) + 1 / (n_coils * n_outer)) ** 0.5
    rows = ~silent & (inner_energy < (1.1 + 3 * spread) * outer_energy)
    least = max(1, round(_LEAST_SHARE * rows.numel()))
    if int(rows.sum()) >= least:
        return rows, True
    if int(silent.sum()) >= least:
        return silent, True
    return inner_energy <= inner_energy.flatten().kthvalue(least).values, False


def _from_points(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """Covariance from the outermost acquired samples; ``mask`` (y, x)."""
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
    brightest = float(data.abs().square().sum(1).max()) / data.shape[1]
    return _estimate(samples, 1.0, brightest, "k-space edges")


def _estimate(samples: Tensor, filled: float, brightest: float, source: str) -> NoiseEstimate:
    """Shrunk, floored covariance of noise ``samples`` (coil, n)."""
    if not bool(torch.isfinite(torch.view_as_real(samples)).all()) or not brightest < float("inf"):
        raise InputError("kspace: acquired samples hold NaN or infinite values; the noise cannot be estimated")
    samples = samples.to(torch.complex128)
    n_coils, count = samples.shape
    covariance = samples @ samples.mH / (count * max(filled, 1e-6))
    shrink = (n_coils / (n_coils + count)) ** 2
    variance = covariance.diagonal().real
    covariance = (1 - shrink) * covariance + shrink * torch.diag_embed(variance).to(covariance.dtype)

    alive = variance[variance > 0]
    typical = float(alive.median()) if len(alive) else 0.0
    floor = max(_FLOOR**2 * brightest, _COIL_FLOOR * typical)
    if typical <= _FLOOR**2 * brightest:
        source, filled = f"floor, {source} holds no noise", 0.0
    if floor == 0:
        return NoiseEstimate(torch.eye(n_coils, dtype=covariance.dtype), 0, _EMPTY)
    covariance = covariance + torch.diag_embed((floor - variance).clamp(min=0)).to(covariance.dtype)
    return NoiseEstimate(covariance.cpu(), round(count * filled), source)


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
