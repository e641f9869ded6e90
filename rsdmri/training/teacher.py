"""Phase I: the corruption-aware teacher, one optimiser step at a time."""

import copy
from typing import TypeVar

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.equivariance import EquivarianceDraw, Group, draw_equivariance, equivariance_loss
from rsdmri.diffusion.objectives import consistency_loss, draw_consistency, draw_for, teacher_loss
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


class TeacherStage:
    """Phase I: corruption-aware denoising.

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
        batch = self.batches(settings.batch, self.config.seed, self.name, index)
        generator = torch_generator(self.config.seed, self.name, index, device=batch.measured.device)
        draw = draw_for(self.config.objective, batch, generator, settings.sigma_mean, settings.sigma_std)
        deeper = draw_consistency(batch, generator) if settings.consistency else None
        moved = self._draw_equivariance(batch, generator) if settings.equivariance else None
        gradients, (total, *parts) = self.shards.gradients(
            lambda share: self._losses(batch[share], draw[share], _share(deeper, share), _share(moved, share)),
            self.parameters,
            len(batch),
        )
        rate = learning_rate(settings.learning_rate, index, progress, settings.warmup, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        decay = average_decay(settings.batch, (index + 1) * settings.batch, settings.ema_images)
        update_average(self.average, self.denoiser, decay)
        names = [name for name in ("consistency", "equivariance") if getattr(settings, name)]
        named = {name: float(part.mean()) for name, part in zip(names, parts, strict=True)}
        return {"loss": float(total.mean()), **named, "gradient": norm, "rate": rate}

    def _draw_equivariance(self, batch: Batch, generator: torch.Generator) -> EquivarianceDraw:
        settings = self.settings
        group = Group(settings.equivariance_shift, settings.equivariance_flips, settings.equivariance_rotation)
        law = settings.sigma_mean, settings.sigma_std
        return draw_equivariance(self.config.objective, batch, group, generator, *law)

    def _losses(
        self, batch: Batch, draw: NoiseDraw, deeper: NoiseDraw | None, moved: EquivarianceDraw | None
    ) -> tuple[Tensor, ...]:
        loss = teacher_loss(self.config.objective, self.denoiser, batch, draw)
        parts = []
        if deeper is not None:
            parts.append(consistency_loss(self.denoiser, batch, deeper))
            loss = loss + self.settings.consistency * parts[-1]
        if moved is not None:
            parts.append(equivariance_loss(self.denoiser, batch, moved))
            loss = loss + self.settings.equivariance * parts[-1]
        return loss, *parts

    def state(self) -> dict[str, Tensor]:
        """Weights, average and moments."""
        return {
            **prefixed("model", self.denoiser),
            **prefixed("average", self.average),
            **moments("adam", self.optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.denoiser, "model", state)
        load(self.average, "average", state)
        load_moments("adam", self.optimiser, state)


Draw = TypeVar("Draw", NoiseDraw, EquivarianceDraw)


def _share(draw: Draw | None, share: slice) -> Draw | None:
    return None if draw is None else draw[share]
