"""Distances between sets of images by their features, and intervals for them.

A distance means nothing without what it was measured with: print `describe_features` with every number. Distances of
finite sets are not zero for equal distributions; the floor to compare with is the distance between two halves of the
clean images, each as large as the sets compared.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.metrics.features import Array
from rsdmri.metrics.magnitude_features import image_features

__all__ = [
    "bootstrap",
    "distance_floor",
    "feature_sets",
    "frechet_distance",
    "half_samples",
    "image_features",
    "kernel_distance",
]


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Frechet distance ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` between Gaussian fits, features (n, d).

    With ``S = R^T R`` from a QR factorisation of the centred features, ``tr (S_a S_b)^(1/2)`` is the sum of singular
    values of ``R_a R_b^T``: real, without squaring a condition number, and fine when n < d. Covariances divide by
    n - 1. Finite sets are biased upwards, about as 1/n: two sets of n clean simulated slices, `image_features`, are
    13 to 19 apart for n = 64, 4 for n = 256 and 2 for n = 512, where R = 4 zero-filled images are 330 to 420 away.
    So compare sets of equal sizes, with that floor beside them.

    Source: Dowson and Landau 1982; Heusel et al. 2017.
    """
    a, b = feature_sets(features_a, features_b)
    mean = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    cross = float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
    return max(mean + float((root_a**2).sum()) + float((root_b**2).sum()) - 2 * cross, 0.0)


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``, features (n, d).

    The unbiased estimate: its mean is 0 for equal distributions at any n, so it can be slightly negative.

    Source: Gretton et al. 2012, lemma 6; Binkowski et al. 2018.
    """
    a, b = feature_sets(features_a, features_b)

    def kernel(x: Array, y: Array) -> Array:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    def between_different(x: Array) -> float:
        gram = kernel(x, x)
        return float((gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1)))

    return between_different(a) + between_different(b) - 2 * float(kernel(a, b).mean())


def bootstrap(
    distance: Callable[[Array, Array], float],
    features_a: ArrayLike,
    features_b: ArrayLike,
    *,
    generator: np.random.Generator,
    repeats: int = 100,
) -> tuple[float, float]:
    """95 % interval ``estimate -+ 1.96 s``, s the standard deviation of ``distance`` over random `half_samples`.

    Only the width is taken from them: their mean shows the sample-size bias of the Frechet distance twice. Images count
    as independent; slices of one subject are not, so with many slices a subject the interval is too narrow.
    """
    a, b = feature_sets(features_a, features_b)
    halves = half_samples(len(a), len(b), generator=generator, repeats=repeats)
    half = 1.96 * float(np.std([distance(a[i], b[j]) for i, j in halves], ddof=1))
    estimate = distance(a, b)
    return estimate - half, estimate + half


def half_samples(
    count_a: int, count_b: int, *, generator: np.random.Generator, repeats: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Indices of a random half of each of two sets, ``repeats`` times.

    Drawn without replacement, so the spread of a mean over half sets is that of the mean of the whole, and no image is
    its own neighbour. Against fresh sets of 100 to 150 images with 5 to 64 features, the spread of Frechet and kernel
    distance, precision, recall, density and coverage came out 0.9 to 1.6 times as large; drawing n of n with
    replacement gave 1.0 to 2.8 times. `InputError` for fewer than four images.

    Source: Shao and Wu 1989 (the delete-d jackknife, d = n / 2).
    """
    if min(count_a, count_b) < 4:
        raise InputError(f"features: sets of {count_a} and {count_b} images; an interval needs at least four in each")
    for _ in range(repeats):
        yield tuple(generator.permutation(n)[: n // 2] for n in (count_a, count_b))  # type: ignore[misc]


def distance_floor(distance: Callable[[Array, Array], float], reference: ArrayLike) -> float:
    """``distance`` between the first and the second half of ``reference`` (n, d): what equal distributions show.

    Order the images by subject, so that each half has its own. A comparison with more images in each set than n / 2
    has a smaller bias than this.
    """
    r = np.asarray(reference, dtype=np.float64)
    return distance(r[: len(r) // 2], r[len(r) // 2 :])


def feature_sets(features_a: ArrayLike, features_b: ArrayLike) -> tuple[Array, Array]:
    """Both sets (n, d) as float64; `InputError` unless d is one, both hold two images and all values are finite."""
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"features: expected (n, d) with one d for both sets, got shapes {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise InputError(f"features: sets of {len(a)} and {len(b)} images; a distance needs at least two in each")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("features: NaN or infinite values; leave those images out")
    return a, b


def _covariance_root(x: Array) -> Array:
    root: Any = np.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1), mode="r")
    return np.asarray(root)
