"""Coil sensitivity maps from the ACS alone: ESPIRiT (Uecker et al. 2014, doi:10.1002/mrm.24751)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.fourier import ifft2c

_BLOCK = 300_000  # entries of pixel matrices worked on at a time on a CPU
_COARSE = 4  # the power iteration starts on a grid this much coarser
_LEAST = 4  # samples of the ACS along an axis
_KERNEL, _THRESHOLD, _CROP = 6, 0.02, 0.87  # where the data do not ask for less; at 0.9 thin scalp was lost
_MOST_LOST = 0.002  # share of the object that may fall outside the maps before the automatic crop gives way


class _Settings(NamedTuple):
    kernel: int | None
    threshold: float | None
    crop: float | None
    soft: bool
    sets: int


def espirit_maps(
    kspace: Tensor,
    acs: tuple[slice, slice],
    *,
    shape: tuple[int, int] | None = None,
    sets: int | None = None,
    calibration: int = 24,
    kernel: int | None = None,
    threshold: float | None = None,
    crop: float | None = None,
    soft: bool = False,
    noise_std: float = 0.0,
) -> Tensor:
    """Coil maps of ``kspace`` (coil, y, x) or (batch, coil, y, x), same shape, sum |s|^2 = 1 in the object, 0 outside.

    Only the block ``acs`` (slices of readout and phase encode, see ``masks.acs_block``) is read. Its patches span a
    space; each pixel's map is the dominant eigenvector of the projection onto that space seen from the pixel, kept
    where the eigenvalue (0 to 1) is large. Phases are relative to the dominant virtual coil. One coil: ones.

    Args:
        kspace: complex; also a separate calibration scan of the same field of view, then with ``shape``.
        acs: the fully sampled centre.
        shape: (y, x) of the maps where it differs from that of ``kspace``; the ACS must then lie in the centre.
        sets: 1 or 2 give an axis of sets before the coils. The second set, the next eigenvector, explains pixels where
            two parts of the object lie on one another: a field of view too small, or chemical shift.
        calibration: at most this many samples of the ACS along each axis.
        kernel: width of the patches. Automatic: 6, or a third of a thin ACS.
        threshold: singular values of the patches below it times the largest are left out. Automatic: 0.02, or what
            noise of standard deviation ``noise_std`` (per complex sample) reaches, if that is more.
        crop: least eigenvalue that is kept. Automatic: 0.87, or less where a small ACS would leave holes in the object.
        soft: fall off smoothly around ``crop`` (weights of Soft-SENSE) instead of stopping there; sum |s|^2 <= 1.
        noise_std: for the automatic threshold.

    Raises:
        InputError: the ACS has fewer than 4 samples along an axis, is too small for ``kernel``, or holds NaN.
    """
    if kspace.ndim not in (3, 4) or not kspace.is_complex():
        raise ValueError(f"kspace: expected complex (coil, y, x) or (batch, coil, y, x), got {list(kspace.shape)}")
    if sets not in (None, 1, 2):
        raise ValueError(f"sets: expected 1 or 2, got {sets}")
    size = tuple(kspace.shape[-2:]) if shape is None else shape
    maps = kspace.new_zeros(*kspace.shape[:-3], sets or 1, kspace.shape[-3], *size)
    if kspace.shape[-3] == 1:
        maps[..., 0, :, :, :] = 1
    else:
        settings = _Settings(kernel, threshold, crop, soft, sets or 1)
        with torch.no_grad():
            _fill(maps, kspace, acs, calibration, settings, noise_std)
    return maps if sets is not None else maps.squeeze(-4)


def _fill(
    maps: Tensor,
    kspace: Tensor,
    acs: tuple[slice, slice],
    calibration: int,
    settings: _Settings,
    noise_std: float,
) -> None:
    rows = _calibration(acs[0], kspace.shape[-2], calibration, settings.kernel, "readout samples")
    columns = _calibration(acs[1], kspace.shape[-1], calibration, settings.kernel, "phase-encode lines")
    where = _moved(rows, kspace.shape[-2], maps.shape[-2]), _moved(columns, kspace.shape[-1], maps.shape[-1])
    for item, result in zip(kspace.reshape(-1, *kspace.shape[-3:]), maps.view(-1, *maps.shape[-4:]), strict=True):
        block = item[:, rows, columns]
        scale = float(block.abs().amax())
        if not math.isfinite(scale):
            raise InputError("kspace: the ACS holds NaN or infinite samples; repair the file or mask them out")
        if scale > 0:
            _espirit(block / scale, where, result, settings, noise_std / scale)


def coverage(maps: Tensor) -> float:
    """Fraction of pixels where coil ``maps`` (..., coil, y, x) are not zero."""
    return float((maps != 0).any(dim=-3).double().mean())


def _calibration(part: slice, size: int, limit: int, kernel: int | None, name: str) -> slice:
    """The centre of the ACS that is used along one axis; `InputError` when it is too small."""
    start, stop, _ = part.indices(size)
    found = max(stop - start, 0)
    if found < _LEAST:
        raise InputError(
            f"ACS of {found} {name}: coil maps need at least {_LEAST}; acquire a larger centre"
            " (raise the center fraction) or give coil maps"
        )
    used = min(found, limit)
    if kernel is not None and not 2 <= kernel <= used // 2:
        raise InputError(
            f"ACS of {used} {name}: too small for a kernel of {kernel}; use a kernel of 2 to {used // 2} or a larger"
            " centre (raise the center fraction)"
        )
    extra = found - used
    return slice(start + (extra + 1) // 2, stop - extra // 2)


def _moved(part: slice, size: int, target: int) -> slice:
    """Where ``part`` of an axis of ``size`` lies on an axis of ``target`` samples, centre on centre."""
    start, stop = part.start + target // 2 - size // 2, part.stop + target // 2 - size // 2
    if start < 0 or stop > target:
        raise ValueError(f"shape: {target} samples do not hold the ACS of {stop - start} around their centre")
    return slice(start, stop)


def _espirit(block: Tensor, where: tuple[slice, slice], result: Tensor, settings: _Settings, noise_std: float) -> None:
    """Write the maps of one calibration ``block`` (coil, rows, columns), taken at ``where``, into ``result``."""
    n_sets, n_coils, height, width = result.shape
    lags = _lag_matrices(block, settings, noise_std)
    phases = [_phases(n, lags.shape[axis], block) for axis, n in enumerate((height, width))]
    virtual = _virtual_coils(block)[:, :n_sets]

    coarse = _pixel_matrices(lags, phases[0][::_COARSE], phases[1][::_COARSE])
    start, _ = _leading(coarse, virtual.expand(*coarse.shape[:-1], -1), 6)
    start = start.repeat_interleave(_COARSE, 0)[:height].repeat_interleave(_COARSE, 1)[:, :width]
    value = torch.empty(n_sets, height, width, dtype=block.real.dtype, device=block.device)
    for rows in _row_blocks(block, height, width * n_coils**2):
        matrices = _pixel_matrices(lags, phases[0][rows], phases[1])
        vectors, values = _leading(matrices, start[rows], 2)
        value[:, rows] = values.movedim(-1, 0)
        reference = (vectors * virtual[:, 0].conj()[:, None]).sum(-2, keepdim=True)
        vectors = vectors * torch.where(reference == 0, 1, reference.conj().sgn())
        result[:, :, rows] = vectors.permute(3, 2, 0, 1)
    crop = _crop_level(block, where, value[0]) if settings.crop is None else settings.crop
    result.mul_(_weights(value, crop, settings.soft)[:, None])


def _weights(value: Tensor, crop: Tensor | float, soft: bool) -> Tensor:
    """1 where an eigenvalue exceeds ``crop`` and 0 elsewhere; soft: a smooth step from 2 crop - 1 to 1 instead."""
    if not soft:
        return value > crop
    step = ((value - 2 * crop + 1) / (2 - 2 * crop)).clamp(0, 1)
    return step.square() * (3 - 2 * step)


def _lag_matrices(block: Tensor, settings: _Settings, noise_std: float) -> Tensor:
    """Projection onto the span of the block's patches, summed over equal lags: [lag y, lag x, coil, coil]."""
    n_coils, height, width = block.shape
    # a third of a thin ACS: larger kernels leave too few patches (map error 4 times larger at 8 lines)
    size_y, size_x = (settings.kernel or min(_KERNEL, max(2, round(n / 3))) for n in (height, width))
    patches = block.unfold(1, size_y, 1).unfold(2, size_x, 1).permute(1, 2, 0, 3, 4)
    patches = patches.reshape(-1, n_coils * size_y * size_x)
    tall = patches.shape[0] > patches.shape[1]
    gram = patches.mT @ patches.conj() if tall else patches @ patches.mH
    energies, vectors = torch.linalg.eigh(gram)
    largest = energies[-1].clamp(min=0).sqrt()
    if settings.threshold is None:
        edge = noise_std * (math.sqrt(patches.shape[0]) + math.sqrt(patches.shape[1]))
        floor = (_THRESHOLD * largest).clamp(min=edge)
    else:
        floor = settings.threshold * largest
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


def _leading(matrices: Tensor, start: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors [..., coil, k] (orthonormal) and eigenvalues [..., k] of each Hermitian matrix, k = 1 or 2.

    By 5 power iterations a round from ``start`` [..., coil, k]; two vectors are told apart in their plane at the end.
    """
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    vectors = start.reshape(-1, *start.shape[-2:])
    value = vectors.new_zeros(flat.shape[0], 1, vectors.shape[-1])
    for _ in range(rounds):
        vectors = flat @ (flat @ (flat @ (flat @ vectors)))
        vectors = flat @ _orthonormal(vectors)
        value = _length(vectors)
        vectors = _orthonormal(vectors) if vectors.shape[-1] > 1 else vectors / value
    if vectors.shape[-1] > 1:
        vectors, value = _principal_axes(flat, vectors)
    return vectors.view(start.shape), value.view(*start.shape[:-2], -1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """One or two columns [n, coil, k], made orthonormal from the first on."""
    first = vectors[..., :1] / _length(vectors[..., :1])
    if vectors.shape[-1] == 1:
        return first
    second = vectors[..., 1:] / _length(vectors[..., 1:])
    for _ in range(2):  # twice: nearly parallel columns lose digits at the first
        second = second - first * (first.conj() * second).sum(-2, keepdim=True)
        second = second / _length(second)
    return torch.cat([first, second], dim=-1)


def _principal_axes(matrices: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of Hermitian ``matrices`` within the ``plane`` of two orthonormal columns."""
    inner = plane.mH @ (matrices @ plane)
    mean = (inner[:, 0, 0].real + inner[:, 1, 1].real) / 2
    half = (inner[:, 0, 0].real - inner[:, 1, 1].real) / 2
    mixed = inner[:, 0, 1]
    angle, phase = torch.atan2(mixed.abs(), half) / 2, torch.where(mixed == 0, 1, mixed.conj().sgn())
    cosine, sine = angle.cos().to(phase.dtype), angle.sin() * phase
    turn = torch.stack([torch.stack([cosine, -sine.conj()], -1), torch.stack([sine, cosine], -1)], -2)
    radius = torch.hypot(half, mixed.abs())
    return plane @ turn, torch.stack([mean + radius, mean - radius], dim=-1)


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last but one axis, never zero: [n, coil, k] to [n, 1, k]."""
    return torch.view_as_real(vectors).square().sum((-3, -1)).sqrt().clamp(min=1e-30)[..., None, :]


def _virtual_coils(block: Tensor) -> Tensor:
    """Weights (coil, virtual coil), most energy of the block first; the largest of each column is positive."""
    flat = block.flatten(1)
    weights: Tensor = torch.linalg.eigh(flat @ flat.mH)[1].flip(-1)
    largest = weights.gather(0, weights.abs().argmax(0, keepdim=True))
    return weights * largest.conj().sgn()


def _crop_level(block: Tensor, where: tuple[slice, slice], value: Tensor) -> Tensor:
    """``_CROP``, or less where more than ``_MOST_LOST`` of the object (as the block alone shows it) would be lost."""
    height, width = value.shape
    image = block.new_zeros(block.shape[0], height, width)
    image[:, where[0], where[1]] = block
    energy = ifft2c(image).abs().square().sum(0)
    inside = value[energy > 0.02 * _quantile(energy.flatten(), 0.99)]
    return _quantile(inside, _MOST_LOST).clamp(max=_CROP)


def _quantile(x: Tensor, q: float) -> Tensor:
    """The value below which a fraction ``q`` of ``x`` lies (``torch.quantile`` refuses large inputs)."""
    return x.kthvalue(1 + round(q * (x.numel() - 1))).values


def _row_blocks(like: Tensor, height: int, per_row: int) -> list[slice]:
    step = height if like.device.type != "cpu" else max(1, _BLOCK * torch.get_num_threads() // per_row)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]
