"""Further masks M~: subsets of a mask M whose dropped samples teach what was never acquired."""

import math

import torch
from torch import Tensor

from rsdmri.physics.masks.content import center, check_mask


def further_drop(width: int, acceleration: float) -> int:
    """How many lines a further mask drops by default: ceil(W / R - W / (R + 1)), so that about W / (R + 1) remain.

    These are the published values 54, 16, 8, 5 for W = 320 and R = 2, 4, 6, 8.
    """
    return max(1, math.ceil(width / acceleration - width / (acceleration + 1) - 1e-9))


def further_mask(
    mask: Tensor, drop: int | Tensor, *, acs: int | tuple[slice, slice] | Tensor, generator: torch.Generator | None
) -> Tensor:
    """A subset of ``mask``: the ACS stays, ``drop`` random acquired lines (points) outside it go.

    Each mask of a batch loses lines of its own, and as many as ``drop`` says, where that has the batch's shape. ``acs``
    is the number of centre lines (for points: the side of the centre square), the slices of :func:`acs_block`, or bool
    for each position that stays in all masks of the batch. A mask with fewer than ``drop`` lines outside it loses all
    of them. Raises ``ValueError`` for a negative ``drop`` or a mask that is not boolean.
    """
    check_mask(mask)
    counts = torch.as_tensor(drop, device=mask.device)[..., None]
    most = int(counts.max())
    if int(counts.min()) < 0:
        raise ValueError(f"drop: expected 0 or more lines, got {int(counts.min())}")
    outer = torch.ones(mask.shape[-2:] if mask.ndim > 1 else (1, *mask.shape), dtype=torch.bool, device=mask.device)
    height, width = outer.shape
    if isinstance(acs, int):
        acs = center(height, min(acs, height)), center(width, min(acs, width))
    if isinstance(acs, Tensor):
        outer = ~acs.to(mask.device).reshape(outer.shape)
    else:
        outer[slice(None) if height == 1 else acs[0], acs[1]] = False

    flat = mask.reshape(*mask.shape[:-2], -1)
    candidate = flat & outer.reshape(-1)
    device = generator.device if generator is not None else mask.device
    score = torch.rand(flat.shape, generator=generator, device=device).to(mask.device).masked_fill(~candidate, -1)
    best, index = score.topk(min(most, flat.shape[-1]), dim=-1)
    stays = (best < 0) | (torch.arange(best.shape[-1], device=mask.device) >= counts)
    keep = flat.gather(-1, index) & stays
    return flat.scatter(-1, index, keep).view(mask.shape)
