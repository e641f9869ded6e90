"""Which positions of a file were acquired, which were skipped, and which are absent from the protocol."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rsdmri.errors import InputError

_STRAY = 0.005  # share of scattered exact zeros below which they are chance, not a sampling pattern


@dataclass(frozen=True, eq=False)
class Sampling:
    """The three states of a scan's positions."""

    mask: np.ndarray
    """Acquired, bool (1, x) or (y, x)."""
    absent: np.ndarray
    """(x,) bool: columns outside the protocol (padding, partial Fourier)."""
    prospective: bool
    """Whether some position is neither acquired nor absent."""
    warnings: tuple[str, ...]


@np.errstate(invalid="ignore")  # signalling NaN are compared
def settle_sampling(
    where: str,
    shape: tuple[int, int],
    given: np.ndarray | None,
    padding: tuple[int, int] | None,
    blocks: Iterable[np.ndarray],
) -> Sampling:
    """Reconcile mask, header and exact zeros.

    Acquired is what the mask says (everything without one), less padding, less what is zero in all slices and coils.
    Without a header, empty outermost columns are absent if everything between them was acquired and they are at most
    half of the width, or if the mask claims them.

    Args:
        where: the file, for messages.
        shape: (y, x).
        given: the file's mask, bool (1, x) or (y, x), or None.
        padding: (left, right) from the header: columns outside [left, right) are absent.
        blocks: pieces (coil, y, x) of the scan, the most telling first; reading stops once no position can be empty.

    Raises:
        InputError: nothing was acquired.
    """
    width = shape[1]
    notes: list[str] = []
    claimed = np.ones((1, width), bool) if given is None else given
    pieces = iter(blocks)
    first = next(pieces)
    padded = _padded_columns(width, padding, first, notes)

    empty = _empty_positions([first], np.broadcast_to(claimed & ~padded, shape))
    if empty.any():
        empty = _empty_positions(pieces, empty)
    considered = int(np.broadcast_to(claimed & ~padded, shape).sum())
    candidate = np.broadcast_to(claimed & ~padded, shape).any(0)
    columns = candidate & ~(np.broadcast_to(claimed, shape) & ~empty).any(0)
    scattered = empty & ~columns
    if scattered.sum() <= _STRAY * considered:
        scattered = np.zeros((1, width), bool)
    mask = claimed & ~padded & ~columns & ~scattered
    if not mask.any():
        raise InputError(f"{where}: k-space holds only zeros where it says to be acquired; nothing to reconstruct")

    edges = np.zeros(width, bool) if padding is not None else _empty_edges(mask.any(0), columns, given is not None)
    absent = padded | edges
    if edges.any():
        notes.append(f"{int(edges.sum())} outer phase-encode lines hold only zeros; taken as never acquired")
    if given is not None:
        lost = int((np.broadcast_to(columns & ~edges, shape) & claimed | scattered).sum())
        if lost:
            share = f"{lost} positions ({100 * lost / considered:.1f} %)"
            notes.append(f"the mask claims {share} that hold only zeros; taken as not acquired")
    prospective = bool((~mask & ~absent).any())
    return Sampling(mask, absent, prospective, tuple(notes))


def _padded_columns(width: int, padding: tuple[int, int] | None, first: np.ndarray, notes: list[str]) -> np.ndarray:
    """Columns that the header calls padding, none if it cannot be right."""
    padded = np.zeros(width, bool)
    if padding is None:
        return padded
    left, right = padding
    if not 0 <= left < right <= width:
        notes.append(f"header: acquired lines {left} to {right} do not fit a width of {width}; padding ignored")
        return padded
    padded[:left], padded[right:] = True, True
    outside = first[..., padded]
    if (np.isfinite(outside) & (outside != 0)).any():
        notes.append("header: lines that it calls padding hold data; padding ignored")
        padded[:] = False
    return padded


def _empty_positions(pieces: Iterable[np.ndarray], candidates: np.ndarray) -> np.ndarray:
    """Those of ``candidates`` (y, x) that are exactly zero in every coil of every piece."""
    empty = candidates.copy()
    for piece in pieces:
        empty &= (piece == 0).all(0)
        if not empty.any():
            break
    return empty


def _empty_edges(acquired: np.ndarray, columns: np.ndarray, masked: bool) -> np.ndarray:
    """Outer empty columns that are absent rather than skipped, bool (x,)."""
    width = len(acquired)
    first, last = int(np.argmax(acquired)), width - int(np.argmax(acquired[::-1]))
    edges = np.zeros(width, bool)
    if masked:  # a line that the mask claims and that is empty lies in the padding, and so do all beyond it
        left, right = np.flatnonzero(columns[:first]), np.flatnonzero(columns[last:])
        if left.size:
            edges[: left[-1] + 1] = True
        if right.size:
            edges[last + right[0] :] = True
    elif acquired[first:last].all() and 2 * (width - (last - first)) <= width:
        edges[:first], edges[last:] = True, True
    return edges
