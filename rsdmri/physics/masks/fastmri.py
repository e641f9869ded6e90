"""fastMRI's five families of line masks, bit for bit, and the grids behind the regular ones.

Zbontar et al. 2018, arXiv 1811.08839 (``fastmri.data.subsample``); magic: Defazio 2019, arXiv 1912.01101.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.masks.content import center

FASTMRI_FAMILIES = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")
GRID_FAMILIES = FASTMRI_FAMILIES[1:]


def fastmri_mask(
    family: str,
    width: int,
    *,
    acceleration: float | Sequence[float],
    center_fraction: float | Sequence[float],
    filename: str,
) -> Tensor:
    """The mask (x,) that fastMRI 0.3 draws for a file: one of ``FASTMRI_FAMILIES``, bit for bit.

    fastMRI seeds ``numpy.random.RandomState`` with the characters of the file's name, then draws which of its pairs
    (acceleration, center fraction) to use where it has several: give both as equally long sequences for that. In
    ``equispaced`` and ``magic`` the acceleration is the spacing of the lines, the ACS comes on top. Raises
    ``InputError`` where fastMRI crashes or, outside those two, the ACS alone exceeds ``width / acceleration``.
    """
    if family not in FASTMRI_FAMILIES:
        raise InputError(f"mask family {family!r}: fastMRI masks here are {', '.join(FASTMRI_FAMILIES)}")
    accelerations = acceleration if isinstance(acceleration, Sequence) else [acceleration]
    fractions = center_fraction if isinstance(center_fraction, Sequence) else [center_fraction]
    if len(accelerations) != len(fractions) or not accelerations:
        raise InputError(f"{len(accelerations)} accelerations, {len(fractions)} center fractions: expected pairs")
    rng = np.random.RandomState(tuple(map(ord, filename)))
    pair = rng.randint(len(accelerations))
    return torch.from_numpy(draw_fastmri(family, width, accelerations[pair], fractions[pair], rng))


def draw_fastmri(
    family: str, width: int, acceleration: float, center_fraction: float, rng: np.random.RandomState
) -> NDArray[np.bool_]:
    """Mask (x,) of a fastMRI family, from the stream ``rng``."""
    if family == "random":
        n_acs = check_acceleration(width, acceleration, center_fraction)
        mask = rng.uniform(size=width) < uniform_probability(width, acceleration, n_acs)
    else:
        grid = Grid.of(family, width, acceleration, center_fraction)
        n_acs = grid.n_acs
        mask = grid.lines(int(rng.randint(0, high=grid.offsets)))
    mask[center(width, n_acs)] = True
    return mask


def center_fraction(width: int, acceleration: float) -> float:
    """The usual ACS share: 0.32 / R as fastMRI has it, but at least 8 lines, or half of all where these are few."""
    return max(round(0.32 * width / acceleration), min(8, int(width / acceleration) // 2)) / width


def check_acceleration(width: int, acceleration: float, center_fraction: float) -> int:
    """Number of ACS lines, ``round(width * center_fraction)``.

    Raises ``InputError`` for an acceleration below 1, a fraction outside [0, 1], or when the ACS alone holds more than
    ``width / acceleration`` lines.
    """
    n_acs = acs_count(width, acceleration, center_fraction)
    if acceleration > 1 and n_acs * acceleration > width:
        raise InputError(
            f"acceleration {acceleration:g}: {width} lines leave {width / acceleration:.1f}, fewer than the {n_acs} ACS"
            f" lines (center fraction {center_fraction:g}); use at most {math.floor(100 * width / n_acs) / 100:g}"
            f" or a center fraction of at most {math.floor(width / acceleration) / width:.3g}"
        )
    return n_acs


def acs_count(width: int, acceleration: float, center_fraction: float) -> int:
    """Number of ACS lines; ``InputError`` for a width, an acceleration or a fraction that is none."""
    if width < 1:
        raise InputError(f"width {width}: expected at least one phase-encode line")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise InputError(f"acceleration {acceleration:g}: expected 1 (full sampling) or more")
    if not 0 <= center_fraction <= 1:
        raise InputError(f"center fraction {center_fraction:g}: expected a number from 0 to 1")
    return round(width * center_fraction)


def uniform_probability(size: int, acceleration: float, n_acs: int) -> float:
    """Probability (N / R - n) / (N - n) of a position outside the ACS, so that N / R of N are expected."""
    return (size / acceleration - n_acs) / (size - n_acs) if size > n_acs else 1.0


@dataclass(frozen=True)
class Grid:
    """The equally likely masks of an equispaced or magic family: one for each whole offset below ``offsets``."""

    family: str
    width: int
    n_acs: int
    spacing: float
    offsets: int

    @classmethod
    def of(cls, family: str, width: int, acceleration: float, center_fraction: float) -> "Grid":
        """The grid of ``family``; ``InputError`` where fastMRI divides by zero or has no offset to choose."""
        if family == "equispaced_fraction":
            n_acs = check_acceleration(width, acceleration, center_fraction)
            if n_acs * acceleration >= width:
                raise _no_line_left(family, width, acceleration, n_acs)
            spacing = (acceleration * (n_acs - width)) / (n_acs * acceleration - width)
            return cls(family, width, n_acs, spacing, round(spacing))
        n_acs = acs_count(width, acceleration, center_fraction)
        if family == "magic_fraction":
            wanted = round(width / acceleration)
            n_acs = max(min(n_acs, wanted), 1)
            if n_acs >= wanted:
                raise _no_line_left(family, width, acceleration, n_acs)
            spacing = round(width / (wanted - n_acs))
            return cls(family, width, n_acs, spacing, spacing)
        if acceleration != round(acceleration):
            raise InputError(
                f"acceleration {acceleration:g}: the spacing of {family} lines is a whole number; use"
                f" {math.floor(acceleration)} or {math.ceil(acceleration)}, or the family {family}_fraction"
            )
        return cls(family, width, n_acs, int(acceleration), int(acceleration))

    def lines(self, offset: int) -> NDArray[np.bool_]:
        """Mask (x,) of one offset, without the ACS."""
        mask = np.zeros(self.width, dtype=np.bool_)
        if self.family == "equispaced_fraction":
            mask[np.around(np.arange(offset, self.width - 1, self.spacing)).astype(np.int64)] = True
        elif self.family == "equispaced":
            mask[offset :: int(self.spacing)] = True
        else:  # the two sides of k-space interleave: -k is left out where k is acquired
            right, left = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
            middle = self.width // 2
            mask[middle + right :: int(self.spacing)] = True
            mask[:middle][::-1][left :: int(self.spacing)] = True
        return mask

    def outcomes(self) -> list[NDArray[np.bool_]]:
        """Every mask that the family can draw, ACS included; the rest of the offsets acquires nothing more."""
        drawn = [self.lines(offset) for offset in range(min(self.offsets, self.width + 1))]
        for mask in drawn:
            mask[center(self.width, self.n_acs)] = True
        return drawn


def _no_line_left(family: str, width: int, acceleration: float, n_acs: int) -> InputError:
    return InputError(
        f"acceleration {acceleration:g}: the {n_acs} ACS lines of {width} leave no line for {family};"
        " lower the acceleration or the center fraction"
    )
