"""Phase II: distillation, one optimiser step of the generator and one of the fake score at a time."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch, NoiseDraw, draw_noise
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.objectives import image_loss
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.generator import Generator
from rsdmri.distillation.objectives import draw_level, generator_loss
from rsdmri.runtime import torch_generator
from rsdmri.training.ema import average_decay, update_average
from rsdmri.training.shards import Shards
from rsdmri.training.stage import (
    BatchSource,
    Metrics,
    apply_gradients,
    learning_rate,
    load,
    load_moments,
    moments,
    prefixed,
)


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
        generator = torch_generator(*key, device=batch.measured.device)
        latent = unit_noise(batch.image, generator)
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
        images = self.generator(latent, batch.shown, batch.conditions)
        fresh = replace(fresh, conditions=batch.conditions)
        found = generator_loss(
            self.settings.objective, images, self.teacher, self._frozen_fake, batch, level, self.settings.alpha
        )
        fake = image_loss(self.fake_score, images.detach(), fresh, draw)
        spread = torch.view_as_real(images.detach()).flatten(1).std(dim=1)
        return self.settings.loss_scale * found.loss + fake, found.loss, fake, found.gap, spread

    def state(self) -> dict[str, Tensor]:
        """Weights, average and moments of both networks."""
        return {
            **prefixed("generator", self.generator),
            **prefixed("average", self.average),
            **prefixed("fake_score", self.fake_score),
            **moments("adam", self.optimiser),
            **moments("fake_adam", self.fake_optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.generator, "generator", state)
        load(self.average, "average", state)
        load(self.fake_score, "fake_score", state)
        load_moments("adam", self.optimiser, state)
        load_moments("fake_adam", self.fake_optimiser, state)


def _view(module: Denoiser) -> Denoiser:
    """Copy whose parameters share the memory of ``module``'s but take no gradient."""
    view = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip(view.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return view
