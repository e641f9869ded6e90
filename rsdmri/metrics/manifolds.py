"""Precision and recall of samples, density and coverage: what is wrong with a set that is at a distance from another.

Each set stands for the union of balls around its images, whose radius is the distance to the k-th nearest other image
of the same set. Precision falls with images that no reference image resembles (blur, noise, artefacts), recall with
reference images that no sample resembles (lost variety). All depend on k and on both counts: compare sets of equal
sizes, with the values of two halves of the reference beside them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.metrics.distribution import feature_sets, half_samples
from rsdmri.metrics.features import Array

NEIGHBOURS = 3  # of precision and recall, as published
DENSITY_NEIGHBOURS = 5  # of density and coverage, as published

_LEAST = 2 * (DENSITY_NEIGHBOURS + 1)  # images of which a half has the neighbours


class Manifolds(NamedTuple):
    """The four measures of `manifolds`."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class _Distances:
    """Euclidean distances between samples s and reference images r; r_sample (n,) etc. are radii of balls."""

    samples: Array
    reference: Array
    between: Array

    def __getitem__(self, picked: tuple[NDArray[np.intp], NDArray[np.intp]]) -> "_Distances":
        s, r = picked
        return _Distances(self.samples[np.ix_(s, s)], self.reference[np.ix_(r, r)], self.between[np.ix_(s, r)])


def manifolds(samples: ArrayLike, reference: ArrayLike) -> Manifolds:
    """Measures of ``samples`` s against ``reference`` r, features (n, d) and (m, d); B_k are the balls of k neighbours.

    - precision: share of s inside any B_3(r); recall: share of r inside any B_3(s).
    - density: mean over s of the number of B_5(r) around it, divided by 5: about 1 for equal distributions, may exceed
      1, and is not raised by single outliers of the reference.
    - coverage: share of B_5(r) with a sample inside.

    `InputError` as `feature_sets`, and for fewer than 12 images in a set. Memory: 8 (n + m)^2 bytes.

    Source: Kynkaanniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797.
    """
    return _measures(_distances(samples, reference))


def manifold_intervals(
    samples: ArrayLike, reference: ArrayLike, *, generator: np.random.Generator, repeats: int = 100
) -> tuple[Manifolds, Manifolds]:
    """Lower and upper ends of 95 % intervals of `manifolds`, from `half_samples` as those of `bootstrap`."""
    distances = _distances(samples, reference)
    counts = distances.between.shape
    draws = [_measures(distances[half]) for half in half_samples(*counts, generator=generator, repeats=repeats)]
    estimate, half = np.array(_measures(distances)), 1.96 * np.std(draws, axis=0, ddof=1)
    most = np.array(Manifolds(1.0, 1.0, np.inf, 1.0))
    return Manifolds(*np.maximum(estimate - half, 0).tolist()), Manifolds(*np.minimum(estimate + half, most).tolist())


def _measures(distances: _Distances) -> Manifolds:
    near = _radii(distances.reference, NEIGHBOURS), _radii(distances.samples, NEIGHBOURS)
    wide = _radii(distances.reference, DENSITY_NEIGHBOURS)
    inside = distances.between <= wide
    return Manifolds(
        precision=float((distances.between <= near[0]).any(1).mean()),
        recall=float((distances.between <= near[1][:, None]).any(0).mean()),
        density=float(inside.sum(1).mean() / DENSITY_NEIGHBOURS),
        coverage=float(inside.any(0).mean()),
    )


def _distances(samples: ArrayLike, reference: ArrayLike) -> _Distances:
    from scipy.spatial.distance import cdist

    s, r = feature_sets(samples, reference)
    if min(len(s), len(r)) < _LEAST:
        raise InputError(f"features: sets of {len(s)} and {len(r)} images; precision and recall need {_LEAST} in each")
    return _Distances(cdist(s, s), cdist(r, r), cdist(s, r))


def _radii(within: Array, neighbours: int) -> Array:
    """Distance of each image to its nearest ``neighbours``-th other one."""
    radii: Array = np.partition(within, neighbours, axis=1)[:, neighbours]  # itself is the nearest
    return radii
