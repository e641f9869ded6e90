"""What is known of a scan beside its samples: contrast and field strength, for the network to condition on.

Conditions of a batch are two numbers an image, float32 ``(batch, 2)``: the contrast's place in `CONTRASTS` and the
field strength in tesla; 0 says that it is not known.
"""

import math

import torch
from torch import Tensor, nn

from rsdmri.errors import InputError

CONTRASTS = ("unknown", "T1w", "T2w", "PDw", "FLAIR")
NAMES = ("contrast", "field")
_USUAL_TESLA = 1.5
STRONGEST_TESLA = 100.0


def encode(contrast: str | None = None, field: float | None = None) -> Tensor:
    """Conditions ``(2,)`` of a contrast, one of `CONTRASTS`, and a field strength in tesla; None where not known.

    Errors:
        InputError: no such contrast, no such field.
    """
    known = {name.lower(): place for place, name in enumerate(CONTRASTS)}
    place = known.get((contrast or CONTRASTS[0]).lower())
    if place is None:
        raise InputError(f"--contrast {contrast}: expected one of {', '.join(CONTRASTS)}")
    if field is not None and not 0 < field < STRONGEST_TESLA:
        raise InputError(f"--field {field:g}: expected the field strength in tesla, such as 1.5 or 3")
    return torch.tensor([float(place), field or 0.0])


def forget(conditions: Tensor, generator: torch.Generator, share: float = 0.1) -> Tensor:
    """Conditions ``(batch, 2)``, each made unknown with probability ``share``, half of it for both at once.

    What to do where nothing is known must be learnt, too (Ho and Salimans 2021).
    """
    drawn = torch.rand((len(conditions), 1 + len(NAMES)), generator=generator, device=conditions.device) < share / 2
    return torch.where(drawn[:, :1] | drawn[:, 1:], 0, conditions)


class ConditionEmbedding(nn.Module):
    """Map conditions ``(batch, 2)`` to what is added to the embedding of the noise level, ``(batch, width)``.

    W f with features f: 1 in the place of the contrast; 1 and ln(B / 1.5 T) for the field B. All of them are 0 where
    nothing is known, and W starts at 0: the network begins as the one without conditions, and unknown remains that.

    Args:
        names: which of `NAMES`.
        width: of the embedding.
    """

    def __init__(self, names: tuple[str, ...], width: int):
        super().__init__()
        self.names = names
        self.linear = nn.Linear(feature_count(names), width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, conditions: Tensor) -> Tensor:
        """Return W f."""
        return self.linear(features(conditions, self.names))


def features(conditions: Tensor, names: tuple[str, ...]) -> Tensor:
    """The numbers f of `ConditionEmbedding`, float32 ``(batch, feature_count(names))``.

    Errors:
        ValueError: conditions of another shape.
    """
    if conditions.ndim != 2 or conditions.shape[1] != len(NAMES):
        raise ValueError(f"conditions: expected (batch, {len(NAMES)}), got {tuple(conditions.shape)}; see `encode`")
    parts = []
    if "contrast" in names:
        places = torch.arange(1, len(CONTRASTS), device=conditions.device)
        parts.append((conditions[:, :1] == places).float())
    if "field" in names:
        tesla = conditions[:, 1:]
        logarithm = torch.where(tesla > 0, tesla.clamp_min(1e-3).log() - math.log(_USUAL_TESLA), 0)
        parts += [(tesla > 0).float(), logarithm]
    return torch.cat(parts, dim=1)


def feature_count(names: tuple[str, ...]) -> int:
    """Number of `features`."""
    return (len(CONTRASTS) - 1) * ("contrast" in names) + 2 * ("field" in names)
