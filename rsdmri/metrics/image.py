"""Image quality by fastMRI's convention: NMSE, PSNR and SSIM of magnitude volumes.

All functions take ``target`` first, then ``reconstruction``, both real magnitudes of shape ``(slice, y, x)`` in the
same units, and evaluate fastMRI's expressions in the arrays' own floating type, so that the numbers equal those of its
``evaluate.py`` on the same arrays. Nothing is rescaled: a scale error is an error.

Source: Zbontar et al. 2018, arXiv 1811.08839, section 5.4; SSIM: Wang et al. 2004, as computed by scikit-image.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError

CONVENTION = {
    "crop": "target and reconstruction centre-cropped to (min(H, W), W), W = last dimension of the target",
    "nmse": "|target - reconstruction|^2 / |target|^2 over the volume",
    "nrmse": "square root of nmse, no scale fitted",
    "psnr": "10 log10(data_range^2 / mean squared error over the volume), in dB",
    "ssim": "mean over slices, 7x7 uniform window, K1 0.01, K2 0.03, sample covariance",
    "data_range": "maximum of the cropped target volume",
}

_SSIM_WINDOW = 7
_FLOAT32_SAFE = 1e12  # beyond this, or below its inverse, squares are formed in float64


def nmse(target: ArrayLike, reconstruction: ArrayLike) -> float:
    """Normalised mean squared error ``|t - r|^2 / |t|^2`` over the whole volume."""
    t, r = _pair(target, reconstruction)
    return float(np.linalg.norm(t - r) ** 2 / np.linalg.norm(t) ** 2)


def nrmse(target: ArrayLike, reconstruction: ArrayLike) -> float:
    """Normalised root mean squared error ``|t - r| / |t|`` over the whole volume, without fitting a scale."""
    t, r = _pair(target, reconstruction)
    return float(np.linalg.norm(t - r) / np.linalg.norm(t))


def psnr(target: ArrayLike, reconstruction: ArrayLike, *, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio ``10 log10(data_range^2 / mean (t - r)^2)`` in dB; infinite where both are equal.

    ``data_range`` defaults to the maximum of the target volume.
    """
    t, r, peak = checked(target, reconstruction, data_range)
    error = float(np.mean((t - r) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(target: ArrayLike, reconstruction: ArrayLike, *, data_range: float | None = None) -> float:
    """Structural similarity, the mean over slices of scikit-image's ``structural_similarity`` with its defaults.

    ``data_range`` defaults to the maximum of the target *volume*, one number for all its slices.
    """
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity
    t, r, peak = checked(target, reconstruction, data_range)
    if min(t.shape[1:]) < _SSIM_WINDOW:
        raise InputError(f"target: slices of {_size(t)} are smaller than the 7x7 window of SSIM; use larger images")
    return float(sum(similarity(a, b, data_range=peak) for a, b in zip(t, r, strict=True)) / len(t))


def evaluate_volume(target: ArrayLike, reconstruction: ArrayLike) -> dict[str, float]:
    """Return ``nmse``, ``nrmse``, ``psnr`` and ``ssim`` after fastMRI's centre crop of both volumes.

    Both are cropped to ``(W, W)`` with ``W`` the last dimension of ``target``, or to its height where that is smaller.
    `InputError` when ranks or slice counts differ, the reconstruction is smaller than the crop, or a value
    is not finite.
    """
    t, r = common_crop(target, reconstruction)
    return {"nmse": nmse(t, r), "nrmse": nrmse(t, r), "psnr": psnr(t, r), "ssim": ssim(t, r)}


def complex_nrmse(target: ArrayLike, reconstruction: ArrayLike) -> float:
    """``|t - e^(i phi) r| / |t|`` over complex volumes (slice, y, x), with the phase phi of each slice that fits best.

    ``phi = arg <r, t>``: coil maps and phase references leave one phase of each slice open, and nothing else.
    """
    t, r = np.asarray(target), np.asarray(reconstruction)
    if t.ndim != 3 or t.shape != r.shape or not (np.iscomplexobj(t) and np.iscomplexobj(r)):
        raise InputError(
            f"reconstruction: complex {r.shape}, the target {t.shape}; expected complex (slice, y, x) twice"
        )
    t, r = t.astype(np.complex128), r.astype(np.complex128)
    norm = float(np.linalg.norm(t))
    if not (0 < norm < math.inf and np.isfinite(r).all()):
        raise InputError("complex volumes: zero everywhere, NaN or infinite; leave this volume out")
    phase = np.exp(1j * np.angle((t * r.conj()).sum((1, 2), keepdims=True)))
    return float(np.linalg.norm(t - phase * r)) / norm


def common_crop(target: ArrayLike, reconstruction: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both volumes, checked and cropped as `evaluate_volume` does."""
    t = _volume(target, "target")
    r = _volume(reconstruction, "reconstruction")
    if len(t) != len(r):
        raise InputError(f"reconstruction: {len(r)} slices, the target has {len(t)}; compare the same volume")
    height, width = min(t.shape[1], t.shape[2]), t.shape[2]
    if r.shape[1] < height or r.shape[2] < width:
        raise InputError(
            f"reconstruction: slices of {_size(r)} do not cover the {height}x{width} crop of the target;"
            " reconstruct at the matrix size of the target"
        )
    return _crop(t, height, width), _crop(r, height, width)


def checked(
    target: ArrayLike, reconstruction: ArrayLike, data_range: float | None
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Both volumes, checked, and the data range: by default the maximum of the target."""
    t, r = _pair(target, reconstruction)
    peak = t.max() if data_range is None else data_range
    if not peak > 0:
        raise InputError(f"data_range: {float(peak):g} is not positive; give the maximum of the target volume")
    return t, r, peak


def _crop(volume: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    top, left = (volume.shape[1] - height) // 2, (volume.shape[2] - width) // 2
    return volume[:, top : top + height, left : left + width]


def _pair(target: ArrayLike, reconstruction: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    t = _volume(target, "target")
    r = _volume(reconstruction, "reconstruction")
    if t.shape != r.shape:
        raise InputError(f"reconstruction: shape {r.shape} differs from the target's {t.shape}; crop both alike")
    peak = float(np.abs(t).max())
    if peak == 0:
        raise InputError("target: zero everywhere, errors relative to it have no meaning; leave this volume out")
    extreme = max(peak, float(np.abs(r).max())) > _FLOAT32_SAFE or peak < 1 / _FLOAT32_SAFE
    return (t.astype(np.float64), r.astype(np.float64)) if extreme else (t, r)


def _volume(array: ArrayLike, name: str) -> NDArray[Any]:
    volume = np.asarray(array)
    if np.iscomplexobj(volume):
        raise InputError(f"{name}: complex values; take the magnitude first")
    if volume.dtype not in (np.float32, np.float64):
        volume = volume.astype(np.float64)
    if volume.ndim != 3:
        raise InputError(f"{name}: expected a volume (slice, y, x), got shape {volume.shape}")
    if volume.size == 0:
        raise InputError(f"{name}: empty volume of shape {volume.shape}")
    bad = volume.size - int(np.isfinite(volume).sum())
    if bad:
        raise InputError(f"{name}: {bad} values are NaN or infinite; it cannot be scored")
    return volume


def _size(volume: NDArray[Any]) -> str:
    return f"{volume.shape[1]}x{volume.shape[2]}"
