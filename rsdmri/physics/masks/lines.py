"""Families of line masks: fastMRI's five, variable density, Gaussian; drawn by key, with exact inclusion."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.masks.content import center
from rsdmri.physics.masks.density import Falloff, independent_density
from rsdmri.physics.masks.fastmri import (
    FASTMRI_FAMILIES,
    GRID_FAMILIES,
    Grid,
    acs_count,
    check_acceleration,
    draw_fastmri,
)
from rsdmri.runtime import seed_of

FAMILIES = ("random", "equispaced_fraction", "variable-density", "gaussian", "equispaced", "magic", "magic_fraction")


def draw_mask(
    family: str,
    width: int,
    *,
    acceleration: float,
    center_fraction: float,
    key: tuple[object, ...],
    falloff: Falloff | None = None,
) -> Tensor:
    """A mask (x,) of ``family`` (see ``FAMILIES``), always the same for the same ``key``, e.g. (file, slice, seed).

    ``acceleration`` is width over the expected number of lines, ``center_fraction`` the ACS lines over ``width``; in
    ``equispaced`` and ``magic`` it is the spacing, the ACS comes on top, and ``magic_fraction`` rounds its spacing.
    Acceleration 1 gives a full mask. Raises ``InputError`` as :func:`check_acceleration` and :func:`fastmri_mask` do.
    """
    check_family(family)
    acs_count(width, acceleration, center_fraction)
    if acceleration == 1:
        return torch.ones(width, dtype=torch.bool)
    rng = key_stream(*key)
    if family in FASTMRI_FAMILIES:
        return torch.from_numpy(draw_fastmri(family, width, acceleration, center_fraction, rng))
    return torch.from_numpy(rng.uniform(size=width) < _density(family, width, acceleration, center_fraction, falloff))


def inclusion(
    family: str, width: int, *, acceleration: float, center_fraction: float, falloff: Falloff | None = None
) -> Tensor:
    """Probability (x,) that :func:`draw_mask` acquires each line, float64; exact for every family.

    Some lines of ``equispaced_fraction`` have probability zero: its offsets are whole numbers, its spacing is not.
    """
    check_family(family)
    acs_count(width, acceleration, center_fraction)
    if acceleration == 1:
        return torch.ones(width, dtype=torch.float64)
    if family not in GRID_FAMILIES:
        return torch.from_numpy(_density(family, width, acceleration, center_fraction, falloff).copy())
    grid = Grid.of(family, width, acceleration, center_fraction)
    probability = np.sum(grid.outcomes(), axis=0) / grid.offsets
    probability[center(width, grid.n_acs)] = 1
    return torch.from_numpy(probability)


def key_stream(*key: object) -> np.random.RandomState:
    """Stream of ``key``; numpy keeps what ``RandomState`` draws the same in every version."""
    seed = seed_of(*key)
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])


def check_family(family: str) -> None:
    """Raise ``InputError`` unless ``family`` is one of ``FAMILIES``."""
    if family not in FAMILIES:
        raise InputError(f"mask family {family!r}: expected one of {', '.join(FAMILIES)}")


def _density(
    family: str, width: int, acceleration: float, center_fraction: float, falloff: Falloff | None
) -> NDArray[np.float64]:
    n_acs = check_acceleration(width, acceleration, center_fraction)
    acs = np.zeros((1, width), dtype=np.bool_)
    acs[:, center(width, n_acs)] = True
    probability = independent_density(family, acceleration, acs.tobytes(), (1, width), falloff or Falloff())
    return probability.reshape(-1)
