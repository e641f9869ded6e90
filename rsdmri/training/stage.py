"""What every stage of training is made of: its interface, the learning rate, the optimiser step, its state.

A stage owns its networks, averages and optimisers. Step ``i`` draws everything random from streams keyed by
(seed, stage, i), so that the state is just the tensors of `Stage.state`.
"""

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.runtime import seed_of
from rsdmri.training.distributed import Processes
from rsdmri.training.ema import Averages

Metrics = dict[str, float]
Network = TypeVar("Network", bound=nn.Module)


class BatchSource(Protocol):
    """Gives the batch of a key."""

    def __call__(self, count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        """Those items of the batch of ``count`` items that ``positions`` name, in their order; None: all."""


class Stage(Protocol):
    """What the loop needs of a stage.

    Attributes:
        name: of the stage.
        batch: images of a step.
        averages: of the weights.
        anew: how often the draws of a step were replaced, see `recovery.Draws`.
    """

    name: str
    batch: int
    averages: Averages[Any]
    anew: Callable[[int], int]

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``; ``progress`` in [0, 1] sets the learning rate."""

    def key(self, index: int) -> tuple[object, ...]:
        """Key of everything random in step ``index``."""

    def item_norms(self, index: int) -> list[float]:
        """Gradient norm of each slice that step ``index`` draws, alone; inf where its loss is not finite.

        All processes call it, each computes its share, and all get all.
        """

    def validate(self) -> Metrics:
        """Measures of the averaged weights on fixed slices and noise; empty where there are none.

        ``validation`` among them picks the best checkpoint, the lower the better.
        """

    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to go on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""


def learning_rate(base: float, index: int, progress: float, warmup: int, decay_from: float) -> float:
    """Linear warm-up over ``warmup`` steps, constant, then a straight fall to 2 % after ``decay_from``."""
    rate = base * min(1.0, (index + 1) / max(1, warmup))
    if progress > decay_from:
        rate *= max(0.02, (1 - progress) / max(1e-9, 1 - decay_from))
    return rate


def adam(parameters: list[Tensor], rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Adam:
    """Adam (Kingma and Ba 2015), each parameter updated in one pass where the device can: 3.5 times faster on a CPU."""
    fused = all(p.device.type == "cpu" or p.device.type == "cuda" for p in parameters)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=fused)


def compiled(denoiser: Denoiser, wanted: Literal["auto", "on", "off"]) -> Denoiser:
    """Have the network of ``denoiser`` compiled on first use: ``auto`` on CUDA alone, for it is slower on a CPU.

    Weights keep their names, copies are not compiled. Without CUDA graphs: slices differ in size.
    """
    able = denoiser.sigma_data.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if wanted == "on" or (wanted == "auto" and able):
        denoiser.network.compile()
    return denoiser


def merge(processes: Processes, gradients: list[Tensor], values: list[Tensor], batch: int) -> list[float]:
    """Add up the gradients of all processes, in place; return the means of the values over the ``batch`` items."""
    means = torch.stack([value.float().sum() for value in values]) / batch
    processes.add([*gradients, means])
    means_found: list[float] = means.tolist()
    return means_found


def apply_gradients(
    optimiser: torch.optim.Optimizer, parameters: list[Tensor], gradients: list[Tensor], rate: float, clip: float
) -> float:
    """Clip to the norm ``clip``, step at ``rate`` and return the norm before clipping."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if clip != float("inf"):
        torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp_max(1.0))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = _laid_out(gradient, parameter)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(norm)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with the strides of ``like``, for the fused step walks through memory and looks at no stride."""
    same = tensor.shape != like.shape or tensor.stride() == like.stride()
    return tensor if same else torch.empty_like(like).copy_(tensor)


def step_key(seed: int, name: str, index: int, anew: int) -> tuple[object, ...]:
    """Key of step ``index`` whose draws were replaced ``anew`` times; the index is last, so that the next is known."""
    return seed, (name if not anew else f"{name} anew {anew}"), index


def dropout_seeds(key: tuple[object, ...], batch: int) -> list[int]:
    """A seed for each item of the step of ``key``."""
    return [seed_of("dropout", *key, item) for item in range(batch)]


def gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> float:
    """Norm of the gradient of a loss ``(1,)``; inf where one of them is not finite."""
    if not math.isfinite(float(loss.detach())):
        return math.inf
    gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients if g is not None])))
    return norm if math.isfinite(norm) else math.inf


def frozen_view(module: Network) -> Network:
    """Copy whose parameters share the memory of ``module``'s but take no gradient."""
    view = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip(view.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return view


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Weights of ``module``, their names behind ``prefix`` and a dot."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def load(module: nn.Module, prefix: str, state: dict[str, Tensor]) -> None:
    """Give ``module`` the weights that `prefixed` named."""
    start = prefix + "."
    module.load_state_dict({name[len(start) :]: t for name, t in state.items() if name.startswith(start)})


def moments(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of ``optimiser``: step counts and moments as ``prefix.PARAMETER.NAME``."""
    found = optimiser.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": tensor for i, entry in found.items() for name, tensor in entry.items()}


def load_moments(prefix: str, optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Give ``optimiser`` the state that `moments` named."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        head, _, rest = key.partition(".")
        if head == prefix:
            index, _, name = rest.partition(".")
            moments.setdefault(int(index), {})[name] = _laid_out(tensor, parameters[int(index)].detach())
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
