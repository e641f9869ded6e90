"""Mask coverage: which positions of k-space the scans of a training set acquired, and which can be learnt from them."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.physics.masks.collection import Gap, find_gap
from rsdmri.physics.masks.content import center

_STRIP = 64  # lines in one row of the printed pattern


@dataclass(frozen=True, eq=False)
class Coverage:
    """What scans with masks of one shape (1, x) or (y, x) acquired, and what their further masks can hold out.

    Attributes:
        masks: the different masks, bool ``(n, 1 or y, x)``.
        scans: how many scans acquired each position in some slice, int64 ``(1 or y, x)``.
        slices: how many slices did.
        held_out: expected number of slices that hold each position out in one pass over all, float ``(1 or y, x)``.
        kept: positions that further masks keep (the ACS), bool.
        absent: positions that no protocol of these scans acquires, bool.
        n_scans: number of scans.
        n_slices: number of slices.
        drop: positions that a further mask drops.
        given: the masks are those of the scans or one for all, not drawn anew for each slice.
        judged: ``given``, and no other masks of this shape are drawn from a law that acquires everything.
    """

    masks: Tensor
    scans: Tensor
    slices: Tensor
    held_out: Tensor
    kept: Tensor
    absent: Tensor
    n_scans: int
    n_slices: int
    drop: int
    given: bool
    judged: bool

    @property
    def never(self) -> Tensor:
        """Positions in no scan that are not absent, bool."""
        return (self.slices == 0) & ~self.absent

    @property
    def unit(self) -> str:
        """What a position is called."""
        return "lines" if self.masks.shape[1] == 1 else "points"

    def gap(self) -> Gap | None:
        """What these masks cannot teach; None for masks of a law, which is judged by itself."""
        if not self.judged:
            return None
        flags = (x.numpy() for x in (self.kept, ~self.absent))
        return find_gap(self.masks.numpy(), self.n_scans, self.drop, *flags)

    def table(self) -> list[str]:
        """Lines to print: totals, a row for each kind of position, and for masks of lines the pattern."""
        height, width = self.masks.shape[1:]
        what = f"{width} {self.unit}" if height == 1 else f"{height} x {width} {self.unit}"
        seen, all_of = int((self.slices > 0).sum()), int((~self.absent).sum())
        kind = "as acquired" if self.given else "drawn"
        masks = "1 mask" if len(self.masks) == 1 else f"{len(self.masks)} different masks"
        lines = [
            f"coverage of {what} ({kind}): {self.n_scans} scans, {self.n_slices} slices, {masks}, together "
            f"{seen} of {all_of} {self.unit} ({100 * seen / max(all_of, 1):.0f} %)"
        ]
        zones = {
            "ACS": self.kept & (self.slices > 0),
            "outside": ~self.kept & (self.slices > 0),
            "never": self.never,
            "absent": self.absent,
        }
        rows = [("", self.unit, "scans", "slices", "held out", "")]
        for name, zone in zones.items():
            if bool(zone.any()):
                scans, slices, held = (_span(x[zone]) for x in (self.scans, self.slices, self.held_out))
                rows.append((name, str(int(zone.sum())), scans, slices, held, listed(zone) if height == 1 else ""))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        cells = ("  ".join(c.ljust(w) for c, w in zip(row, [*widths, 0], strict=True)) for row in rows)
        lines += [f"  {text}".rstrip() for text in cells]
        return lines + (self._pattern() if height == 1 else [])

    def _pattern(self) -> list[str]:
        """One character a line: the share of scans in tenths, # for all, ! never acquired, - absent."""
        share = (self.scans[0] * 10 // max(self.n_scans, 1)).tolist()
        marks = []
        for tenth, absent, never in zip(share, self.absent[0].tolist(), self.never[0].tolist(), strict=True):
            marks.append("-" if absent else "!" if never else "#" if tenth >= 10 else str(tenth))
        rows = ["".join(marks[start : start + _STRIP]) for start in range(0, len(marks), _STRIP)]
        legend = "  share of scans in tenths, # all, ! never, - absent:"
        return [legend, *(f"  {_STRIP * k:>4} {row}" for k, row in enumerate(rows))]


def cover(
    refs: Iterable[tuple[Hashable, Tensor, Tensor]],
    *,
    acs: int | tuple[slice, slice],
    drop: int,
    given: bool,
    judged: bool,
) -> Coverage:
    """The coverage by slices ``refs``, each (scan, mask, absent): bool (1 or y, x) all of one shape, absent (x,).

    ``acs``: centre lines or slices that further masks keep; ``drop``: how many others they drop. The other arguments
    are those of `Coverage`.
    """
    different: dict[bytes, Tensor] = {}
    of_scans: dict[Hashable, Tensor] = {}
    uses: dict[bytes, int] = {}
    absent: Tensor | None = None
    for scan, mask, missing in refs:
        key = mask.numpy().tobytes()
        different.setdefault(key, mask)
        uses[key] = uses.get(key, 0) + 1
        of_scans[scan] = mask | of_scans[scan] if scan in of_scans else mask
        absent = missing if absent is None else absent & missing
    if absent is None:
        raise ValueError("refs: expected one slice or more")
    masks = torch.stack(list(different.values()))
    count = torch.tensor([uses[key] for key in different]).reshape(-1, 1, 1)
    kept = _block(acs, masks.shape[1], masks.shape[2])
    outer = masks & ~kept
    share = (drop / outer.sum(dim=(1, 2)).clamp_min(1)).clamp_max(1).reshape(-1, 1, 1)
    return Coverage(
        masks=masks,
        scans=torch.stack(list(of_scans.values())).sum(dim=0),
        slices=(masks * count).sum(dim=0),
        held_out=(outer * count * share).sum(dim=0),
        kept=kept,
        absent=absent.expand(masks.shape[1:]),
        n_scans=len(of_scans),
        n_slices=int(count.sum()),
        drop=drop,
        given=given,
        judged=judged,
    )


def listed(flags: Tensor, most: int = 12) -> str:
    """Numbers of the positions along the last axis that are set, as ranges: ``0-3, 7``; at most ``most`` of them."""
    positions = flags.reshape(-1, flags.shape[-1]).any(dim=0).nonzero().flatten().tolist()
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(words[:most] + ([f"... ({len(words) - most} more ranges)"] if len(words) > most else []))


def _span(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    texts = [f"{x:.0f}" if x == round(x) else f"{x:.1f}" for x in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _block(acs: int | tuple[slice, slice], height: int, width: int) -> Tensor:
    block = torch.zeros(height, width, dtype=torch.bool)
    if isinstance(acs, int):
        acs = center(height, min(acs, height)), center(width, min(acs, width))
    block[acs if height > 1 else (slice(None), acs[1])] = True
    return block
