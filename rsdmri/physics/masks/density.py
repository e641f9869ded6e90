"""Sampling densities: the probability of each position in families whose positions are drawn independently."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rsdmri.errors import InputError
from rsdmri.physics.masks.fastmri import uniform_probability

INDEPENDENT_FAMILIES = ("random", "variable-density", "gaussian")


@dataclass(frozen=True)
class Falloff:
    """How densities fall with r = |k| / k_max, relative to the centre: floor + (1 - floor) f(r).

    f(r) is max(1 - r, 0)^``power`` for ``variable-density`` and ``poisson``, exp(-r^2 / 2 ``spread``^2) for
    ``gaussian``. A positive ``floor`` gives every position a chance. ``InputError`` for values outside their range.
    """

    power: float = 2.0
    spread: float = 0.4
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.power < np.inf:
            raise InputError(f"power {self.power:g}: expected 0 (uniform) or more")
        if not 0 < self.spread < np.inf:
            raise InputError(f"spread {self.spread:g}: expected a positive share of k_max, such as 0.4")
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor {self.floor:g}: expected a share from 0 to 1")

    def of(self, family: str, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Density (y, x) of ``family`` relative to the centre's."""
        r = radius(shape)
        if family == "random":
            return np.ones(shape)
        fall = np.exp(-(r**2) / (2 * self.spread**2)) if family == "gaussian" else np.maximum(1 - r, 0) ** self.power
        density: NDArray[np.float64] = self.floor + (1 - self.floor) * fall
        return density


def radius(shape: tuple[int, int]) -> NDArray[np.float64]:
    """|k| / k_max (y, x), each axis in units of its own half width; lines have only the last axis."""
    y, x = (np.abs(np.arange(size) - size // 2) / max(size / 2, 1) for size in shape)
    length: NDArray[np.float64] = np.hypot(y[:, None], x[None, :])
    return length


@lru_cache(maxsize=64)
def independent_density(
    family: str, acceleration: float, acs: bytes, shape: tuple[int, int], falloff: Falloff
) -> NDArray[np.float64]:
    """Independent probabilities (y, x), 1 in ``acs`` (boolean, as bytes), their sum is y x / ``acceleration``."""
    center = np.frombuffer(acs, dtype=np.bool_).reshape(shape)
    if family == "random":
        probability = np.full(shape, uniform_probability(center.size, acceleration, int(center.sum())))
    else:
        probability = _scaled(falloff.of(family, shape), center, center.size / acceleration)
    probability[center] = 1
    probability.setflags(write=False)  # shared by all callers
    return probability


def _scaled(density: NDArray[np.float64], acs: NDArray[np.bool_], expected: float) -> NDArray[np.float64]:
    """min(c density, 1) outside the ACS, with c such that ``expected`` positions are acquired in all."""
    outer = density[~acs]
    if not outer.any() or expected <= acs.sum():
        return np.zeros_like(density)
    if (outer > 0).sum() + acs.sum() < expected:
        raise InputError(
            f"the density is zero at {int((outer == 0).sum())} positions, too many for {expected:.1f} samples;"
            " use a floor above 0 or a higher acceleration"
        )
    low, high = 0.0, float(1 / outer[outer > 0].min())
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.minimum(middle * outer, 1).sum() + acs.sum() >= expected
        low, high = (low, middle) if enough else (middle, high)
    probability: NDArray[np.float64] = np.minimum(high * density, 1)
    return probability
