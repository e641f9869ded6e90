"""Variable-density Poisson discs: random points that keep a distance, which grows as the density falls.

Points arrive in random order and stay where no earlier one is closer than its own spacing (random sequential
adsorption; Cook 1986, ACM Trans Graph 5:51). The spacing of k is ``scale / sqrt(f(k))`` for a relative density f.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rsdmri.errors import InputError
from rsdmri.physics.masks.density import Falloff, radius
from rsdmri.physics.masks.lines import key_stream

TOLERANCE = 0.02  # of the acceleration that was asked for
_CALIBRATION = 0.003  # of the law's scale, so that most draws need no scale of their own
_MOST_THINNED, _FEW = 0.05, 16  # share or number of points: on small grids neighbouring scales differ by over 2 %
_COVERAGE = 0.7  # density times spacing^2 of such points in the plane, roughly


def poisson_disc(
    shape: tuple[int, int], acceleration: float, acs: NDArray[np.bool_], falloff: Falloff, key: tuple[object, ...]
) -> NDArray[np.bool_]:
    """Points (y, x) with ``acs`` acquired and acceleration, ACS included, within 2 % of ``acceleration``.

    The scale of the spacings is that of the law; a draw that misses the acceleration with it finds its own, and loses
    its last few arrivals where none is near enough. Raises ``InputError`` where no scale gives the acceleration, with
    those that are reached.
    """
    order = key_stream(*key).permutation(acs.size)
    scale = _law_scale(shape, acceleration, acs.tobytes(), falloff)
    mask = _mask(order, scale, acs, falloff)
    if _misses(mask, acceleration) <= TOLERANCE:
        return mask
    return _search(order, acceleration, acs, falloff, scale, TOLERANCE / 2)[1]


@lru_cache(maxsize=64)
def poisson_density(shape: tuple[int, int], acceleration: float, acs: bytes, falloff: Falloff) -> NDArray[np.float64]:
    """Frequency (y, x) of each position in repeated draws, averaged over positions that are alike.

    Alike are positions of about the same |k| and distances from the edges and the ACS, where points have fewer
    neighbours.
    """
    block = np.frombuffer(acs, dtype=np.bool_).reshape(shape)
    draws = min(256, max(8, math.ceil(2**21 / block.size)))
    total = np.zeros(shape)
    for index in range(draws):
        total += poisson_disc(shape, acceleration, block, falloff, ("poisson density", index))
    alike = _alike(block)
    frequency = np.bincount(alike.ravel(), total.ravel()) / (draws * np.bincount(alike.ravel()))
    density: NDArray[np.float64] = frequency[alike]
    density[block] = 1
    density.setflags(write=False)  # shared by all callers
    return density


def _alike(acs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number (y, x) of the class of each position."""
    height, width = acs.shape
    edges = [np.minimum(np.minimum(np.arange(n), n - 1 - np.arange(n)), 3) for n in acs.shape]
    first, second = np.meshgrid(*edges, indexing="ij")
    near = np.pad(acs, 1)
    beside = np.any([near[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    step = np.where(np.minimum(first, second) < 3, 0.05, 2 / max(acs.shape))
    ring = np.rint(np.minimum(radius((height, width)), 1) / step)
    kinds = np.stack([acs, beside, np.minimum(first, second), np.maximum(first, second), ring]).reshape(5, -1)
    alike: NDArray[np.int64] = np.unique(kinds, axis=1, return_inverse=True)[1].reshape(acs.shape)
    return alike


@lru_cache(maxsize=64)
def _law_scale(shape: tuple[int, int], acceleration: float, acs: bytes, falloff: Falloff) -> float:
    block = np.frombuffer(acs, dtype=np.bool_).reshape(shape)
    order = key_stream("poisson scale", *shape).permutation(block.size)
    wanted = block.size / acceleration - block.sum()
    squared = 1 / falloff.of("poisson", shape)[~block]
    guess = math.sqrt(_COVERAGE * acceleration)
    for _ in range(20):  # the planar estimate: the sum of coverage / spacing^2, at most 1 each, is what is wanted
        expected = np.minimum(_COVERAGE / (guess**2 * squared), 1).sum()
        guess *= math.sqrt(max(expected, 1e-3) / max(wanted, 1e-3))
    return _search(order, acceleration, block, falloff, guess, _CALIBRATION)[0]


def _search(
    order: NDArray[np.int64],
    acceleration: float,
    acs: NDArray[np.bool_],
    falloff: Falloff,
    scale: float,
    tolerance: float,
) -> tuple[float, NDArray[np.bool_]]:
    """Scale and mask by bisection from ``scale``, until ``tolerance`` or as near as 2 %; ``InputError`` beyond."""
    low, high, widen = 0.0, math.inf, 1.1
    below, above, densest = 1.0, math.inf, scale
    best, found = scale, _mask(order, scale, acs, falloff)
    mask = found
    for _ in range(60):
        if _misses(mask, acceleration) < _misses(found, acceleration):
            best, found = scale, mask
        if _misses(found, acceleration) <= tolerance or high - low < 1e-5 * low:
            break
        reached = mask.size / max(int(mask.sum()), 1)
        if reached < acceleration:
            low, below, densest = scale, max(below, reached), densest if reached < below else scale
        else:
            high, above = scale, min(above, reached)
        if low == 0 or math.isinf(high):
            scale, widen = (scale / widen if low == 0 else scale * widen), min(widen**2, 4.0)
        else:
            scale = math.sqrt(low * high)
        mask = _mask(order, scale, acs, falloff)
    if _misses(found, acceleration) > TOLERANCE:
        dense, wanted = _mask(order, densest, acs, falloff), acs.size / acceleration
        if wanted < dense.sum() <= max((1 + _MOST_THINNED) * wanted, wanted + _FEW):
            best, found = densest, _thinned(order, dense, acs, round(wanted))
    if _misses(found, acceleration) > TOLERANCE:
        raise InputError(
            f"acceleration {acceleration:g}: Poisson discs on {acs.shape[0]} x {acs.shape[1]} points reach {below:.2f}"
            f" and {above:.2f}, nothing between; ask for one of these, or for a density that falls off (power above 0,"
            " floor below 1), whose spacings are not all alike"
        )
    return best, found


def _thinned(
    order: NDArray[np.int64], mask: NDArray[np.bool_], acs: NDArray[np.bool_], points: int
) -> NDArray[np.bool_]:
    """``mask`` without its last arrivals, so that ``points`` remain."""
    arrivals = order[(mask & ~acs).ravel()[order]]
    flat = mask.ravel().copy()
    flat[arrivals[points - int(mask.sum()) :]] = False
    return flat.reshape(mask.shape)


def _misses(mask: NDArray[np.bool_], acceleration: float) -> float:
    """Relative error of the achieved acceleration, 0 where no other number of points comes closer."""
    count, wanted = int(mask.sum()), mask.size / acceleration
    return 0.0 if abs(count - wanted) <= 0.5 else abs(mask.size / (max(count, 1) * acceleration) - 1)


def _mask(order: NDArray[np.int64], scale: float, acs: NDArray[np.bool_], falloff: Falloff) -> NDArray[np.bool_]:
    density = falloff.of("poisson", (acs.shape[0], acs.shape[1]))
    spacing = scale / np.sqrt(np.maximum(density, 1e-12))
    return acs | sweep(order, np.minimum(spacing, max(acs.shape)), acs)


def sweep(order: NDArray[np.int64], spacing: NDArray[np.float64], acs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Points (y, x) outside ``acs`` that stay when positions arrive in ``order`` (flat indices).

    Each keeps those at a distance below its ``spacing`` (y, x) away; the ACS keeps nobody away.
    """
    height, width = spacing.shape
    limits = np.ceil(spacing**2).astype(np.int64) - 1  # squared distances up to here are too close
    margin = math.isqrt(max(int(limits.max()), 0))
    stride = width + 2 * margin
    taken = bytearray((height + 2 * margin) * stride)
    board = np.frombuffer(taken, dtype=np.uint8)
    inner = board.reshape(-1, stride)[margin : margin + height, margin : margin + width]
    inner[acs] = 1
    places = (order // width + margin) * stride + order % width + margin
    kept = []
    for place, flat, limit in zip(places.tolist(), order.tolist(), limits.ravel()[order].tolist(), strict=True):
        if not taken[place]:
            kept.append(flat)
            if limit > 0:
                board[place + _disc(limit, stride)] = 1
    mask = np.zeros(height * width, dtype=np.bool_)
    mask[kept] = True
    return mask.reshape(height, width)


@lru_cache(maxsize=4096)
def _disc(limit: int, stride: int) -> NDArray[np.int64]:
    """Offsets, in an array with rows of ``stride``, of all positions at a squared distance of at most ``limit``."""
    reach = math.isqrt(limit)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = y**2 + x**2 <= limit
    offsets: NDArray[np.int64] = (y * stride + x)[near]
    return offsets
