"""From acquired k-space to what reconstruction and training see: whitened, scaled, with coil maps, per slice.

Only acquired samples are read, so the result is the same whatever stands at the other positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.coils import espirit_maps
from rsdmri.physics.fourier import ifft2c, rss
from rsdmri.physics.masks import acs_block
from rsdmri.physics.masks.content import center
from rsdmri.physics.noise import NoiseEstimate, whiten, whitening_matrix

_SCALE_QUANTILE = 0.99
_PHASE_ROWS = 4  # most rows over columns, or columns over rows, of the k-space block whose image gives the phase


@dataclass(frozen=True)
class PreparedSlice:
    """One slice in scaled units: its maps' image has magnitudes of about 1, its noise CN(0, sigma_y^2) per sample.

    kspace (coil, y, x) whitened, divided by ``scale``, zero where ``mask`` (1, x) or (y, x) is not set; ``maps``
    (coil, y, x); |image| times ``intensity`` (y, x) is the root-sum-of-squares image in the units of the file. With
    sets of maps, ``maps`` and ``intensity`` have an axis of sets in front.
    """

    kspace: Tensor
    mask: Tensor
    maps: Tensor
    scale: float
    sigma_y: float
    intensity: Tensor


def prepare_slice(
    kspace: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.complexfloating]],
    mask: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    *,
    noise: NoiseEstimate | None,
    maps: Tensor | None = None,
    sets: int | None = None,
    centre: int | None = None,
) -> PreparedSlice:
    """Whiten, scale and map one slice: ``kspace`` (coil, y, x) complex, ``mask`` (x,), (1, x) or (y, x) boolean.

    Whitening: W = Psi^(-1/2) of ``noise``, none when it is None (then ``sigma_y`` is 0: unknown). Scale: the 99th
    percentile of the root-sum-of-squares image of the ACS block alone. Maps: ESPIRiT of the ACS, with ``sets`` as in
    `espirit_maps`; or ``maps`` (coil, y, x) of the coils as they are in the file, which are whitened and normalised;
    either way with the phase of the ACS image, so that the image is nearly real and positive. An empty slice keeps
    scale 1. ``centre`` takes that many centre lines for the ACS instead of all that ``mask`` acquired.
    Raises ``InputError`` for NaN or infinite acquired samples, with their number, and where coil maps cannot be made.
    """
    kspace, mask, whitening = _whitened(kspace, mask, noise)
    acs = _centre(mask, centre)
    scale = _acs_scale(kspace, acs)
    kspace = kspace / scale
    sigma_y = 0.0 if noise is None else 1 / scale
    if maps is None:
        maps = espirit_maps(kspace, acs, sets=sets, noise_std=sigma_y)
    else:
        maps = _normalised(maps, kspace, whitening)
    maps = maps * _acs_phase(kspace, maps, acs)
    unmixed = whiten(maps, torch.linalg.inv(whitening))
    return PreparedSlice(kspace, mask, maps, scale, sigma_y, scale * rss(unmixed))


def scale_slice(
    kspace: Tensor, mask: Tensor, *, noise: NoiseEstimate, centre: int | None = None
) -> tuple[Tensor, Tensor, float]:
    """``kspace``, ``mask`` and ``sigma_y`` of `prepare_slice`, for the same arguments and errors, without coil maps."""
    kspace, mask, _ = _whitened(kspace, mask, noise)
    scale = _acs_scale(kspace, _centre(mask, centre))
    return kspace / scale, mask, 1 / scale


def prepare_known(
    kspace: Tensor, mask: Tensor, *, noise: NoiseEstimate, maps: Tensor, scale: float, intensity: Tensor
) -> PreparedSlice:
    """What `prepare_slice` returned for the same ``kspace``, ``mask`` and ``noise``, given what it found then.

    Raises ``InputError`` for NaN or infinite acquired samples.
    """
    kspace, mask, _ = _whitened(kspace, mask, noise)
    return PreparedSlice(kspace / scale, mask, maps, scale, 1 / scale, intensity)


def _whitened(
    kspace: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.complexfloating]],
    mask: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    noise: NoiseEstimate | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Acquired samples in units of the noise, the mask with two axes, and the whitening matrix."""
    kspace, mask = _checked(_tensor(kspace), _tensor(mask))
    kspace = torch.where(mask, kspace, 0)
    broken = int((~torch.isfinite(kspace.abs())).sum())
    if broken:
        raise InputError(f"kspace: {broken} acquired samples are NaN or infinite; repair the file or mask them out")
    if noise is None:
        return kspace, mask, torch.eye(kspace.shape[0], dtype=torch.complex128)
    whitening = whitening_matrix(noise.covariance)
    return torch.where(mask, whiten(kspace, whitening), 0), mask, whitening


def _tensor(x: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x)  # a copy: torch cannot share read-only arrays


def _checked(kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if kspace.ndim != 3 or not kspace.is_complex():
        raise InputError(f"kspace: expected complex (coil, y, x), got {kspace.dtype} of shape {list(kspace.shape)}")
    if 0 in kspace.shape:
        raise InputError(f"kspace: shape {list(kspace.shape)} is empty")
    _, height, width = kspace.shape
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((width,), (1, width), (height, width)):
        raise InputError(
            f"mask: expected bool ({width},) or ({height}, {width}), got {mask.dtype} of shape {list(mask.shape)}"
        )
    return kspace.to(torch.complex64), (mask[None] if mask.ndim == 1 else mask).to(kspace.device)


def _centre(mask: Tensor, lines: int | None) -> tuple[slice, slice]:
    acs = acs_block(mask)
    if lines is not None and lines < acs[1].stop - acs[1].start:
        acs = acs[0], center(mask.shape[-1], lines)
    if acs[1].stop == acs[1].start:
        raise InputError("mask: the centre of k-space was not acquired; scale and coil maps come from the centre (ACS)")
    return acs


def _acs_scale(kspace: Tensor, acs: tuple[slice, slice]) -> float:
    """99th percentile of the root-sum-of-squares image of the ACS block alone; 1 for an empty slice."""
    block = torch.zeros_like(kspace)
    block[..., acs[0], acs[1]] = kspace[..., acs[0], acs[1]]
    image = rss(ifft2c(block)).flatten()
    scale = float(image.kthvalue(1 + round(_SCALE_QUANTILE * (image.numel() - 1))).values)
    return scale if scale > 0 else 1.0


def _acs_phase(kspace: Tensor, maps: Tensor, acs: tuple[slice, slice]) -> Tensor:
    """Unit-magnitude phase (1, y, x) of the coil-combined image of the ACS block; 1 where that image is zero.

    Maps are determined up to a phase per pixel. Giving them the phase of the low-resolution image leaves an image that
    is nearly real and positive, whatever the object's phase: the same k-space, and far less for a prior to learn.
    The block is tapered by a Hamming window, along a fully sampled readout of `_PHASE_ROWS` times its width: where the
    phase turns by more than the block can follow, the image of an untapered one shows the side lobes of brighter
    places, whose phase is another.
    """
    block = torch.zeros_like(kspace)
    block[..., acs[0], acs[1]] = kspace[..., acs[0], acs[1]]
    rows, columns = (len(range(*part.indices(size))) for part, size in zip(acs, kspace.shape[-2:], strict=True))
    longest = _PHASE_ROWS * min(rows, columns)
    window = _taper(kspace.shape[-2], min(rows, longest))[:, None] * _taper(kspace.shape[-1], min(columns, longest))
    block = block * window.to(kspace.device)
    image = (maps.conj() * ifft2c(block)).sum(dim=-3, keepdim=True)
    size = image.abs()
    return torch.where(size > 0, image / torch.where(size > 0, size, 1), 1)


def _taper(size: int, width: int) -> Tensor:
    """Hamming window (size,) of the ``width`` samples around the centre, 0 elsewhere."""
    window = torch.zeros(size)
    window[center(size, width)] = torch.hamming_window(width, periodic=False)
    return window


def _normalised(maps: Tensor, kspace: Tensor, whitening: Tensor) -> Tensor:
    """Given coil maps seen through the whitening, sum |s|^2 = 1 where they are not zero."""
    if maps.shape != kspace.shape or not maps.is_complex():
        raise InputError(f"maps: expected complex {list(kspace.shape)}, got {maps.dtype} of shape {list(maps.shape)}")
    if not bool(torch.isfinite(maps.abs()).all()):
        raise InputError("maps: hold NaN or infinite values")
    maps = whiten(maps.to(device=kspace.device, dtype=torch.complex128), whitening)
    length = rss(maps)
    return torch.where(length > 0, maps / torch.where(length > 0, length, 1), 0).to(kspace.dtype)
