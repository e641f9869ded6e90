"""Moving averages of network weights: an exponential one with a ramp, and power-function ones.

A power-function average is theta^(t) = (gamma + 1) / t^(gamma + 1) integral_0^t tau^gamma theta(tau) dtau: its length,
the standard deviation of that profile, is the share ``sigma_rel`` of the training so far, whatever that is (Karras et
al. 2024, section 3). Two of them are kept, from which others are made afterwards: see `rsdmri.training.post_hoc`.
While the ramp lasts, the exponential average is about a power-function one of ``sigma_rel`` 0.063.
"""

import copy
import math
from functools import lru_cache
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

TRACKED = (0.05, 0.10)

Network = TypeVar("Network", bound=nn.Module)


def average_decay(batch: int, images: int, half_life: float, ramp: float = 0.05) -> float:
    """Decay of one step: 0.5^(batch / half-life), the half-life at most ``ramp`` of the images seen so far."""
    effective = min(half_life, ramp * images)
    return 0.5 ** (batch / effective) if effective > 0 else 0.0


@lru_cache(maxsize=64)
def power_gamma(sigma_rel: float) -> float:
    """Exponent gamma >= 0 with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Errors:
        ValueError: ``sigma_rel`` is not in (0, 12^(-1/2)]; at the upper end all steps weigh the same.
    """
    if not 0 < sigma_rel <= 12**-0.5:
        raise ValueError(f"sigma_rel: expected a share above 0 and at most {12**-0.5:.4f}, got {sigma_rel:g}")
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def power_decay(step: int, sigma_rel: float) -> float:
    """Decay of step ``step`` (from 1): (1 - 1 / step)^(gamma + 1), exact for weights that rest between steps."""
    return (1 - 1 / step) ** (power_gamma(sigma_rel) + 1)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters; buffers are copied."""
    targets: list[Tensor] = [p.detach() for p in average.parameters()]
    sources: list[Tensor] = [p.detach() for p in model.parameters()]
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


class Averages(Generic[Network]):
    """The averages of one network in training.

    Args:
        model: the network; its present weights are where the averages start.
        kind: which average is the result: ``exponential``, or ``power``, the tracked one of the greatest length.
        batch: images of a step.
        half_life: of the exponential average, in images.
        tracked: keep the two power-function averages, too.
    """

    def __init__(
        self, model: Network, kind: Literal["exponential", "power"], batch: int, half_life: float, *, tracked: bool
    ):
        self.batch, self.half_life = batch, half_life
        names = ["average"] if kind == "exponential" else []
        names += [power_name(length) for length in TRACKED] if tracked or kind == "power" else []
        self._modules = {name: copy.deepcopy(model).eval().requires_grad_(False) for name in names}
        self.result = self._modules["average" if kind == "exponential" else power_name(max(TRACKED))]

    def update(self, model: Network, step: int) -> None:
        """Take in the weights after step ``step`` (from 1)."""
        if "average" in self._modules:
            decay = average_decay(self.batch, step * self.batch, self.half_life)
            update_average(self._modules["average"], model, decay)
        for length in TRACKED:
            if power_name(length) in self._modules:
                update_average(self._modules[power_name(length)], model, power_decay(step, length))

    def state(self) -> dict[str, Tensor]:
        """Weights of every average, behind its name and a dot."""
        return {f"{name}.{key}": t for name, module in self._modules.items() for key, t in module.state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned; other entries are passed over."""
        for name, module in self._modules.items():
            start = name + "."
            module.load_state_dict({key[len(start) :]: t for key, t in state.items() if key.startswith(start)})

    def snapshot(self) -> dict[str, Tensor]:
        """`state` of the power-function averages alone; empty where they are not kept."""
        return {key: tensor for key, tensor in self.state().items() if not key.startswith("average.")}


def power_name(sigma_rel: float) -> str:
    """Name of a power-function average in files: ``power_050`` for 0.050."""
    return f"power_{math.floor(1000 * sigma_rel + 0.5):03d}"
