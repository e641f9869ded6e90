"""Every distance between two sets of images, each with its interval and what it was measured with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rsdmri.metrics.distribution import bootstrap, distance_floor, frechet_distance, kernel_distance
from rsdmri.metrics.features import Features, describe_features, standardised
from rsdmri.metrics.manifolds import manifold_intervals, manifolds


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """``value [low, high]``."""
        value, low, high = (f"{v:.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Comparison:
    """Samples against a reference.

    Attributes:
        frechet: see `frechet_distance`.
        kernel: see `kernel_distance`.
        precision: this and the next three: see `manifolds`.
        floor: Frechet distance between the halves of the reference, in the order given.
        features: line that belongs to every number: features, preprocessing, counts, hash of the reference.
    """

    frechet: Estimate
    kernel: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    floor: float
    features: str

    def row(self) -> dict[str, Any]:
        """Numbers for JSON: ``frechet``, ``frechet low``, ``frechet high``, ..., ``floor``, ``features``."""
        found: dict[str, Any] = {}
        for name, estimate in vars(self).items():
            if isinstance(estimate, Estimate):
                found |= {name: estimate.value, f"{name} low": estimate.low, f"{name} high": estimate.high}
        return {**found, "floor": self.floor, "features": self.features}

    def __str__(self) -> str:
        """One line of all measures."""
        return (
            f"Frechet distance {self.frechet} (floor {self.floor:.3g}), kernel distance {self.kernel}, precision "
            f"{self.precision}, recall {self.recall}, density {self.density}, coverage {self.coverage}; {self.features}"
        )


def compare_features(
    kind: Features, samples: ArrayLike, reference: ArrayLike, *, generator: np.random.Generator, repeats: int = 50
) -> Comparison:
    """All measures of ``samples`` against ``reference``, features (n, d) that ``kind`` made, each with its interval.

    The reference is ordered by subject. `InputError` as `frechet_distance`, and for fewer than 12 images in a set.
    """
    description = describe_features(kind, samples, reference)
    s, r = standardised(samples, reference) if kind.standardise else (np.asarray(samples), np.asarray(reference))
    measures = manifolds(s, r)
    low, high = manifold_intervals(s, r, generator=generator, repeats=repeats)
    whole = {
        name: Estimate(distance(s, r), *bootstrap(distance, s, r, generator=generator, repeats=repeats))
        for name, distance in (("frechet", frechet_distance), ("kernel", kernel_distance))
    }
    parts = {name: Estimate(*ends) for name, *ends in zip(measures._fields, measures, low, high, strict=True)}
    return Comparison(**whole, **parts, floor=distance_floor(frechet_distance, r), features=description)
