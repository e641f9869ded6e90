"""What a mask contains: its ACS block, its achieved acceleration, its pattern, one line of description."""

from collections.abc import Callable

import torch
from torch import Tensor

from rsdmri.errors import InputError

_STEPS = 4  # from one line to the next, from which on equal ones are no accident


def acs_block(mask: Tensor) -> tuple[slice, slice]:
    """Slices (readout, phase encode) of the largest centred block that ``mask`` acquires completely.

    For lines the readout slice is ``slice(None)`` and the width is as large as can be; for points the shorter side is
    as long as can be, then the area. A batch of masks gives the block that all of them share. The slices are empty
    where the centre itself was not acquired.
    """
    mask = _without_batch(mask)
    height, width = mask.shape
    if height == 1:
        return slice(None), center(width, _longest(width, lambda n: bool(mask[:, center(width, n)].all())))
    best = (0, 0)
    for columns in range(1, width + 1):
        rows_full = mask[:, center(width, columns)].all(dim=1)
        rows = _longest(height, lambda n, full=rows_full: bool(full[center(height, n)].all()))  # type: ignore[misc]
        if rows == 0:
            break
        best = max(best, (rows, columns), key=lambda size: (min(size), size[0] * size[1]))
    return center(height, best[0]), center(width, best[1])


def acs_lines(mask: Tensor) -> int:
    """Number of phase-encode lines in the centred block that ``mask`` acquires completely (see :func:`acs_block`)."""
    lines = acs_block(mask)[1]
    return int(lines.stop - lines.start)


def achieved_acceleration(mask: Tensor, absent: Tensor | None = None) -> float:
    """All positions over the acquired ones; positions in ``absent`` (never acquired by the protocol) do not count.

    Raises ``InputError`` when nothing was acquired.
    """
    check_mask(mask)
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


def pattern(mask: Tensor) -> str:
    """How ``mask`` spreads what it acquires: ``points``, ``equispaced lines``, ``irregular lines``; empty: not known.

    Lines are equispaced where the steps on each side of the ACS differ by no more than the one line that rounding an
    acceleration that is no integer brings, as in fastMRI's masks for brains; fewer than 4 steps do not tell.
    ``mask`` is boolean, (x,), (y, x) or (batch, 1 or y, x); of a batch counts what all of its masks acquire.
    """
    mask = _without_batch(mask)
    if len(mask) > 1 and not bool((mask == mask[:1]).all()):
        return "points"
    lines, acs = torch.nonzero(mask[0])[:, 0], acs_block(mask[:1])[1]
    steps = torch.cat([lines[lines < acs.start].diff(), lines[lines >= acs.stop].diff()])
    if len(steps) < _STEPS:
        return ""
    return "equispaced lines" if int(steps.max() - steps.min()) <= 1 else "irregular lines"


def center(width: int, lines: int) -> slice:
    """The ``lines`` centre positions of an axis, as fastMRI places them; contains ``width // 2``."""
    start = (width - lines + 1) // 2
    return slice(start, start + lines)


def check_mask(mask: Tensor) -> None:
    """Raise ``ValueError`` unless ``mask`` is boolean and (x,), (y, x) or (batch, 1 or y, x)."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, got {mask.dtype}")
    if mask.ndim not in (1, 2, 3):
        raise ValueError(f"mask: expected (x,), (y, x) or (batch, 1 or y, x), got shape {list(mask.shape)}")


def _longest(size: int, full: Callable[[int], bool]) -> int:
    """The largest n in 0..size for which ``full(n)`` holds, given that it then holds for everything smaller."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if full(middle) else (low, middle - 1)
    return low


def _without_batch(mask: Tensor) -> Tensor:
    check_mask(mask)
    if mask.ndim == 1:
        return mask[None]
    return mask.all(dim=0) if mask.ndim == 3 else mask
