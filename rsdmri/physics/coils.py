"""Coil sensitivity maps from the ACS alone: ESPIRiT (Uecker et al. 2014, doi:10.1002/mrm.24751)."""

import math

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.fourier import ifft2c

_BLOCK = 300_000  # entries of pixel matrices worked on at a time on a CPU
_MOST_LOST = 0.002  # share of the object that may fall outside the maps before ``crop`` gives way
_COARSE = 4  # the power iteration starts on a grid this much coarser


def espirit_maps(
    kspace: Tensor,
    acs: tuple[slice, slice],
    *,
    calibration: int = 24,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.9,
    noise_std: float = 0.0,
) -> Tensor:
    """Coil maps of ``kspace`` (coil, y, x) or (batch, coil, y, x), same shape, sum |s|^2 = 1 in the object, 0 outside.

    Only the block ``acs`` (slices of readout and phase encode, see ``masks.acs_block``) is read, at most
    ``calibration`` samples along each axis. Its patches, ``kernel`` or at most a third of the block wide, span a space;
    each pixel's map is the dominant eigenvector of the projection onto that space seen from the pixel, kept where the
    eigenvalue (0 to 1) exceeds ``crop``. Singular values of the patches below ``threshold`` times the largest, or below
    what noise of standard deviation ``noise_std`` (per complex sample) reaches, are left out. Where a small ACS would
    leave holes in the object, ``crop`` gives way. Phases are relative to the dominant virtual coil. One coil: ones.
    Raises ``InputError`` when the ACS has fewer than 4 samples along an axis or holds NaN.
    """
    if kspace.ndim not in (3, 4) or not kspace.is_complex():
        raise ValueError(f"kspace: expected complex (coil, y, x) or (batch, coil, y, x), got {list(kspace.shape)}")
    if kspace.shape[-3] == 1:
        return torch.ones_like(kspace)
    rows = _calibration(acs[0], kspace.shape[-2], calibration, "readout samples")
    columns = _calibration(acs[1], kspace.shape[-1], calibration, "phase-encode lines")
    maps = torch.empty_like(kspace)
    with torch.no_grad():
        for item, result in zip(kspace.reshape(-1, *kspace.shape[-3:]), maps.view(-1, *kspace.shape[-3:]), strict=True):
            block = item[:, rows, columns]
            scale = block.abs().amax()
            if not bool(torch.isfinite(scale)):
                raise InputError("kspace: the ACS holds NaN or infinite samples")
            if float(scale) == 0:
                result.zero_()
                continue
            _espirit(block / scale, (rows, columns), result, kernel, threshold, crop, noise_std / float(scale))
    return maps


def coverage(maps: Tensor) -> float:
    """Fraction of pixels where coil ``maps`` (..., coil, y, x) are not zero."""
    return float((maps != 0).any(dim=-3).double().mean())


def _calibration(part: slice, size: int, limit: int, name: str) -> slice:
    start, stop, _ = part.indices(size)
    if stop - start < 4:
        raise InputError(
            f"ACS of {max(stop - start, 0)} {name}: coil maps need at least 4; acquire a larger centre"
            " (raise the center fraction) or give coil maps"
        )
    extra = max(stop - start - limit, 0)
    return slice(start + (extra + 1) // 2, stop - extra // 2)


def _espirit(
    block: Tensor,
    where: tuple[slice, slice],
    result: Tensor,
    kernel: int,
    threshold: float,
    crop: float,
    noise_std: float,
) -> None:
    """Write the maps of one calibration ``block`` (coil, rows, columns), taken at ``where``, into ``result``."""
    n_coils, height, width = result.shape
    lags = _lag_matrices(block, kernel, threshold, noise_std)
    phases = [_phases(n, lags.shape[axis], block) for axis, n in enumerate((height, width))]
    virtual = _virtual_coil(block)

    coarse = _pixel_matrices(lags, phases[0][::_COARSE], phases[1][::_COARSE])
    start, _ = _dominant(coarse, virtual.expand(*coarse.shape[:-1]), 6)
    start = start.repeat_interleave(_COARSE, 0)[:height].repeat_interleave(_COARSE, 1)[:, :width]
    value = torch.empty(height, width, dtype=block.real.dtype, device=block.device)
    for rows in _row_blocks(block, height, width * n_coils**2):
        matrices = _pixel_matrices(lags, phases[0][rows], phases[1])
        vectors, value[rows] = _dominant(matrices, start[rows], 2)
        reference = vectors @ virtual.conj()
        vectors = vectors * torch.where(reference == 0, 1, reference.conj().sgn())[..., None]
        result[:, rows] = vectors.movedim(-1, 0)
    result.mul_(value > _crop_level(block, where, value, crop))


def _lag_matrices(block: Tensor, kernel: int, threshold: float, noise_std: float) -> Tensor:
    """Projection onto the span of the block's patches, summed over equal lags: [lag y, lag x, coil, coil]."""
    n_coils, height, width = block.shape
    # a third of a thin ACS: larger kernels leave too few patches (map error 4 times larger at 8 lines)
    size_y, size_x = (min(kernel, max(2, round(n / 3))) for n in (height, width))
    patches = block.unfold(1, size_y, 1).unfold(2, size_x, 1).permute(1, 2, 0, 3, 4)
    patches = patches.reshape(-1, n_coils * size_y * size_x)
    tall = patches.shape[0] > patches.shape[1]
    gram = patches.mT @ patches.conj() if tall else patches @ patches.mH
    energies, vectors = torch.linalg.eigh(gram)
    floor = threshold * energies[-1].clamp(min=0).sqrt()
    floor = floor.clamp(min=noise_std * (math.sqrt(patches.shape[0]) + math.sqrt(patches.shape[1])))
    kept = energies > torch.minimum(floor.square(), 0.5 * energies[-1])
    energies, vectors = energies[kept], vectors[:, kept]
    basis = vectors if tall else patches.mT @ (vectors.conj() / energies.sqrt())
    projection = (basis @ basis.mH).view(n_coils, size_y, size_x, n_coils, size_y, size_x)
    projection = projection.permute(1, 2, 4, 5, 0, 3).reshape(-1, n_coils, n_coils)

    y, x = (torch.arange(n, device=block.device) for n in (size_y, size_x))
    lag_y = (y[:, None] - y + size_y - 1)[:, None, :, None]
    lag_x = (x[:, None] - x + size_x - 1)[None, :, None, :]
    index = (lag_y * (2 * size_x - 1) + lag_x).reshape(-1)
    lags: Tensor = projection.new_zeros((2 * size_y - 1) * (2 * size_x - 1), n_coils, n_coils)
    lags.index_add_(0, index, projection)
    return lags.view(2 * size_y - 1, 2 * size_x - 1, n_coils, n_coils) / (size_y * size_x)


def _phases(size: int, n_lags: int, like: Tensor) -> Tensor:
    """e^{2 pi i lag r / size} for the centred positions r of an axis: [size, lags]."""
    position = torch.arange(size, device=like.device, dtype=torch.float64) - size // 2
    lag = torch.arange(n_lags, device=like.device, dtype=torch.float64) - n_lags // 2
    angle = 2 * math.pi * position[:, None] * lag / size
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _pixel_matrices(lags: Tensor, phases_y: Tensor, phases_x: Tensor) -> Tensor:
    """The Hermitian matrix of every pixel, a short Fourier sum over the lags: [y, x, coil, coil]."""
    n_y, n_x, n_coils, _ = lags.shape
    rows = (phases_y @ lags.reshape(n_y, -1)).view(-1, n_x, n_coils * n_coils)
    return (phases_x @ rows).view(-1, phases_x.shape[0], n_coils, n_coils)


def _dominant(matrices: Tensor, start: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Dominant eigenvector (unit length) and eigenvalue of each Hermitian matrix, by 5 power iterations a round."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    vectors = start.reshape(-1, start.shape[-1], 1)
    value = vectors.new_zeros(flat.shape[0], 1, 1)
    for _ in range(rounds):
        vectors = flat @ (flat @ (flat @ (flat @ vectors)))
        vectors = flat @ (vectors / _length(vectors))
        value = _length(vectors)
        vectors = vectors / value
    return vectors.view(start.shape), value.view(start.shape[:-1])


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last but one axis, never zero."""
    return torch.view_as_real(vectors).square().sum((-3, -1)).sqrt().clamp(min=1e-30)[..., None]


def _virtual_coil(block: Tensor) -> Tensor:
    """Weights (coil,) of the combination of coils that carries most of the block's energy, largest one positive."""
    flat = block.flatten(1)
    weights: Tensor = torch.linalg.eigh(flat @ flat.mH)[1][:, -1]
    turned: Tensor = weights * weights[weights.abs().argmax()].conj().sgn()
    return turned


def _crop_level(block: Tensor, where: tuple[slice, slice], value: Tensor, crop: float) -> Tensor:
    """``crop``, or less where more than ``_MOST_LOST`` of the object (as the block alone shows it) would be lost."""
    height, width = value.shape
    image = block.new_zeros(block.shape[0], height, width)
    image[:, where[0], where[1]] = block
    energy = ifft2c(image).abs().square().sum(0)
    inside = value[energy > 0.02 * _quantile(energy.flatten(), 0.99)]
    return _quantile(inside, _MOST_LOST).clamp(max=crop)


def _quantile(x: Tensor, q: float) -> Tensor:
    """The value below which a fraction ``q`` of ``x`` lies (``torch.quantile`` refuses large inputs)."""
    return x.kthvalue(1 + round(q * (x.numel() - 1))).values


def _row_blocks(like: Tensor, height: int, per_row: int) -> list[slice]:
    step = height if like.device.type != "cpu" else max(1, _BLOCK * torch.get_num_threads() // per_row)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]
