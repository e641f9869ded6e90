"""What training costs, worked out from shapes alone: operations per image, memory by batch size.

The network runs on tensors without values, so that counting a large one needs neither time nor memory. Operations are
those of its convolutions and matrix products (a multiplication and an addition make two) and, apart from them, those
of the acquisition operator, a complex transform of n samples taken as 5 n log2 n.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rsdmri.config import Config
from rsdmri.diffusion.backbones import build_backbone
from rsdmri.diffusion.unet import ResidualBlock, SelfAttention, parameter_count
from rsdmri.distillation.discriminator import View
from rsdmri.training.adversary import build_discriminator

StageName = Literal["teacher", "prior", "posterior"]
_DESCENT, _DEEPER = 4, 3  # evaluations of the consistency term without and with gradient
_PLAY = 11  # evaluations' worth of operations that both players and the gradient penalty cost, with gradients
_PLAYED = 4  # evaluations of the discriminator that keep what gradients need
_IN_FLIGHT = 5  # activations, the largest, that a backward pass holds beside what the forward one kept
_COIL_STACKS = 14  # complex coil images: k-space and maps as drawn, shared out and prepared, and what losses make


@dataclass(frozen=True)
class SliceSize:
    """Size of a training slice: ``coils`` (0: images without coils), matrix (y, x), ``lines`` or points sampled."""

    coils: int
    height: int
    width: int
    lines: bool = True


@dataclass(frozen=True)
class NetworkCost:
    """Cost of the network for one image.

    Attributes:
        forward: operations of an evaluation.
        learning: of the gradient of the weights, on top.
        passing: of the gradient of the input with frozen weights, on top.
        saved: bytes that an evaluation keeps for its gradient.
        largest: bytes of the largest tensor among these.
        parameters: number of weights.
    """

    forward: int
    learning: int
    passing: int
    saved: int
    largest: int
    parameters: int


@dataclass(frozen=True)
class Operations:
    """Operations of a training step per image: of the network, and of the acquisition operator."""

    network: float
    physics: float

    @property
    def total(self) -> float:
        """Both."""
        return self.network + self.physics


@dataclass(frozen=True)
class Memory:
    """Bytes that a training adds to its process.

    ``fixed``, ``item`` for each image that is worked on, and ``waiting`` for each that waits for its turn in a batch
    taken in parts.
    """

    fixed: float
    item: float
    waiting: float = 0.0

    def of(self, batch: int, parts: int = 1) -> float:
        """Bytes at ``batch`` images taken in ``parts``."""
        at_once = -(-batch // parts)
        return self.fixed + at_once * self.item + (batch - at_once) * self.waiting

    def largest_batch(self, free: float) -> int:
        """Largest batch within ``free`` bytes; 0 where not even one image fits."""
        return max(0, int((free - self.fixed) // self.item))


@functools.lru_cache(8)
def network_cost(config: Config, size: SliceSize) -> NetworkCost:
    """Count one image of ``size`` through the network of ``config``, in float32.

    The gradient of a product of matrices is two such products, one for each factor; images need none.
    """
    network = build_backbone(config).eval().to("meta")  # dropout would ask for its seeds
    x = torch.empty(1, network.inputs, size.height, size.width, device="meta")
    return _counted(network, lambda: network(x, torch.empty(1, device="meta")))


@functools.lru_cache(8)
def discriminator_cost(config: Config, size: SliceSize) -> NetworkCost | None:
    """As `network_cost`, of the discriminator; None where none is trained."""
    if config.prior.distils and config.prior.adversarial == 0:
        return None
    network = build_discriminator(config, 1.0).to("meta")
    kind = torch.complex64 if config.corruption.kind == "fourier" else torch.float32
    shape = 1, size.height, size.width
    view = View(torch.empty(shape, dtype=kind, device="meta"), torch.empty(shape, dtype=torch.bool, device="meta"))
    return _counted(network, lambda: network(view))


def _counted(network: nn.Module, evaluate: Callable[[], Tensor]) -> NetworkCost:
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    counts: dict[nn.Module, int] = {}
    attending: list[int] = []  # positions seen by the attention that is being evaluated
    kept: dict[int, Tensor] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            counts[module] = 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, SelfAttention):
            counts[module] = 4 * inputs[0].numel() * attending.pop()
        elif isinstance(module, ResidualBlock) and module.conv_in not in counts:  # on the way up, in two parts
            fine, _, coarse = inputs
            counts[module] = 2 * module.conv_in.out_channels * ((9 + 1) * fine.numel() + (16 + 1) * coarse.numel())

    def keep(tensor: Tensor) -> Tensor:
        scores = bool(attending) and tensor.shape[-2:] == (attending[0], attending[0])  # kernels compute these anew
        if tensor.untyped_storage()._cdata not in weights and not scores:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    for module in network.modules():
        module.register_forward_hook(count)
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(lambda _, inputs: attending.append(math.prod(inputs[0].shape[-2:])))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluate()
    forward = sum(counts.values())
    attention = sum(n for module, n in counts.items() if isinstance(module, SelfAttention))
    saved = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    first = next(n for module, n in counts.items() if isinstance(module, nn.Conv2d))
    learning, passing = 2 * forward - first, forward + attention
    return NetworkCost(forward, learning, passing, sum(saved), max(saved), parameter_count(network))


def operations(config: Config, stage: StageName, size: SliceSize, cost: NetworkCost) -> Operations:
    """Operations of a step of ``stage`` for one image."""
    learn, passed = cost.forward + cost.learning, cost.forward + cost.passing
    if stage == "teacher":
        extra = _DESCENT * cost.forward + _DEEPER * learn if config.teacher.consistency else 0
        return Operations(learn + extra, _teacher_physics(config, size) * (_DESCENT + _DEEPER + 1 if extra else 1))
    if stage == "posterior":  # two draws that share all levels but the last
        levels = len(config.posterior.levels)
        starts, agreed = 2 if levels == 1 else 1, levels - 1
        physics = agreed * _normal(size) + (starts + 2 * agreed) * _inverse(config, size, gradient=False)
        return Operations((levels + 1) * learn, physics + 6 * _transform(size))
    against = discriminator_cost(config, size)
    game = 0 if against is None else _PLAY * against.forward
    scores = {"sid": learn + 2 * passed, "dmd": learn + 2 * cost.forward, "sds": learn + cost.forward, "ambient-gan": 0}
    return Operations(learn + scores[config.prior.objective] + game, _prior_physics(config, size))


def _teacher_physics(config: Config, size: SliceSize) -> float:
    normal, transform = _normal(size), _transform(size)
    noise = normal if config.objective == "ambient" else 0  # else it is added to the measurements
    return noise + 3 * transform + _inverse(config, size, gradient=False)


def _prior_physics(config: Config, size: SliceSize) -> float:
    normal, transform, kind = _normal(size), _transform(size), config.prior.objective
    generated = normal + _inverse(config, size, gradient=False)
    game = 0 if discriminator_cost(config, size) is None else 2 * normal + 2 * transform
    if not config.prior.distils:
        return generated + game
    back = kind == "sid"
    scores = (2 if back else 1) * normal + (1 if kind == "sds" else 2) * _inverse(config, size, gradient=back)
    return generated + game + scores + 2 * normal + _inverse(config, size, gradient=False) + 2 * transform


def _inverse(config: Config, size: SliceSize, *, gradient: bool) -> float:
    """The conjugate gradients of one denoiser evaluation, and of its gradient with respect to the input."""
    solve = config.network.cg_iterations * (_normal(size) + 24 * size.height * size.width)
    if config.preconditioning == "operator":
        return (2 if gradient else 1) * solve
    return 2 * (solve + _normal(size)) if config.preconditioning == "consistent" else 0


def _normal(size: SliceSize) -> float:
    """A^H A: two transforms of each coil image, along x alone for lines, and products with maps and mask."""
    samples = size.coils * size.height * size.width
    length = size.width if size.lines else size.width * size.height
    return samples * (2 * 5 * math.log2(length) + 16)


def _transform(size: SliceSize) -> float:
    """A or A^H: one transform of each coil image, and products with maps and phase."""
    samples = size.coils * size.height * size.width
    return samples * (5 * math.log2(size.height * size.width) + 12)


def memory(
    config: Config, stage: StageName, size: SliceSize, cost: NetworkCost, *, shares: int = 1, half: bool = False
) -> Memory:
    """Memory of ``stage`` while it runs, ``shares`` threads computing gradients, ``half`` with bfloat16 activations.

    Fixed are weights, averages, moments and gradients; each image adds what evaluations keep for their gradient, the
    tensors of a backward pass in flight, and its coil images.
    """
    weights = 4 * cost.parameters
    single = stage != "prior" or not config.prior.distils
    copies = 4 + shares + 1 if single else 8 + 2 * (shares + 1)
    against = discriminator_cost(config, size) if stage == "prior" else None
    saved = cost.saved * (0.5 if half else 1.0)
    evaluations = {"sid": 4, "ambient-gan": 1}.get(config.prior.objective, 2) if stage == "prior" else 1
    if stage == "posterior":
        evaluations = len(config.posterior.levels) + 1
    if stage == "teacher" and config.teacher.consistency:
        evaluations += _DEEPER
    pixels = 8 * size.height * size.width
    item = evaluations * saved + _IN_FLIGHT * cost.largest + pixels * (_COIL_STACKS * size.coils + 16)
    fixed = float(copies * weights)
    if against is not None:
        item += _PLAYED * against.saved
        fixed += 4 * (3 + shares + 1) * against.parameters
    return Memory(fixed, item, 2 * pixels * max(1, size.coils))  # k-space and maps
