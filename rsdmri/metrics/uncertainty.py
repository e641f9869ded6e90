"""How far uncertainty can be trusted: coverage, width, calibration curve, rank correlation with the error, CRPS.

All take real magnitudes in the same units and a boolean ``mask`` of the pixels that count, by default all. In a
background of zeros every interval covers, so that whole images flatter: give `object_mask` of the reference.
Values that are not finite are refused with ``InputError``, as is a mask without pixels.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError

Array = NDArray[np.float64]

_OBJECT_SHARE = 0.1


def object_mask(reference: ArrayLike, share: float = _OBJECT_SHARE, floor: float = 0.0) -> NDArray[np.bool_]:
    """Pixels of the object: above ``share`` of the 99th percentile of ``reference``, real magnitudes of any shape.

    ``floor``: what the noise of the reference alone hardly exceeds, in its units; pixels below are background, too.

    Raises ``InputError`` for a reference of zeros.
    """
    values = _finite(reference, "reference")
    top = float(np.percentile(values, 99))
    if top <= 0:
        raise InputError("reference: nothing but zeros, it shows no object; choose other slices")
    return np.asarray(values > max(share * top, floor))


def coverage(target: ArrayLike, low: ArrayLike, high: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Share of the pixels of ``mask`` with ``low <= target <= high``."""
    t, lower, upper = _pixels(mask, target=target, low=low, high=high)
    return float(np.mean((lower <= t) & (t <= upper)))


def interval_width(low: ArrayLike, high: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean of ``high - low`` over the pixels of ``mask``: of two intervals with the same coverage the narrower."""
    lower, upper = _pixels(mask, low=low, high=high)
    return float(np.mean(upper - lower))


def rank_correlation(std: ArrayLike, error: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Spearman's rank correlation of ``std`` with ``|error|``, ties sharing their mean rank: 1 where std orders errors.

    NaN where one of them is constant: there is no order to compare.
    """
    from scipy.stats import rankdata

    spread, size = _pixels(mask, std=std, error=np.abs(np.asarray(error)))
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (spread, size)]
    lengths = [float(np.linalg.norm(r)) for r in ranks]
    return float(ranks[0] @ ranks[1] / (lengths[0] * lengths[1])) if all(lengths) else float("nan")


def calibration_curve(target: ArrayLike, draws: ArrayLike, mask: ArrayLike | None = None) -> tuple[Array, Array]:
    """Nominal and empirical coverage of the central intervals between order statistics of ``draws`` (draw, ...).

    Between the k-th smallest and the k-th largest of N draws lies a further draw of the same law with probability
    (N + 1 - 2k) / (N + 1), whatever the law: those are the nominal levels, ascending, for k = N // 2 .. 1. Below the
    diagonal: too sure.
    """
    samples, t = _drawn(target, draws, mask)
    count = len(samples)
    ordered = np.sort(samples, axis=0)
    levels = range(count // 2, 0, -1)
    nominal = np.array([(count + 1 - 2 * k) / (count + 1) for k in levels])
    found = [np.mean((ordered[k - 1] <= t) & (t <= ordered[count - k])) for k in levels]
    return nominal, np.asarray(found, np.float64)


def crps(target: ArrayLike, draws: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Continuous ranked probability score, mean over pixels, in the units of the images; lower is better.

    E|d - t| - E|d - d'| / 2 over ``draws`` d (draw, ...), estimated without bias from any number of them ("fair":
    the second mean is over pairs of different draws). For one draw it is the mean absolute error.

    Source: Gneiting & Raftery 2007, JASA 102:359; Ferro 2014, QJRMS 140:1917.
    """
    samples, t = _drawn(target, draws, mask)
    count = len(samples)
    away = np.abs(samples - t).mean()
    if count == 1:
        return float(away)
    weights = 2 * np.arange(1, count + 1) - count - 1  # sum over pairs of |d_i - d_j| from the sorted draws
    pairs = (weights[:, None] * np.sort(samples, axis=0)).sum(0) / (count * (count - 1))
    return float(away - pairs.mean())


def difference_in_std(first: ArrayLike, second: ArrayLike, std: ArrayLike, floor: float = 0.0) -> Array:
    """``|first - second| / std``: how many predicted standard deviations apart two images are, pixel by pixel.

    ``std`` counts as at least ``floor``, the size below which differences do not matter. Where it is 0, equal pixels
    give 0 and others infinity.
    """
    a, b, spread = (_finite(x, n) for x, n in ((first, "first"), (second, "second"), (std, "std")))
    if not a.shape == b.shape == spread.shape:
        raise InputError(f"first, second, std: one shape expected, got {a.shape}, {b.shape} and {spread.shape}")
    away, spread = np.abs(a - b), np.maximum(spread, floor)
    result = np.where(away > 0, np.inf, 0.0)
    np.divide(away, spread, out=result, where=spread > 0)
    return result


def _drawn(target: ArrayLike, draws: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array]:
    """Draws (draw, pixel) and target (pixel,) of the pixels that count."""
    samples, t = _finite(draws, "draws"), _finite(target, "target")
    if samples.ndim != t.ndim + 1 or samples.shape[1:] != t.shape or len(samples) == 0:
        raise InputError(f"draws: expected (draw, ...) of the target's {t.shape}, got {samples.shape}")
    keep = _kept(mask, t.shape)
    return samples[:, keep], t[keep]


def _pixels(mask: ArrayLike | None, **arrays: ArrayLike) -> list[Array]:
    """The pixels of each array that count."""
    values = {name: _finite(array, name) for name, array in arrays.items()}
    shapes = {array.shape for array in values.values()}
    if len(shapes) != 1:
        raise InputError(f"{', '.join(values)}: one shape expected, got {sorted(shapes)}")
    keep = _kept(mask, shapes.pop())
    return [array[keep] for array in values.values()]


def _kept(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    keep = np.ones(shape, bool) if mask is None else np.asarray(mask)
    if keep.dtype != bool or keep.shape != shape:
        raise InputError(f"mask: expected bool {shape}, got {keep.dtype} {keep.shape}")
    if not keep.any():
        raise InputError("mask: holds no pixel, there is nothing to measure; give one that shows the object")
    return keep


def _finite(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values)
    if np.iscomplexobj(array):
        raise InputError(f"{name}: expected real magnitudes, got {array.dtype}; take the absolute value")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{name}: holds NaN or infinite values; leave the slices out")
    return array
