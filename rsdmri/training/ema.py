"""Moving average of network weights."""

import torch
from torch import Tensor, nn


def average_decay(batch: int, images: int, half_life: float, ramp: float = 0.05) -> float:
    """Decay of one step: 0.5^(batch / half-life), the half-life at most ``ramp`` of the images seen so far."""
    effective = min(half_life, ramp * images)
    return 0.5 ** (batch / effective) if effective > 0 else 0.0


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters; buffers are copied."""
    targets: list[Tensor] = [p.detach() for p in average.parameters()]
    sources: list[Tensor] = [p.detach() for p in model.parameters()]
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
