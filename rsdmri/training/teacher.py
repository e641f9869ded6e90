"""Phase I: the corruption-aware teacher, one optimiser step at a time."""

import copy

from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.objectives import consistency_loss, draw_consistency, draw_for, teacher_loss
from rsdmri.runtime import torch_generator
from rsdmri.training.ema import average_decay, update_average
from rsdmri.training.shards import Shards
from rsdmri.training.stage import (
    BatchSource,
    Metrics,
    adam,
    apply_gradients,
    compiled,
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
        self.optimiser = adam(self.parameters, self.settings.learning_rate)
        compiled(denoiser, config.network.compile)

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``."""
        settings = self.settings
        batch = self.batches(settings.batch, self.config.seed, self.name, index)
        generator = torch_generator(self.config.seed, self.name, index, device=batch.measured.device)
        draw = draw_for(self.config.objective, batch, generator, settings.sigma_mean, settings.sigma_std)
        deeper = draw_consistency(batch, generator) if settings.consistency else None
        gradients, (total, *parts) = self.shards.gradients(
            lambda share: self._losses(batch[share], draw[share], None if deeper is None else deeper[share]),
            self.parameters,
            len(batch),
        )
        rate = learning_rate(settings.learning_rate, index, progress, settings.warmup, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        decay = average_decay(settings.batch, (index + 1) * settings.batch, settings.ema_images)
        update_average(self.average, self.denoiser, decay)
        named = {"consistency": float(parts[0].mean())} if parts else {}
        return {"loss": float(total.mean()), **named, "gradient": norm, "rate": rate}

    def _losses(self, batch: Batch, draw: NoiseDraw, deeper: NoiseDraw | None) -> tuple[Tensor, ...]:
        loss = teacher_loss(self.config.objective, self.denoiser, batch, draw)
        if deeper is None:
            return (loss,)
        consistency = consistency_loss(self.denoiser, batch, deeper)
        return loss + self.settings.consistency * consistency, consistency

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
