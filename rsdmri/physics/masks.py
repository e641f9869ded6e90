"""Sampling masks: fastMRI's families bit for bit, variable density, further masks, what a mask contains.

A mask is boolean, its last axis the phase encode: (x,) or (1, x) for whole lines, (y, x) for points, with a leading
batch axis (batch, 1, x) or (batch, y, x). The ACS (autocalibration signal) is the fully acquired block in the centre.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.runtime import seed_of

FAMILIES = ("random", "equispaced_fraction", "variable-density")

_DENSITY_POWER = 2.0  # variable density falls like (1 - |k| / k_max)^power ...
_DENSITY_FLOOR = 0.1  # ... and never below this fraction of its peak, so that every line has a chance


def fastmri_mask(family: str, width: int, *, acceleration: float, center_fraction: float, filename: str) -> Tensor:
    """The mask (x,) that fastMRI 0.3 draws for a file: ``random`` or ``equispaced_fraction``, bit for bit.

    fastMRI seeds ``numpy.random.RandomState`` with the characters of the file's name and first draws which of its pairs
    (acceleration, center fraction) to use, here one. Raises ``InputError`` where fastMRI crashes or the ACS alone
    exceeds ``width / acceleration``.
    """
    if family not in FAMILIES[:2]:
        raise InputError(f"mask family {family!r}: fastMRI masks here are {', '.join(FAMILIES[:2])}")
    rng = np.random.RandomState(tuple(map(ord, filename)))
    return torch.from_numpy(_draw(family, width, acceleration, center_fraction, rng))


def draw_mask(
    family: str, width: int, *, acceleration: float, center_fraction: float, key: tuple[object, ...]
) -> Tensor:
    """A mask (x,) of ``family`` (see ``FAMILIES``), always the same for the same ``key``, e.g. (file, slice, seed).

    ``acceleration`` is width over the expected number of lines, ``center_fraction`` the ACS lines over ``width``.
    Acceleration 1 gives a full mask. Raises ``InputError`` as :func:`check_acceleration` does.
    """
    check_acceleration(width, acceleration, center_fraction)
    if family in FAMILIES and acceleration == 1:
        return torch.ones(width, dtype=torch.bool)
    seed = seed_of(*key)
    rng = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    return torch.from_numpy(_draw(family, width, acceleration, center_fraction, rng))


def inclusion(family: str, width: int, *, acceleration: float, center_fraction: float) -> Tensor:
    """Probability (x,) that :func:`draw_mask` acquires each line, float64; exact for every family.

    Some lines of ``equispaced_fraction`` have probability zero: its offsets are whole numbers, its spacing is not.
    """
    n_acs = check_acceleration(width, acceleration, center_fraction)
    _check_family(family)
    if acceleration == 1:
        return torch.ones(width, dtype=torch.float64)
    if family == "random":
        probability = np.full(width, _line_probability(width, acceleration, n_acs))
    elif family == "variable-density":
        probability = _variable_density(width, acceleration, n_acs).copy()
    else:
        spacing = _spacing(width, acceleration, n_acs)
        offsets = round(spacing)
        probability = np.zeros(width)
        for offset in range(min(offsets, width)):
            probability[_equispaced(width, spacing, offset)] += 1 / offsets
    probability[_center(width, n_acs)] = 1
    return torch.from_numpy(probability)


def check_acceleration(width: int, acceleration: float, center_fraction: float) -> int:
    """Number of ACS lines, ``round(width * center_fraction)``.

    Raises ``InputError`` for an acceleration below 1, a fraction outside [0, 1], or when the ACS alone holds more than
    ``width / acceleration`` lines.
    """
    if width < 1:
        raise InputError(f"width {width}: expected at least one phase-encode line")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise InputError(f"acceleration {acceleration:g}: expected 1 (full sampling) or more")
    if not 0 <= center_fraction <= 1:
        raise InputError(f"center fraction {center_fraction:g}: expected a number from 0 to 1")
    n_acs = round(width * center_fraction)
    if acceleration > 1 and n_acs * acceleration > width:
        raise InputError(
            f"acceleration {acceleration:g}: {width} lines leave {width / acceleration:.1f}, fewer than the {n_acs} ACS"
            f" lines (center fraction {center_fraction:g}); use at most {math.floor(100 * width / n_acs) / 100:g}"
            f" or a center fraction of at most {math.floor(width / acceleration) / width:.3g}"
        )
    return n_acs


def acs_block(mask: Tensor) -> tuple[slice, slice]:
    """Slices (readout, phase encode) of the largest centred block that ``mask`` acquires completely.

    For lines the readout slice is ``slice(None)`` and the width is as large as can be; for points the shorter side is
    as long as can be, then the area. A batch of masks gives the block that all of them share. The slices are empty
    where the centre itself was not acquired.
    """
    mask = _without_batch(mask)
    height, width = mask.shape
    if height == 1:
        return slice(None), _center(width, _longest(width, lambda n: bool(mask[:, _center(width, n)].all())))
    best = (0, 0)
    for columns in range(1, width + 1):
        rows_full = mask[:, _center(width, columns)].all(dim=1)
        rows = _longest(height, lambda n, full=rows_full: bool(full[_center(height, n)].all()))  # type: ignore[misc]
        if rows == 0:
            break
        best = max(best, (rows, columns), key=lambda size: (min(size), size[0] * size[1]))
    return _center(height, best[0]), _center(width, best[1])


def acs_lines(mask: Tensor) -> int:
    """Number of phase-encode lines in the centred block that ``mask`` acquires completely (see :func:`acs_block`)."""
    lines = acs_block(mask)[1]
    return int(lines.stop - lines.start)


def achieved_acceleration(mask: Tensor, absent: Tensor | None = None) -> float:
    """All positions over the acquired ones; positions in ``absent`` (never acquired by the protocol) do not count.

    Raises ``InputError`` when nothing was acquired.
    """
    _check_mask(mask)
    present = torch.ones_like(mask) if absent is None else (~absent).expand(mask.shape)
    acquired = int((mask & present).sum())
    if acquired == 0:
        raise InputError("mask: no sample was acquired")
    return int(present.sum()) / acquired


def describe(mask: Tensor, absent: Tensor | None = None, *, nominal: float | None = None) -> str:
    """One line: acquired lines (or points), achieved acceleration, nominal acceleration when given, ACS."""
    acceleration = achieved_acceleration(mask, absent)
    rows, columns = acs_block(mask)
    points = mask.ndim > 1 and mask.shape[-2] > 1
    acs = f"ACS {columns.stop - columns.start} lines"
    if points:
        acs = f"ACS {rows.stop - rows.start} x {columns.stop - columns.start}"
    total = mask.numel() if absent is None else int((~absent).expand(mask.shape).sum())
    wanted = "" if nominal is None else f" (nominal {nominal:g})"
    unit = "points" if points else "lines"
    return f"{round(total / acceleration)} of {total} {unit}, acceleration {acceleration:.2f}{wanted}, {acs}"


def further_drop(width: int, acceleration: float) -> int:
    """How many lines a further mask drops by default: ceil(W / R - W / (R + 1)), so that about W / (R + 1) remain.

    These are the published values 54, 16, 8, 5 for W = 320 and R = 2, 4, 6, 8.
    """
    return max(1, math.ceil(width / acceleration - width / (acceleration + 1) - 1e-9))


def further_mask(
    mask: Tensor, drop: int, *, acs: int | tuple[slice, slice], generator: torch.Generator | None
) -> Tensor:
    """A subset of ``mask``: the ACS stays, ``drop`` random acquired lines (points) outside it go.

    Each mask of a batch loses lines of its own. ``acs`` is the number of centre lines (for points: the side of the
    centre square) or the slices of :func:`acs_block`. A mask with fewer than ``drop`` lines outside the ACS loses all
    of them. Raises ``ValueError`` for a negative ``drop`` or a mask that is not boolean.
    """
    _check_mask(mask)
    if drop < 0:
        raise ValueError(f"drop: expected 0 or more lines, got {drop}")
    outer = torch.ones(mask.shape[-2:] if mask.ndim > 1 else (1, *mask.shape), dtype=torch.bool, device=mask.device)
    height, width = outer.shape
    if isinstance(acs, int):
        acs = _center(height, min(acs, height)), _center(width, min(acs, width))
    outer[slice(None) if height == 1 else acs[0], acs[1]] = False

    flat = mask.reshape(*mask.shape[:-2], -1)
    candidate = flat & outer.reshape(-1)
    device = generator.device if generator is not None else mask.device
    score = torch.rand(flat.shape, generator=generator, device=device).to(mask.device).masked_fill(~candidate, -1)
    best, index = score.topk(min(drop, flat.shape[-1]), dim=-1)
    keep = flat.gather(-1, index) & (best < 0)
    return flat.scatter(-1, index, keep).view(mask.shape)


def _draw(
    family: str, width: int, acceleration: float, center_fraction: float, rng: np.random.RandomState
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    n_acs = check_acceleration(width, acceleration, center_fraction)
    _check_family(family)
    rng.randint(1)  # fastMRI's choice among its pairs
    if family == "equispaced_fraction":
        spacing = _spacing(width, acceleration, n_acs)
        mask = np.zeros(width, dtype=np.bool_)
        mask[_equispaced(width, spacing, int(rng.randint(0, high=round(spacing))))] = True
    elif family == "random":
        mask = rng.uniform(size=width) < _line_probability(width, acceleration, n_acs)
    else:
        mask = rng.uniform(size=width) < _variable_density(width, acceleration, n_acs)
    mask[_center(width, n_acs)] = True
    return mask


def _line_probability(width: int, acceleration: float, n_acs: int) -> float:
    return (width / acceleration - n_acs) / (width - n_acs) if width > n_acs else 1.0


def _spacing(width: int, acceleration: float, n_acs: int) -> float:
    if n_acs * acceleration >= width and acceleration > 1:
        raise InputError(
            f"acceleration {acceleration:g}: the {n_acs} ACS lines of {width} leave no line for equispaced_fraction;"
            " lower the acceleration or the center fraction"
        )
    if n_acs == width:
        return 1.0
    return (acceleration * (n_acs - width)) / (n_acs * acceleration - width)


def _equispaced(width: int, spacing: float, offset: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.around(np.arange(offset, width - 1, spacing)).astype(np.int64)


@lru_cache(maxsize=64)
def _variable_density(width: int, acceleration: float, n_acs: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Independent line probabilities, 1 in the ACS, falling with |k| outside, with sum ``width / acceleration``."""
    radius = np.abs(np.arange(width) - width // 2) / max(width / 2, 1)
    density = np.maximum(1 - radius, 0) ** _DENSITY_POWER
    density = _DENSITY_FLOOR + (1 - _DENSITY_FLOOR) * density
    density[_center(width, n_acs)] = np.inf
    low, high = 0.0, 1 / _DENSITY_FLOOR
    for _ in range(100):
        middle = (low + high) / 2
        expected = np.minimum(middle * density, 1).sum() if middle > 0 else float(n_acs)
        low, high = (middle, high) if expected < width / acceleration else (low, middle)
    probability = np.minimum(high * density, 1)
    probability.setflags(write=False)  # shared by all callers
    return probability


def _center(width: int, lines: int) -> slice:
    """The ``lines`` centre positions of an axis, as fastMRI places them; contains ``width // 2``."""
    start = (width - lines + 1) // 2
    return slice(start, start + lines)


def _longest(size: int, full: Callable[[int], bool]) -> int:
    """The largest n in 0..size for which ``full(n)`` holds, given that it then holds for everything smaller."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if full(middle) else (low, middle - 1)
    return low


def _without_batch(mask: Tensor) -> Tensor:
    _check_mask(mask)
    if mask.ndim == 1:
        return mask[None]
    return mask.all(dim=0) if mask.ndim == 3 else mask


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise InputError(f"mask family {family!r}: expected one of {', '.join(FAMILIES)}")


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, got {mask.dtype}")
    if mask.ndim not in (1, 2, 3):
        raise ValueError(f"mask: expected (x,), (y, x) or (batch, 1 or y, x), got shape {list(mask.shape)}")
