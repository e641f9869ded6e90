"""What scans say that a network can be conditioned on: contrast and field strength."""

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.derived import contrast
from rsdmri.data.scan import Header
from rsdmri.diffusion.conditions import CONTRASTS, STRONGEST_TESLA, encode, forget
from rsdmri.runtime import torch_generator


def scan_conditions(header: Header | None, *words: str) -> Tensor:
    """Conditions ``(2,)``: the contrast told by the first of ``words``, names of acquisitions; the header's field."""
    told = next((found for word in words if (found := contrast(word)) in CONTRASTS), None)
    field = 0.0 if header is None else header.field_strength_t or 0.0
    return encode(told, field if 0 < field < STRONGEST_TESLA else None)


def drawn_conditions(config: Config, slices: TrainingSlices, items: list[int], *key: object) -> Tensor | None:
    """Conditions ``(batch, 2)`` of ``items``, some withheld at random, see `forget`; None if they are not asked for.

    A contrast that the file does not tell is taken from the manifest.
    """
    if not config.network.conditions:
        return None
    refs = [slices.slices[item] for item in items]
    told = torch.stack([scan_conditions(ref.file.header, ref.file.acquisition, ref.contrast) for ref in refs])
    return forget(told, torch_generator("conditions", *key))
