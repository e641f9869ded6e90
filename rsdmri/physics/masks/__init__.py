"""Sampling masks: laws that draw them, fastMRI's families bit for bit, further masks, what a mask contains.

A mask is boolean, its last axis the phase encode: (x,) or (1, x) for whole lines, (y, x) for points, with a leading
batch axis (batch, 1, x) or (batch, y, x). The ACS (autocalibration signal) is the fully acquired block in the centre.
A position is acquired, skipped (left out by the acceleration) or absent (in no acquisition of the protocol).
"""

from rsdmri.physics.masks.absent import partial_fourier, with_padding
from rsdmri.physics.masks.content import achieved_acceleration, acs_block, acs_lines, describe, pattern
from rsdmri.physics.masks.density import Falloff
from rsdmri.physics.masks.fastmri import FASTMRI_FAMILIES, center_fraction, check_acceleration, fastmri_mask
from rsdmri.physics.masks.further import further_drop, further_mask
from rsdmri.physics.masks.law import Mask, SamplingLaw
from rsdmri.physics.masks.lines import FAMILIES, draw_mask, inclusion
from rsdmri.physics.masks.points import POINT_FAMILIES

__all__ = [
    "FAMILIES",
    "FASTMRI_FAMILIES",
    "POINT_FAMILIES",
    "Falloff",
    "Mask",
    "SamplingLaw",
    "achieved_acceleration",
    "acs_block",
    "acs_lines",
    "center_fraction",
    "check_acceleration",
    "describe",
    "draw_mask",
    "fastmri_mask",
    "further_drop",
    "further_mask",
    "inclusion",
    "partial_fourier",
    "pattern",
    "with_padding",
]
