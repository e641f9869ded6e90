"""Haar wavelet-based perceptual similarity of magnitude volumes, which follows the judgement of radiologists well."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.metrics.image import checked

Array = NDArray[np.float64]

HAARPSI_CONVENTION = (
    "mean over slices, maximum of the cropped target volume as 255, 2x2 means first, C 30, alpha 4.2, zeros outside"
)

_C, _ALPHA, _PEAK = 30.0, 4.2, 255.0
LEAST_SIDE = 16  # after halving, the 8x8 filter that weighs the others fits once


def haarpsi(target: ArrayLike, reconstruction: ArrayLike, *, data_range: float | None = None) -> float:
    """HaarPSI of two magnitude volumes (slice, y, x), the mean over slices: 1 where equal, towards 0 where unlike.

    With Haar responses ``g_k,j`` of both images (direction k, scale 2^j) after a mean and decimation of 2x2,

        HaarPSI = l^-1( sum_k,x l(mean_j=1,2 S(|g_k,j|, |g'_k,j|)) w_k / sum_k,x w_k )^2,
        S(a, b) = (2 a b + C) / (a^2 + b^2 + C),  w_k = max(|g_k,3|, |g'_k,3|),  l(v) = 1 / (1 + exp(-alpha v)),

    C = 30, alpha = 4.2, for ``data_range`` (default: the maximum of the target volume) scaled to 255. Slices without
    any response count as 1. `InputError` for slices smaller than 16x16 and as of the other metrics.

    Source: Reisenhofer, Bosse, Kutyniok, Wiegand 2018, Signal Processing: Image Communication 61, 33-43.
    """
    t, r, peak = checked(target, reconstruction, data_range)
    if min(t.shape[1:]) < LEAST_SIDE:
        raise InputError(f"target: slices of {t.shape[1]}x{t.shape[2]}, HaarPSI needs {LEAST_SIDE}x{LEAST_SIDE}")
    scale = _PEAK / float(peak)
    return float(
        np.mean([_of_slice(scale * a, scale * b) for a, b in zip(t.astype(float), r.astype(float), strict=True)])
    )


def _of_slice(first: Array, second: Array) -> float:
    a, b = _halved(first), _halved(second)
    weighted = total = 0.0
    for axis in (0, 1):
        responses = [(np.abs(_haar(a, j, axis)), np.abs(_haar(b, j, axis))) for j in (1, 2, 3)]
        similarity = np.mean([(2 * u * v + _C) / (u * u + v * v + _C) for u, v in responses[:2]], axis=0)
        weight = np.maximum(*responses[2])
        weighted += float((weight / (1 + np.exp(-_ALPHA * similarity))).sum())
        total += float(weight.sum())
    if total == 0:
        return 1.0
    mean = weighted / total
    return (math.log(mean / (1 - mean)) / _ALPHA) ** 2


def _halved(image: Array) -> Array:
    """Every second pixel of the 2x2 mean."""
    return (_sums(_sums(image, 2, 0), 2, 1) / 4)[::2, ::2]


def _haar(image: Array, scale: int, axis: int) -> Array:
    """Response to the filter of 2^scale x 2^scale pixels, 2^-scale on one half along ``axis`` and minus that beyond."""
    size = 2**scale
    across = _sums(image, size, 1 - axis)
    return (_sums(across, size, axis) - 2 * _sums(across, size, axis, size // 2)) / size


def _sums(image: Array, size: int, axis: int, count: int | None = None) -> Array:
    """Sums over the first ``count`` of the ``size`` pixels from i - size // 2 on, zeros outside."""
    ends = [(size // 2 + 1, (size - 1) // 2) if k == axis else (0, 0) for k in (0, 1)]
    total = np.moveaxis(np.cumsum(np.pad(image, ends), axis=axis), axis, 0)
    length, count = image.shape[axis], count or size
    return np.moveaxis(total[count : count + length] - total[:length], 0, axis)
