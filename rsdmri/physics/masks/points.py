"""Families of point masks (ky, kz): their ACS block and the lattices of CAIPIRINHA."""

import math

import numpy as np
from numpy.typing import NDArray

from rsdmri.errors import InputError
from rsdmri.physics.masks.content import center

POINT_FAMILIES = ("random", "variable-density", "gaussian", "poisson", "caipi")


def acs_positions(shape: tuple[int, int], sizes: tuple[int, int], *, elliptical: bool) -> NDArray[np.bool_]:
    """The centre block (y, x) of ``sizes``, or the ellipse in it."""
    block = np.zeros(shape, dtype=np.bool_)
    rows, columns = (center(size, n) for size, n in zip(shape, sizes, strict=True))
    block[rows, columns] = True
    if elliptical and min(sizes) > 0:
        y, x = (np.arange(n) - (n - 1) / 2 for n in sizes)
        block[rows, columns] = (2 * y[:, None] / sizes[0]) ** 2 + (2 * x[None, :] / sizes[1]) ** 2 <= 1
    return block


def check_points(shape: tuple[int, int], acceleration: float, acs: NDArray[np.bool_]) -> None:
    """Raise ``InputError`` where the ACS alone holds more than y x / ``acceleration`` points."""
    n_acs = int(acs.sum())
    if acceleration > 1 and n_acs * acceleration > acs.size:
        raise InputError(
            f"acceleration {acceleration:g}: {shape[0]} x {shape[1]} points leave {acs.size / acceleration:.1f}, fewer"
            f" than the {n_acs} of the ACS; use at most {math.floor(100 * acs.size / n_acs) / 100:g} or a smaller"
            " center fraction"
        )


def lattice_steps(acceleration: float, steps: tuple[int, int] | None, shift: int | None) -> tuple[int, int, int]:
    """Spacings (R_y, R_x) with product ``acceleration``, as equal as can be unless given, and the shift.

    Raises ``InputError`` for an acceleration that is not whole or spacings with another product.
    """
    if acceleration != round(acceleration):
        raise InputError(f"acceleration {acceleration:g}: that of a lattice is R_y times R_x, a whole number")
    total = int(acceleration)
    if steps is None:
        rows = max(n for n in range(1, math.isqrt(total) + 1) if total % n == 0)
        steps = rows, total // rows
    if min(steps) < 1 or steps[0] * steps[1] != total:
        raise InputError(f"lattice {steps[0]} x {steps[1]}: the product must be the acceleration, {total}")
    return *steps, (steps[1] // 2 if shift is None else shift) % steps[1]


def lattice(shape: tuple[int, int], steps: tuple[int, int, int], offset: tuple[int, int]) -> NDArray[np.bool_]:
    """CAIPIRINHA lattice (y, x): every R_y-th row from ``offset`` on, each acquired row shifted against the last.

    Breuer et al. 2006, Magn Reson Med 55:549: R_y x R_x^(shift).
    """
    row_step, column_step, shift = steps
    mask = np.zeros(shape, dtype=np.bool_)
    for count, row in enumerate(range(offset[0], shape[0], row_step)):
        mask[row, (offset[1] + count * shift) % column_step :: column_step] = True
    return mask
