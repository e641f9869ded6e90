"""The ambient condition for the masks of a set of scans, whose law is known by these masks alone.

A few masks that many scans share are the law, and the condition can be decided (`ambient.unreachable`). Many different
masks are a sample of a law, which is judged by what would be surprising in it: positions that are always acquired, and
pairs that never are acquired together though their frequencies say that they should be, as those of shifted grids and
of Poisson discs. Passing that is no proof. Between the two, masks of fewer than two scans each count as a sample.
"""

from dataclasses import dataclass

import numpy as np

from rsdmri.physics.masks.ambient import Flags, unreachable

_LISTED = 32  # masks at most that are taken for a whole law: beyond, deciding could take long
_EXPECTED = 20.0  # times that a pair must be expected together: e^-20 is a chance of 1e-4 among 50,000 pairs
_NEAR = 3  # points: how far apart pairs are that are looked at


@dataclass(frozen=True, eq=False)
class Gap:
    """Positions that training on a set cannot learn, bool (1 or y, x), why, and what would help."""

    positions: Flags
    reason: str
    cure: str


def find_gap(masks: Flags, scans: int, drop: int, kept: Flags, present: Flags) -> Gap | None:
    """What the further masks of ``scans`` scans cannot teach, None where nothing is known to be amiss.

    Args:
        masks: the different masks, bool (n, 1 or y, x).
        scans: how many scans share them.
        drop: positions that a further mask drops.
        kept: positions that it keeps, bool (1 or y, x).
        present: positions that are to be learnt.
    """
    never: Flags = present & ~np.any(masks, axis=0)
    if never.any():
        alike = f"all {scans} scans share one mask" if len(masks) == 1 else f"{scans} scans have {len(masks)} masks"
        return Gap(
            never, f"are acquired in no scan ({alike}): no measurement can teach them", "add scans with other masks"
        )
    outer: Flags = masks & present & ~kept
    most = int(outer.reshape(len(masks), -1).sum(axis=1).max())
    if bool(masks[:, present].all()) or drop >= most:
        return None
    show_none = f"or --set acquisition.further_drop={most}, so that nothing outside the centre is shown"
    if len(masks) <= _LISTED and 2 * len(masks) <= scans:
        told = unreachable(list(masks), drop, kept, present)
        reason = f"can be known to be unacquired: what a further mask leaves tells which of {len(masks)} masks it is of"
        return Gap(told, reason, f"add scans with more varied masks, {show_none}") if told.any() else None
    always: Flags = np.min(outer, axis=0)
    if int(always.sum()) >= drop:
        reason = f"are always acquired: a further mask that drops {drop} of them shows that nothing else was dropped"
        return Gap(always, reason, f"--set acquisition.further_drop={int(always.sum()) + 1} or more")
    apart = _never_together(outer)
    reason = f"are never acquired together with others that {len(masks)} masks have as often: one tells of the other"
    return Gap(apart, reason, f"add scans with randomly drawn masks, {show_none}") if apart.any() else None


def _never_together(outer: Flags) -> Flags:
    """Positions that are in no mask together with some other, where ``_EXPECTED`` or more masks should hold both."""
    count, height, width = outer.shape
    density = outer.mean(axis=0)
    found = np.zeros((height, width), dtype=np.bool_)
    far = width - 1 if height == 1 else _NEAR
    for down in range(min(height, _NEAR + 1) if height > 1 else 1):
        for across in range(-far if down else 1, far + 1):
            rows, columns = (slice(max(0, -n), size - max(0, n)) for n, size in ((down, height), (across, width)))
            other = (slice(rows.start + down, rows.stop + down), slice(columns.start + across, columns.stop + across))
            here = (rows, columns)
            together = (outer[:, *here] & outer[:, *other]).sum(axis=0)
            missing = (together == 0) & (count * density[here] * density[other] >= _EXPECTED)
            found[here] |= missing
            found[other] |= missing
    return found
