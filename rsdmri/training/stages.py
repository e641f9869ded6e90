"""The two stages of training, each one optimiser step at a time.

A stage owns its networks, averages and optimisers. Step ``i`` draws everything random from streams keyed by
(seed, stage, i), so that the state is just the tensors of `Stage.state`.
"""

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from rsdmri.config import Config
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.objectives import Batch, NoiseDraw, ambient_loss, draw_noise, image_loss
from rsdmri.diffusion.schedule import complex_noise
from rsdmri.distillation.generator import Generator
from rsdmri.distillation.objectives import draw_level, generator_loss
from rsdmri.physics.sense import Sense, sense
from rsdmri.runtime import torch_generator
from rsdmri.training.ema import average_decay, update_average
from rsdmri.training.shards import Shards

BatchSource = Callable[..., Batch]
Metrics = dict[str, float]


class Stage(Protocol):
    """What the loop needs of a stage."""

    name: str
    batch: int

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``; ``progress`` in [0, 1] sets the learning rate."""

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


class TeacherStage:
    """Phase I: ambient denoising.

    Args:
        config: settings.
        denoiser: network to train, on its device.
        batches: ``batches(count, *key)`` gives the batch of a key.
        shards: runs shares of a batch.
    """

    name = "teacher"

    def __init__(self, config: Config, denoiser: Denoiser, batches: BatchSource, shards: Shards):
        self.config, self.settings = config, config.teacher
        self.batch = self.settings.batch
        self.denoiser, self.batches, self.shards = denoiser.train(), batches, shards
        self.average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.parameters: list[Tensor] = list(denoiser.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=self.settings.learning_rate)

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``."""
        settings = self.settings
        batch = self.batches(settings.batch, self.config.seed, "teacher", index)
        generator = torch_generator(self.config.seed, "teacher", index, device=batch.kspace.device)
        draw = draw_noise(batch, generator, settings.sigma_mean, settings.sigma_std)
        gradients, (loss,) = self.shards.gradients(
            lambda share: (ambient_loss(self.denoiser, batch[share], draw[share]),), self.parameters, len(batch)
        )
        rate = learning_rate(settings.learning_rate, index, progress, settings.warmup, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        decay = average_decay(settings.batch, (index + 1) * settings.batch, settings.ema_images)
        update_average(self.average, self.denoiser, decay)
        return {"loss": float(loss.mean()), "gradient": norm, "rate": rate}

    def state(self) -> dict[str, Tensor]:
        """Weights, average and moments."""
        return {
            **_prefixed("model", self.denoiser),
            **_prefixed("average", self.average),
            **_moments("adam", self.optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        _load(self.denoiser, "model", state)
        _load(self.average, "average", state)
        _load_moments("adam", self.optimiser, state)


class PriorStage:
    """Phase II: distillation of the teacher into a one-step generator, with a fake score that follows it.

    Args:
        config: settings.
        teacher: the trained denoiser, frozen.
        batches: ``batches(count, *key)`` gives the batch of a key.
        shards: runs shares of a batch.
    """

    name = "prior"

    def __init__(self, config: Config, teacher: Denoiser, batches: BatchSource, shards: Shards):
        self.config, self.settings = config, config.prior
        self.batch = self.settings.batch
        self.teacher = teacher.eval().requires_grad_(False)
        self.fake_score = copy.deepcopy(teacher).train().requires_grad_(True)
        self.generator = Generator(copy.deepcopy(teacher), self.settings.sigma_init).train().requires_grad_(True)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._frozen_fake = _view(self.fake_score)
        self.batches, self.shards = batches, shards
        self._of_generator: list[Tensor] = list(self.generator.parameters())
        self._of_fake: list[Tensor] = list(self.fake_score.parameters())
        self.optimiser = torch.optim.Adam(self._of_generator, lr=self.settings.learning_rate, betas=(0.0, 0.999))
        self.fake_optimiser = torch.optim.Adam(self._of_fake, lr=self.settings.fake_learning_rate, betas=(0.0, 0.999))

    def step(self, index: int, progress: float) -> Metrics:
        """Take one step of the fake score and one of the generator, on the same generated images."""
        settings, key = self.settings, (self.config.seed, "prior", index)
        both = self.batches(2 * settings.batch, *key)  # one draw, so that all have the same size
        batch, fresh = both[: settings.batch], both[settings.batch :]
        generator = torch_generator(*key, device=batch.kspace.device)
        latent = complex_noise(batch.kspace[:, 0], generator)
        level = draw_level(batch, generator, settings.t_max)
        teacher_settings = self.config.teacher
        draw = draw_noise(fresh, generator, teacher_settings.sigma_mean, teacher_settings.sigma_std)

        def loss(share: slice) -> tuple[Tensor, ...]:
            return self._losses(batch[share], fresh[share], latent[share], level[share], draw[share])

        parameters = self._of_generator + self._of_fake
        gradients, values = self.shards.gradients(loss, parameters, len(batch))
        _, of_generator, of_fake, gap, spread = values
        count = len(self._of_generator)
        rate = learning_rate(settings.learning_rate, index, progress, 0, settings.decay_from)
        fake_rate = learning_rate(settings.fake_learning_rate, index, progress, 0, settings.decay_from)
        norm = apply_gradients(self.optimiser, self._of_generator, gradients[:count], rate, float("inf"))
        apply_gradients(self.fake_optimiser, self._of_fake, gradients[count:], fake_rate, settings.clip)
        decay = average_decay(settings.batch, (index + 1) * settings.batch, settings.ema_images)
        update_average(self.average, self.generator, decay)
        return {
            "loss": float(of_generator.mean()),
            "fake_loss": float(of_fake.mean()),
            "score_gap": float(gap.mean()),
            "sample_std": float(spread.mean()),
            "gradient": norm,
            "rate": rate,
        }

    def _losses(
        self, batch: Batch, fresh: Batch, latent: Tensor, level: NoiseDraw, draw: NoiseDraw
    ) -> tuple[Tensor, ...]:
        images = self.generator(latent, _shown(batch))
        found = generator_loss(
            self.settings.objective, images, self.teacher, self._frozen_fake, batch, level, self.settings.alpha
        )
        fake = image_loss(self.fake_score, images.detach(), fresh, draw)
        spread = torch.view_as_real(images.detach()).flatten(1).std(dim=1)
        return self.settings.loss_scale * found.loss + fake, found.loss, fake, found.gap, spread

    def state(self) -> dict[str, Tensor]:
        """Weights, average and moments of both networks."""
        return {
            **_prefixed("generator", self.generator),
            **_prefixed("average", self.average),
            **_prefixed("fake_score", self.fake_score),
            **_moments("adam", self.optimiser),
            **_moments("fake_adam", self.fake_optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        _load(self.generator, "generator", state)
        _load(self.average, "average", state)
        _load(self.fake_score, "fake_score", state)
        _load_moments("adam", self.optimiser, state)
        _load_moments("fake_adam", self.fake_optimiser, state)


def apply_gradients(
    optimiser: torch.optim.Optimizer, parameters: list[Tensor], gradients: list[Tensor], rate: float, clip: float
) -> float:
    """Clip to the norm ``clip``, step at ``rate`` and return the norm before clipping."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if clip != float("inf"):
        torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp_max(1.0))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(norm)


def _shown(batch: Batch) -> Sense:
    return sense(batch.maps, batch.further_mask)


def _view(module: Denoiser) -> Denoiser:
    """Copy whose parameters share the memory of ``module``'s but take no gradient."""
    view = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip(view.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return view


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def _load(module: nn.Module, prefix: str, state: dict[str, Tensor]) -> None:
    start = prefix + "."
    module.load_state_dict({name[len(start) :]: t for name, t in state.items() if name.startswith(start)})


def _moments(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = optimiser.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": tensor for i, entry in found.items() for name, tensor in entry.items()}


def _load_moments(prefix: str, optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        head, _, rest = key.partition(".")
        if head == prefix:
            index, _, name = rest.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
