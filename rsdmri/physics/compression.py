"""Coil compression to fewer virtual coils that carry nearly all the energy, of all samples or along the readout.

Buehrer et al. 2007 (doi:10.1002/mrm.21237), Huang et al. 2008 (doi:10.1016/j.mri.2007.04.010); geometric: Zhang et al.
2013 (doi:10.1002/mrm.24267). Compress after whitening: rows are orthonormal, so white noise stays white and unit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.fourier import fft1c, ifft1c
from rsdmri.physics.masks import acs_block

_COMMON = 0.01  # weight of the whole readout's energy at each place; costs under 1e-3 of the energy on the phantom


@dataclass(frozen=True)
class Compression:
    """Matrices from coils to virtual coils, (..., virtual, coil), or (..., y, virtual, coil) along the readout.

    Rows are orthonormal. ``energy``: fraction (0 to 1) of the calibration samples' energy that is kept, the least of a
    batch. ``along_readout`` tells which of the two shapes it is.
    """

    matrices: Tensor
    energy: float
    along_readout: bool

    @property
    def n_virtual(self) -> int:
        """Number of virtual coils."""
        return self.matrices.shape[-2]

    def compress(self, kspace: Tensor) -> Tensor:
        """Virtual coils (..., virtual, y, x) of ``kspace`` (..., coil, y, x), same units; unacquired zeros stay zero.

        Along the readout this takes a Fourier transform there and back, so the readout must be fully sampled.
        Raises ``ValueError`` when coils, batch or readout differ from those of the matrices.
        """
        batch = self.matrices.shape[: -3 if self.along_readout else -2]
        coils, height = self.matrices.shape[-1], self.matrices.shape[-3] if self.along_readout else kspace.shape[-2]
        if kspace.ndim < 3 or kspace.shape[-3] != coils or kspace.shape[-2] != height:
            raise ValueError(f"kspace: expected (..., {coils}, {height}, x), got {list(kspace.shape)}")
        if batch and kspace.shape[:-3] != batch:
            raise ValueError(f"kspace: expected batch {list(batch)}, got {list(kspace.shape[:-3])}")
        matrices = self.matrices.to(device=kspace.device, dtype=kspace.dtype)
        if not self.along_readout:
            mixed = matrices @ kspace.flatten(-2)
            return mixed.view(*mixed.shape[:-1], *kspace.shape[-2:])
        hybrid = ifft1c(kspace, -2).transpose(-3, -2)
        return fft1c((matrices @ hybrid).transpose(-3, -2), -2)


def svd_compression(
    kspace: Tensor, mask: Tensor, *, n_virtual: int | None = None, energy: float | None = None
) -> Compression:
    """One matrix for all samples of ``kspace`` (..., coil, y, x): the dominant left singular vectors (coil, n).

    Of the ACS of ``mask`` ((x,), (1, x) or (y, x), shared by the batch), or of all acquired samples where the centre is
    missing; others are never read. Each item of the batch has its own. ``n_virtual`` coils, or as many as keep the
    fraction ``energy`` in every item. The largest entry of a row is positive, so that the order of coils changes
    nothing. Raises ``InputError`` for settings out of range, samples that are not finite, and an empty mask.
    """
    kspace, mask = _checked(kspace, mask, n_virtual, energy)
    samples = _calibration(kspace, mask).to(torch.complex128)
    values, vectors = _dominant(samples @ samples.mH)
    count, kept = _count(values, n_virtual, energy)
    return Compression(_turned(vectors[..., :count].mH), kept, along_readout=False)


def geometric_compression(
    kspace: Tensor, mask: Tensor, *, n_virtual: int | None = None, energy: float | None = None, window: int = 5
) -> Compression:
    """A matrix for every place y along the readout of ``kspace`` (..., coil, y, x): (..., y, virtual, coil).

    In the hybrid space after a Fourier transform along the readout, the dominant singular vectors V_y of the
    calibration samples of ``window`` neighbouring places, turned to follow those of the neighbour from the centre
    outwards: A_y = P V_y^H with P the unitary nearest to A_{y-1} V_y. Places without signal follow the whole readout.
    Arguments and calibration as in :func:`svd_compression`; fewer virtual coils keep the same energy.
    Raises ``InputError`` also when ``mask`` (y, x) samples points: the readout must be complete.
    """
    kspace, mask = _checked(kspace, mask, n_virtual, energy)
    if window < 1 or window % 2 == 0:
        raise InputError(f"window {window}: expected an odd number of readout places, e.g. 5")
    if not bool((mask == mask[:1]).all()):
        raise InputError(
            "mask: geometric coil compression needs a fully sampled readout, but single points were acquired;"
            " use svd_compression"
        )
    lines = _calibration_lines(mask)
    hybrid = ifft1c(kspace[..., lines], -2).to(torch.complex128).transpose(-3, -2)
    gram = hybrid @ hybrid.mH
    _, vectors = _dominant(_smoothed(gram, window) + _COMMON * gram.mean(-3, keepdim=True))
    total = gram.diagonal(dim1=-2, dim2=-1).real.sum((-2, -1))
    # energy of the place itself, not of its window, along each vector
    own = (vectors.conj() * (gram @ vectors)).sum(-2).real.sum(-2)
    count, _ = _count(own, n_virtual, energy)
    kept = (own[..., :count].sum(-1) / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1)
    kept = torch.where(total > 0, kept, 1)
    aligned = _aligned(vectors[..., :count].mH)
    return Compression(aligned, float(kept.min()), along_readout=True)


def _aligned(rows: Tensor) -> Tensor:
    """Orthonormal ``rows`` (..., y, virtual, coil) turned by unitary matrices, so that neighbours agree."""
    height = rows.shape[-3]
    result, centre = rows.clone(), height // 2
    result[..., centre, :, :] = _turned(rows[..., centre, :, :])
    for step, places in ((1, range(centre + 1, height)), (-1, range(centre - 1, -1, -1))):
        for y in places:
            before = result[..., y - step, :, :]
            left, _, right = torch.linalg.svd(before @ rows[..., y, :, :].mH)
            result[..., y, :, :] = left @ right @ rows[..., y, :, :]
    return result


def _turned(rows: Tensor) -> Tensor:
    """Each row times a phase, so that its entry of largest magnitude is positive."""
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    return rows * largest.conj().sgn()


def _dominant(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors in the same order of Hermitian matrices."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def _smoothed(gram: Tensor, window: int) -> Tensor:
    """Mean of ``gram`` (..., y, coil, coil) over ``window`` neighbouring places, fewer at the ends."""
    height, half = gram.shape[-3], window // 2
    ends = torch.arange(height, device=gram.device)
    low, high = (ends - half).clamp(min=0), (ends + half + 1).clamp(max=height)
    summed = torch.cat([torch.zeros_like(gram[..., :1, :, :]), gram.cumsum(-3)], dim=-3)
    return (summed[..., high, :, :] - summed[..., low, :, :]) / (high - low)[:, None, None]


def _count(values: Tensor, n_virtual: int | None, energy: float | None) -> tuple[int, float]:
    """Number of virtual coils and the fraction of energy they keep, for ``values`` (..., coil), largest first."""
    total = values.sum(-1, keepdim=True)
    fraction = torch.where(total > 0, values.cumsum(-1) / torch.where(total > 0, total, 1), 1)
    least = fraction.reshape(-1, values.shape[-1]).amin(0)
    if n_virtual is not None:
        return n_virtual, float(least[n_virtual - 1])
    enough = (least >= min(energy or 1.0, float(least[-1]))).nonzero()
    count = int(enough[0, 0]) + 1
    return count, float(least[count - 1])


def _calibration(kspace: Tensor, mask: Tensor) -> Tensor:
    """Samples (..., coil, n) of the ACS, or all acquired ones where there is none."""
    rows, columns = acs_block(mask)
    if columns.stop > columns.start:
        return kspace[..., rows, columns].flatten(-2)
    return kspace[..., mask.expand(kspace.shape[-2:])]


def _calibration_lines(mask: Tensor) -> Tensor:
    """Indices of the ACS lines of ``mask`` (1 or y, x), or of all acquired lines where there are none."""
    columns = acs_block(mask[:1])[1]
    lines = torch.arange(mask.shape[-1], device=mask.device)
    return lines[columns] if columns.stop > columns.start else lines[mask[0]]


def _checked(kspace: Tensor, mask: Tensor, n_virtual: int | None, energy: float | None) -> tuple[Tensor, Tensor]:
    """Acquired samples of ``kspace`` (others zero) and ``mask`` (1, x) or (y, x)."""
    if kspace.ndim < 3 or not kspace.is_complex() or 0 in kspace.shape:
        raise ValueError(f"kspace: expected complex (..., coil, y, x), got {kspace.dtype} {list(kspace.shape)}")
    if mask.dtype != torch.bool or mask.shape not in ((kspace.shape[-1],), (1, kspace.shape[-1]), kspace.shape[-2:]):
        raise ValueError(f"mask: expected bool (x,), (1, x) or (y, x), got {mask.dtype} {list(mask.shape)}")
    n_coils = kspace.shape[-3]
    if (n_virtual is None) == (energy is None):
        raise InputError("coil compression: give n_virtual or energy, one of the two")
    if n_virtual is not None and not 1 <= n_virtual <= n_coils:
        raise InputError(f"n_virtual {n_virtual}: expected 1 to {n_coils}, the number of coils")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy {energy:g}: expected a fraction above 0 and up to 1, e.g. 0.99")
    mask = (mask[None] if mask.ndim == 1 else mask).to(kspace.device)
    if not bool(mask.any()):
        raise InputError("mask: no sample was acquired; coil compression needs some")
    kspace = torch.where(mask, kspace, 0)
    if not bool(torch.isfinite(kspace.abs()).all()):
        raise InputError("kspace: acquired samples are NaN or infinite; repair the file or mask them out")
    return kspace, mask
