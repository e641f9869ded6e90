"""Whether samples are copies of training images.

Everything is judged by the distance to the nearest training image, of samples and of held-out images of subjects that
training never saw. Distances may be of pixels, of features, or of measurements where the training set holds no images
(`rsdmri.metrics.proximal.measured_distances`); images must be aligned alike, a shifted copy is far in pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.metrics.features import Array

COPY = 0.5  # of the distance that all but 1 % of held-out images keep

_CHUNK = 64


@dataclass(frozen=True)
class CopyTest:
    """Samples against held-out images by their distance to the nearest training image.

    Attributes:
        ratio: median distance of samples over that of held-out images; 1 for fresh samples.
        c_t: the statistic of Meehan et al.: about standard normal for fresh samples, below -3 when samples as a whole
            lie nearer to training images than held-out images do, above 3 when further. Blurred samples are nearer too.
        copied: flags of single samples nearer than `COPY` times the first percentile of held-out images, (n,).
    """

    ratio: float
    c_t: float
    copied: NDArray[np.bool_]

    def __str__(self) -> str:
        """One line."""
        return (
            f"nearest training image: {self.ratio:.2f} times as far as for held-out images, C_T {self.c_t:.1f}; "
            f"{int(self.copied.sum())} of {len(self.copied)} samples look copied"
        )


def nearest_training(x: ArrayLike, training: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    """Euclidean distance from each of ``x`` (n, ...) to its nearest of ``training`` (m, ...), and which that is.

    Pixels or features, real or complex. `InputError` for other shapes, an empty training set, NaN or infinite values.
    """
    a, t = np.asarray(x), np.asarray(training)
    if a.shape[1:] != t.shape[1:] or not len(t):
        raise InputError(f"training: expected (m, ...) like the images of shape {a.shape}, got {t.shape}")
    if not (np.isfinite(a).all() and np.isfinite(t).all()):
        raise InputError("images: NaN or infinite values; leave those images out")
    kind = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(t) else np.float64
    a, t = (v.reshape(len(v), -1).astype(kind) for v in (a, t))
    distance, index = np.full(len(a), np.inf), np.zeros(len(a), np.intp)
    for i, image in enumerate(a):
        for start in range(0, len(t), _CHUNK):
            found = np.linalg.norm(t[start : start + _CHUNK] - image, axis=1)
            best = int(found.argmin())
            if found[best] < distance[i]:
                distance[i], index[i] = found[best], start + best
    return distance, index


def copy_test(samples: ArrayLike, held_out: ArrayLike) -> CopyTest:
    """Test distances of ``samples`` (n,) to their nearest training images against those of ``held_out`` images (m,).

    ``C_T = (U - n m / 2) / sqrt(n m (n + m + 1) / 12)``, U the number of pairs in which the sample is further away,
    ties counted half: the Mann-Whitney test, over the whole space instead of cells. Images count as independent.
    `InputError` for fewer than 20 distances in a set, negative or non-finite ones.

    Source: Meehan, Chaudhuri and Dasgupta 2020, arXiv 2004.05675.
    """
    from scipy.stats import rankdata

    s, h = np.asarray(samples, dtype=np.float64), np.asarray(held_out, dtype=np.float64)
    if s.ndim != 1 or h.ndim != 1 or min(len(s), len(h)) < 20:
        raise InputError(f"distances: expected (n,) with at least 20 in each set, got shapes {s.shape} and {h.shape}")
    if not (np.isfinite(s).all() and np.isfinite(h).all() and min(s.min(), h.min()) >= 0):
        raise InputError("distances: negative, NaN or infinite values; expected distances to nearest training images")
    n, m = len(s), len(h)
    further = rankdata(np.concatenate([s, h]))[:n].sum() - n * (n + 1) / 2
    middle = float(np.median(h))
    if middle == 0:
        raise InputError("held_out: images that are in the training set; take other subjects")
    return CopyTest(
        ratio=float(np.median(s)) / middle,
        c_t=float((further - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)),
        copied=s < COPY * np.quantile(h, 0.01),
    )
