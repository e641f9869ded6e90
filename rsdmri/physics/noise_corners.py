"""Coil noise covariance from the corners of the image of a fully sampled slice or volume."""

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.fourier import fft2c, ifft2c
from rsdmri.physics.noise_estimate import NoiseEstimate, covariance_of_samples

_SIDE = 8  # a corner is this part of the field of view along each axis
_EXCESS = 4.0  # standard errors by which a test must fail
_SMOOTH = 2.0  # energy of the central bin over its neighbours; a Hann window alone gives 1.6


def covariance_from_corners(kspace: Tensor) -> NoiseEstimate:
    """Noise covariance from the quiet image corners of fully sampled ``kspace`` (coil, y, x) or (slices, coil, y, x).

    Each corner is an eighth of the field of view along each axis; those whose energy exceeds the quietest one's (the
    object reaches them) are left out. The k-space of the corners shows how noise is spread over k: where a window or
    zeros lowered it at the edges, a corner pixel has less noise than a sample, and only the bins near the centre of
    k-space, an eighth of its width to either side, are used (6 % low for zeros, 25 % for a Hann window, measured).
    ``signal``: energy that falls from the inner to the outer half of the corners, or that is smooth (an object that
    fills them). A receiver filter that falls off towards the edge of the field of view lowers the estimate.
    Raises ``InputError`` when samples between acquired ones are missing (exactly zero in all coils and slices), the
    matrix is smaller than 32, or a sample is not finite.
    """
    if kspace.ndim not in (3, 4) or not kspace.is_complex():
        raise ValueError(
            f"kspace: expected complex (coil, y, x) or (slices, coil, y, x), got {kspace.dtype} {list(kspace.shape)}"
        )
    kspace = kspace.reshape(-1, *kspace.shape[-3:])
    if min(kspace.shape[-2:]) < 4 * _SIDE:
        raise InputError(f"kspace: {list(kspace.shape[-2:])} is too small for corners; use the k-space edges")
    _require_full(kspace)
    size = [n // _SIDE for n in kspace.shape[-2:]]
    image = ifft2c(kspace).to(torch.complex128)
    corners = torch.stack(  # turned so that the image's own corner is the first pixel: (corner, slices, coil, y, x)
        [(image.flip(axes) if axes else image)[..., : size[0], : size[1]] for axes in ((), (-2,), (-1,), (-2, -1))]
    )
    corners = corners[_quiet(corners.abs().square())]
    spectrum = fft2c(corners)
    values, source, signal = _choose(corners.abs().square(), spectrum)
    brightest = float(image.abs().square().sum(1).max()) / kspace.shape[1]
    return covariance_of_samples(values, filled=1.0, brightest=brightest, source=source, signal=signal)


def _quiet(energy: Tensor) -> Tensor:
    """Indices of the corners whose energy [corner, slices, coil, y, x] is that of the quietest."""
    level = energy.mean(dim=(1, 3, 4))
    relative = (level / level.amin(0).clamp(min=torch.finfo(level.dtype).tiny)).mean(1)
    spread = (2 / energy[0].numel()) ** 0.5
    kept: Tensor = relative <= (1.1 + 3 * spread) * relative.min()
    return kept.nonzero()[:, 0]


def _choose(energy: Tensor, spectrum: Tensor) -> tuple[Tensor, str, tuple[float, float] | None]:
    """Noise samples (coil, n) of quiet corners, source, and (signal, error); arrays [corner, slices, coil, y, x]."""
    level = energy.mean(dim=(0, 1, 3, 4)).clamp(min=torch.finfo(energy.dtype).tiny)
    power = (spectrum.abs().square() / level[:, None, None]).mean(dim=(0, 1, 2))
    per_bin = energy.shape[0] * energy.shape[1] * energy.shape[2]
    y, x = (((torch.arange(n, device=power.device) - n // 2) / n).abs() for n in power.shape)
    radius = torch.maximum(y[:, None], x)
    centre, inner = radius == 0, radius <= 1 / 8
    ring, outer = inner & ~centre, radius > 1 / 8
    error = (per_bin * power.numel()) ** -0.5

    smooth = float(power[centre].mean() / power[ring].mean()) > _SMOOTH + _EXCESS * per_bin**-0.5
    steep = (1 / (per_bin * int(inner.sum())) + 1 / (per_bin * int(outer.sum()))) ** 0.5
    tapered = not smooth and float(power[outer].mean() / power[inner].mean()) < 0.95 - 3 * steep
    by_pixel = (energy / level[:, None, None]).mean(dim=(0, 1, 2))
    down, across = (torch.arange(n, device=by_pixel.device) / n for n in by_pixel.shape)
    far = torch.maximum(down[:, None], across) < 0.5**0.5  # half of the pixels
    share = max(1 - float(by_pixel[far].mean()), 0.0)
    if smooth:
        share = max(share, 1 - float(power[outer].mean()))
    used = spectrum[..., inner] if tapered else spectrum.flatten(-2)
    source = "image corners of windowed k-space" if tapered else "image corners"
    return used.movedim(2, 0).flatten(1), source, (share, error)


def _require_full(kspace: Tensor) -> None:
    """``InputError`` unless all samples between acquired ones of a row or of a line were acquired."""
    if not bool(torch.isfinite(kspace.abs()).all()):
        raise InputError("kspace: samples are NaN or infinite; the image corners need fully sampled k-space")
    present = (kspace != 0).flatten(0, 1).any(0).int()
    missing = 0
    for axis in (0, 1):
        before, after = present.cummax(axis).values, present.flip(axis).cummax(axis).values.flip(axis)
        missing += int(((present == 0) & (before == 1) & (after == 1)).sum())
    if missing:
        raise InputError(
            "kspace: samples between acquired ones are missing; image corners need full sampling:"
            " use estimate_covariance with the mask"
        )
