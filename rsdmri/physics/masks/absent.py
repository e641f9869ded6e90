"""Positions that no acquisition of the protocol takes: partial Fourier and padding of the phase encode."""

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.masks.law import Mask


def partial_fourier(mask: Mask, fraction: float, *, first: bool = False) -> Mask:
    """``mask`` of a protocol that takes only ``fraction`` of the phase encodes, e.g. 6/8: the rest is absent.

    round(x ``fraction``) columns remain; those missing are the last ones, or with ``first`` the first. Raises
    ``InputError`` for a fraction outside (0, 1] or one that leaves out part of the ACS.
    """
    width = mask.acquired.shape[-1]
    if not 0 < fraction <= 1:
        raise InputError(f"partial Fourier {fraction:g}: expected a share of the phase encodes above 0, such as 6/8")
    remaining = round(width * fraction)
    left = width - remaining if first else 0
    return _within(mask, left, left + remaining, f"partial Fourier {fraction:g}")


def with_padding(mask: Mask, left: int, right: int) -> Mask:
    """``mask`` of a protocol whose phase encodes are the columns from ``left`` to before ``right``; others are absent.

    Raises ``InputError`` unless 0 <= left < right <= x and the ACS lies inside.
    """
    width = mask.acquired.shape[-1]
    if not 0 <= left < right <= width:
        raise InputError(f"padding: expected 0 <= left < right <= {width}, got left {left}, right {right}")
    return _within(mask, left, right, f"phase encodes {left} to {right - 1}")


def _within(mask: Mask, left: int, right: int, what: str) -> Mask:
    outside = torch.ones_like(mask.absent)
    outside[:, left:right] = False
    lost: Tensor = (outside & mask.law.acs()).any(dim=0)
    if bool(lost.any()):
        width = lost.numel()
        columns = mask.law.acs().any(dim=0).nonzero().flatten().tolist()
        raise InputError(
            f"{what}: leaves out {int(lost.sum())} of the {len(columns)} ACS columns ({columns[0]} to {columns[-1]} of"
            f" {width}); acquire a larger share, or lower the center fraction"
        )
    return Mask(mask.acquired & ~outside, mask.absent | outside, mask.law)
