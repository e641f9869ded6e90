"""Phase I: the corruption-aware teacher, one optimiser step at a time."""

import copy

import torch
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
    apply_gradients,
    learning_rate,
    load,
    load_moments,
    merge,
    moments,
    prefixed,
)


class TeacherStage:
    """Phase I: corruption-aware denoising.

    Args:
        config: settings.
        denoiser: network to train, on its device.
        batches: gives the batch of a key.
        shards: runs shares of a batch.
    """

    name = "teacher"

    def __init__(self, config: Config, denoiser: Denoiser, batches: BatchSource, shards: Shards):
        self.config, self.settings = config, config.teacher
        self.batch = self.settings.batch
        shards.processes.check_batch(self.name, self.batch)
        self.denoiser, self.batches, self.shards = denoiser.train(), batches, shards
        self.average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.parameters: list[Tensor] = list(denoiser.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=self.settings.learning_rate)

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``."""
        settings, processes = self.settings, self.shards.processes
        with processes.together():
            gradients, values = self._gradients(index)
        loss, *parts = merge(processes, gradients, values, settings.batch)
        rate = learning_rate(settings.learning_rate, index, progress, settings.warmup, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        decay = average_decay(settings.batch, (index + 1) * settings.batch, settings.ema_images)
        update_average(self.average, self.denoiser, decay)
        return {"loss": loss, **({"consistency": parts[0]} if parts else {}), "gradient": norm, "rate": rate}

    def _gradients(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """What this process's share of the batch adds to the gradient, and the share's losses."""
        settings, key, share = self.settings, (self.config.seed, self.name, index), self.shards.processes.share
        batch = self.batches(settings.batch, *key, positions=range(settings.batch)[share])
        whole = batch.among(share, settings.batch)
        generator = torch_generator(*key, device=batch.measured.device)
        draw = draw_for(self.config.objective, whole, generator, settings.sigma_mean, settings.sigma_std)[share]
        deeper = draw_consistency(whole, generator)[share] if settings.consistency else None
        return self.shards.gradients(
            lambda part: self._losses(batch[part], draw[part], None if deeper is None else deeper[part]),
            self.parameters,
            len(batch),
            of=settings.batch,
            rounds=settings.accumulate,
        )

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
