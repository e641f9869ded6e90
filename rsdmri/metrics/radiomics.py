"""Radiomic features of whole images, for the Frechet radiomics distance (FRD).

Definitions are those of the Image Biomarker Standardisation Initiative (IBSI, Zwanenburg et al. 2020, arXiv
1612.07003), written from the formulas: 14 first-order statistics and the texture features of five matrices that FRD
uses (GLCM 22, GLRLM 16, GLSZM 16, NGTDM 5), of 2-D images without a region of interest.

Differences from the published FRD (Konz et al. 2024, arXiv 2412.01496), whose features pyradiomics computes:

- the image itself only; FRD adds Laplacian-of-Gaussian and wavelet images, about 460 features in all;
- magnitudes stay in the package's units and fall into 64 bins of 0.025, the last one open; FRD standardises each image
  and takes bins of 0.05 standard deviations, so that it sees no brightness;
- no resampling to 2 mm; one matrix over the four directions, where pyradiomics averages features over directions;
- total energy, energy, minimum and range are left out: they grow with the matrix size, or are rounding in empty air;
- FRD is the logarithm of the Frechet distance; here it is the distance itself, as for other features.

Shared with it: distances are measured in units of the reference's spread (`rsdmri.metrics.features.standardised`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.metrics.features import Array, checked_magnitudes

LEVELS, BIN = 64, 0.025

Image = NDArray[np.int64]


class RadiomicsFeatures:
    """`radiomics` as a set of features to choose."""

    name = "radiomics-v1"
    dimensions = 73
    preprocessing = (
        f"14 first-order, 22 GLCM, 16 GLRLM, 16 GLSZM, 5 NGTDM; whole images, {LEVELS} bins of {BIN:g} in the package's"
        " units, not rescaled, no filters; no network"
    )
    standardise = True

    def __call__(self, magnitudes: ArrayLike) -> Array:
        """Features of magnitudes (n, y, x): (n, 73)."""
        return radiomics(magnitudes)


def radiomics(images: ArrayLike) -> Array:
    """Return 73 radiomic features of each magnitude image (n, y, x), sides of at least 8: (n, 73).

    Order: `first_order`, `co_occurrence`, `run_lengths`, `size_zones`, `tone_differences`. `InputError` for other
    shapes, complex or non-finite values.
    """
    x = checked_magnitudes(images, smallest=8)
    return np.array([_features(image.astype(np.float64)) for image in x]).reshape(len(x), RadiomicsFeatures.dimensions)


def _features(image: Array) -> Array:
    grey = discretised(image)
    parts = (first_order(image, grey), co_occurrence(grey), run_lengths(grey), size_zones(grey), tone_differences(grey))
    return np.concatenate(parts)


def discretised(image: Array) -> Image:
    """Grey levels 1 to `LEVELS` of magnitudes: bins of `BIN` from 0, the last one open."""
    return np.clip(np.floor(image / BIN), 0, LEVELS - 1).astype(np.int64) + 1


def first_order(image: Array, grey: Image) -> Array:
    """14 statistics of magnitudes (y, x) and of their grey levels.

    Mean, variance, skewness, kurtosis, median, 10th and 90th percentile, maximum, interquartile range, mean and robust
    mean absolute deviation, root mean square; entropy (bits) and uniformity of the grey levels.
    """
    mean, variance = image.mean(), image.var()
    centred = image - mean
    third, fourth = ((centred**k).mean() for k in (3, 4))
    p10, p25, median, p75, p90 = np.percentile(image, (10, 25, 50, 75, 90))
    robust = image[(image >= p10) & (image <= p90)]
    p = np.bincount(grey.ravel()) / grey.size
    return np.array(
        [
            *(mean, variance, _ratio(third, variance**1.5), _ratio(fourth, variance**2), median, p10, p90, image.max()),
            *(p75 - p25, np.abs(centred).mean(), np.abs(robust - robust.mean()).mean()),
            *(np.sqrt((image**2).mean()), _entropy(p), (p**2).sum()),
        ]
    )


def co_occurrence(grey: Image) -> Array:
    """22 features of the symmetric co-occurrence matrix (GLCM) of next neighbours in four directions, merged.

    Autocorrelation, joint average, cluster prominence, shade and tendency, contrast, correlation, difference average,
    entropy and variance, joint energy and entropy, informational measures of correlation 1 and 2, inverse difference
    moment, the same normalised, inverse difference, the same normalised, inverse variance, maximum probability, sum
    entropy, sum of squares.
    """
    from skimage.feature import graycomatrix

    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    counts = graycomatrix(grey - 1, [1], angles, levels=LEVELS, symmetric=True).sum((2, 3))  # type: ignore[no-untyped-call, unused-ignore]
    p = counts / counts.sum()
    level = np.arange(1, LEVELS + 1.0)
    i, j = level[:, None], level
    marginal = p.sum(1)
    mean = (level * marginal).sum()
    variance = ((level - mean) ** 2 * marginal).sum()
    apart = np.abs(i - j).astype(int)
    k = np.arange(LEVELS)
    difference = np.bincount(apart.ravel(), p.ravel())
    total = np.bincount((i + j).astype(int).ravel(), p.ravel())
    average = (k * difference).sum()
    cluster = [((i + j - 2 * mean) ** power * p).sum() for power in (4, 3, 2)]
    joint, single = _entropy(p), _entropy(marginal)
    return np.array(
        [
            *((i * j * p).sum(), mean, *cluster, (k**2 * difference).sum()),
            (((i * j * p).sum() - mean**2) / variance) if variance > 0 else 1.0,
            *(average, _entropy(difference), ((k - average) ** 2 * difference).sum(), (p**2).sum(), joint),
            _ratio(joint - 2 * single, single),
            np.sqrt(max(1 - np.exp(-2 * np.log(2) * (2 * single - joint)), 0.0)),
            *((difference / (1 + k**2)).sum(), (difference / (1 + k**2 / LEVELS**2)).sum()),
            *((difference / (1 + k)).sum(), (difference / (1 + k / LEVELS)).sum()),
            *((difference[1:] / k[1:] ** 2).sum(), p.max(), _entropy(total), variance),
        ]
    )


def run_lengths(grey: Image) -> Array:
    """16 features (see `_group_features`) of the runs of equal level (GLRLM) along four directions, merged."""
    levels, lengths = (np.concatenate(parts) for parts in zip(*map(_runs, _directions(grey)), strict=True))
    return _group_features(levels, lengths, 4 * grey.size)


def size_zones(grey: Image) -> Array:
    """16 features (see `_group_features`) of the zones of equal level (GLSZM), joined over eight neighbours."""
    from skimage.measure import label

    zones = label(grey, background=0, connectivity=2) - 1  # type: ignore[no-untyped-call, unused-ignore]
    sizes = np.bincount(zones.ravel())
    levels = np.empty(len(sizes), np.int64)
    levels[zones.ravel()] = grey.ravel()
    return _group_features(levels, sizes, grey.size)


def tone_differences(grey: Image) -> Array:
    """Coarseness, contrast, busyness, complexity and strength: differences from the mean of neighbours (NGTDM).

    Coarseness and strength of an image of one level are 0 here, where the definitions divide by zero.
    """
    ones = _neighbour_sum(np.ones(grey.shape))
    apart = np.abs(grey - _neighbour_sum(grey.astype(np.float64)) / ones)
    counts = np.bincount(grey.ravel(), minlength=LEVELS + 1)
    s = np.bincount(grey.ravel(), apart.ravel(), minlength=LEVELS + 1)
    i = np.flatnonzero(counts).astype(np.float64)
    s, p = s[counts > 0], counts[counts > 0] / grey.size
    pi, pj, ii, ij = p[:, None], p[None], i[:, None], i[None]
    levels, square = len(i), (ii - ij) ** 2
    spread = (pi * pj * square).sum() / max(levels * (levels - 1), 1)
    weighted = (p * s)[:, None] + (p * s)[None]
    return np.array(
        [
            _ratio(1, (p * s).sum()),
            spread * s.sum() / grey.size,
            _ratio((p * s).sum(), np.abs(ii * pi - ij * pj).sum()),
            (np.abs(ii - ij) * weighted / (pi + pj)).sum() / grey.size,
            _ratio(((pi + pj) * square).sum(), s.sum()),
        ]
    )


def _group_features(levels: Image, sizes: Image, pixels: int) -> Array:
    """Features of groups of pixels, runs or zones, of one grey level i and size j each.

    Emphasis of small and of large ones, non-uniformity of levels, normalised, of sizes, normalised, groups per pixel,
    variance of levels and of sizes, entropy, emphasis of low and of high levels, of small low, small high, large low
    and large high ones. ``pixels``: of all images that were searched.
    """
    i, j, n = levels.astype(np.float64), sizes.astype(np.float64), len(levels)
    of_level, of_size = np.bincount(levels), np.bincount(sizes)
    both = np.unique(levels * (sizes.max() + 1) + sizes, return_counts=True)[1]
    return np.array(
        [
            *((1 / j**2).mean(), (j**2).mean()),
            *((of_level**2).sum() / n, (of_level**2).sum() / n**2, (of_size**2).sum() / n, (of_size**2).sum() / n**2),
            *(n / pixels, i.var(), j.var(), _entropy(both / n), (1 / i**2).mean(), (i**2).mean()),
            *((1 / (i * j) ** 2).mean(), ((i / j) ** 2).mean(), ((j / i) ** 2).mean(), ((i * j) ** 2).mean()),
        ]
    )


def _directions(grey: Image) -> Iterator[Image]:
    """Rows, columns and both kinds of diagonals of an image, each as rows; 0 where there is no pixel."""
    yield grey
    yield grey.T
    height, width = grey.shape
    for image in (grey, grey[::-1]):
        sheared = np.zeros((height, height + width), np.int64)
        sheared[np.arange(height)[:, None], np.arange(height)[:, None] + np.arange(width)] = image
        yield sheared.T


def _runs(rows: Image) -> tuple[Image, Image]:
    """Levels and lengths of the runs along ``rows``, 0 being no pixel."""
    line = np.pad(rows, ((0, 0), (0, 1))).ravel()  # a run ends with its row
    starts = np.flatnonzero(np.diff(line, prepend=0))
    lengths = np.diff(starts, append=len(line))
    levels = line[starts]
    return levels[levels > 0], lengths[levels > 0]


def _neighbour_sum(x: Array) -> Array:
    """Sum over the up to eight neighbours of each pixel."""
    padded = np.pad(x, 1)
    height, width = x.shape
    shifts = ((dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1))
    return np.sum([padded[dy : dy + height, dx : dx + width] for dy, dx in shifts], axis=0)


def _entropy(p: NDArray[Any]) -> float:
    present = p[p > 0]
    return float(-(present * np.log2(present)).sum())


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
