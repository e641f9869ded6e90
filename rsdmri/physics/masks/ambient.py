"""The ambient condition: can every position still be acquired, given what the further mask shows?

The minimiser of the ambient loss is E[x | u, M~] if and only if, for every further mask M~ that can occur, each
position that is not absent is acquired by M with positive probability given M~ (Daras et al. 2023, arXiv 2305.19256).
M~ keeps the positions ``kept`` of M and loses ``drop`` of its others, all of them where there are fewer.
"""

import numpy as np
from numpy.typing import NDArray

from rsdmri.errors import InputError

Flags = NDArray[np.bool_]

_NEVER = 1e-9  # probabilities below are rounding
_CURE = "use a family whose positions are drawn independently (random, variable-density, gaussian)"


def check_independent(density: NDArray[np.float64], drop: int, kept: Flags, present: Flags) -> None:
    """Raise ``InputError`` unless the condition holds for positions drawn independently with ``density``.

    Positions with density 1 outside ``kept`` must be fewer than ``drop``: where M~ lacks ``drop`` of them, it is known
    that nothing else was dropped.
    """
    if _settled(density, drop, present):
        return
    certain = int(((density == 1) & present & ~kept).sum())
    if certain >= drop:
        raise InputError(
            f"{certain} positions outside the kept centre are always acquired: a further mask that drops {drop} of"
            f" them shows that no other was acquired; keep them too, or drop more than {certain}"
        )


def check_outcomes(outcomes: list[Flags], density: NDArray[np.float64], drop: int, kept: Flags, present: Flags) -> None:
    """Raise ``InputError`` unless the condition holds for a law whose every mask is in ``outcomes``; exact."""
    if _settled(density, drop, present):
        return
    if unreachable(outcomes, drop, kept, present).any():
        most = max(int((mask & present & ~kept).sum()) for mask in outcomes)
        raise InputError(
            "what a further mask leaves gives the grid away, and positions off the grid can then never be"
            f" acquired; {_CURE}, or drop all {most} positions outside the centre"
        )


def unreachable(outcomes: list[Flags], drop: int, kept: Flags, present: Flags) -> Flags:
    """Positions that some further mask shows to be unacquired, of a law whose every mask is in ``outcomes``; exact.

    An outcome O leaves S of m = max(|O \\ kept| - drop, 0) positions. Another one, O', may lie behind the same M~ if
    it leaves as many and holds S. A position outside O fails if some S is held by no such O' that has it: if m
    positions of O suffice to tell O from all of these. Positions that no outcome has are left out.
    """
    outer = np.stack([(mask & present & ~kept).ravel() for mask in outcomes])
    left = np.maximum(outer.sum(axis=1) - drop, 0)
    kinds, kind_of = np.unique(outer, axis=1, return_inverse=True)  # positions that the same outcomes acquire are alike
    kinds = kinds.T
    failing = np.zeros(len(kinds), dtype=np.bool_)
    for index, count in enumerate(left.tolist()):
        own = np.flatnonzero(kinds[:, index])
        for kind in np.flatnonzero(kinds.any(axis=1) & ~kinds[:, index] & ~failing):
            rivals = np.flatnonzero(kinds[kind] & (left == count))
            failing[kind] = _can_hit([frozenset(own[~kinds[own, rival]].tolist()) for rival in rivals], count)
    found: Flags = failing[kind_of.reshape(-1)].reshape(np.broadcast_shapes(present.shape, outcomes[0].shape))
    return found


def check_exclusion(density: NDArray[np.float64], drop: int, kept: Flags, present: Flags) -> None:
    """Raise ``InputError`` unless the condition is sure to hold for points that keep a distance.

    The neighbours of a point that M~ shows can never be acquired, so M~ must show none outside ``kept``.
    """
    if _settled(density, drop, present):
        return
    most = int((present & ~kept).sum())
    if drop < most:
        raise InputError(
            "the points of a Poisson disc keep a distance: neighbours of those that a further mask leaves can never be"
            f" acquired; {_CURE}"
        )


def _settled(density: NDArray[np.float64], drop: int, present: Flags) -> bool:
    """Whether all is always acquired; ``InputError`` where something never is, or nothing is dropped."""
    never = int(((density < _NEVER) & present).sum())
    if never:
        raise InputError(
            f"{never} of {int(present.sum())} positions are never acquired, so nothing can learn them; lower the"
            " acceleration or the center fraction, or use the family random"
        )
    if bool((density[present] == 1).all()):
        return True
    if drop < 1:
        raise InputError("the further mask drops nothing: what it lacks is known to be unacquired; drop 1 or more")
    return False


def _can_hit(sets: list[frozenset[int]], most: int) -> bool:
    """Whether ``most`` elements suffice to have one of each set."""
    if not all(sets):
        return False
    if most >= len(sets):
        return True
    if most == 0:
        return False
    shortest = min(sets, key=len)
    return any(_can_hit([s for s in sets if element not in s], most - 1) for element in sorted(shortest))
