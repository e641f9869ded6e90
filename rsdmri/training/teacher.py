"""Phase I: the corruption-aware teacher, one optimiser step at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.dropout import item_seeds
from rsdmri.diffusion.equivariance import EquivarianceDraw, Group, draw_equivariance, equivariance_loss
from rsdmri.diffusion.objectives import consistency_loss, draw_consistency, draw_for, teacher_loss
from rsdmri.runtime import torch_generator
from rsdmri.training.ema import Averages
from rsdmri.training.shards import Shards
from rsdmri.training.stage import (
    BatchSource,
    Metrics,
    adam,
    apply_gradients,
    compiled,
    dropout_seeds,
    gradient_norm,
    learning_rate,
    load,
    load_moments,
    merge,
    moments,
    prefixed,
    step_key,
)
from rsdmri.training.validation import fixed_batches

Draws = tuple[NoiseDraw, NoiseDraw | None, EquivarianceDraw | None]


class TeacherStage:
    """Phase I: corruption-aware denoising.

    Args:
        config: settings.
        denoiser: network to train, on its device.
        batches: gives the batch of a key.
        shards: runs shares of a batch.
        held_out: gives the batches that `validate` looks at.
    """

    name = "teacher"

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        batches: BatchSource,
        shards: Shards,
        held_out: BatchSource | None = None,
    ):
        self.config, self.settings = config, config.teacher
        self.batch = self.settings.batch
        shards.processes.check_batch(self.name, self.batch)
        self.anew: Callable[[int], int] = lambda index: 0
        self.denoiser, self.batches, self.shards, self.held_out = denoiser.train(), batches, shards, held_out
        self.averages = Averages(
            denoiser, self.settings.average, self.batch, self.settings.ema_images, tracked=config.snapshots > 0
        )
        self.average = self.averages.result
        self.parameters: list[Tensor] = list(denoiser.parameters())
        self.optimiser = adam(self.parameters, self.settings.learning_rate)
        compiled(denoiser, config.network.compile)

    def key(self, index: int) -> tuple[object, ...]:
        """Key of everything random in step ``index``."""
        return step_key(self.config.seed, self.name, index, self.anew(index))

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``."""
        settings, processes = self.settings, self.shards.processes
        with processes.together():
            loss, count = self._drawn(index, processes.share)
            gradients, values = self.shards.gradients(
                loss, self.parameters, count, of=self.batch, rounds=settings.accumulate
            )
        total, *parts = merge(processes, gradients, values, self.batch)
        rate = learning_rate(settings.learning_rate, index, progress, settings.warmup, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        self.averages.update(self.denoiser, index + 1)
        names = [name for name in ("consistency", "equivariance") if getattr(settings, name)]
        return {"loss": total, **dict(zip(names, parts, strict=True)), "gradient": norm, "rate": rate}

    def item_norms(self, index: int) -> list[float]:
        """Gradient norm of each slice that step ``index`` draws, alone; inf where its loss is not finite."""
        processes, norms = self.shards.processes, [0.0] * self.batch
        with processes.together():
            loss, count = self._drawn(index, processes.share)
            norms[processes.share] = [gradient_norm(loss(slice(k, k + 1))[0], self.parameters) for k in range(count)]
        return processes.largest(*norms)

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Mean loss of the averaged weights on fixed slices and noise; empty without slices, or if it is no number."""
        if self.held_out is None:
            return {}
        losses = []
        for batch, generator in fixed_batches(self.held_out, (self.config.seed, "validation"), self.batch):
            losses.append(self._losses(self.average, batch, *self._noise(batch, generator))[0])
        found = float(torch.cat(losses).mean())
        return {"validation": found} if math.isfinite(found) else {}

    def _drawn(self, index: int, share: slice) -> tuple[Callable[[slice], tuple[Tensor, ...]], int]:
        """Losses of a part of the items ``share`` of the batch of step ``index``, and how many items these are."""
        key, count = self.key(index), self.batch
        batch = self.batches(count, *key, positions=range(count)[share])
        generator = torch_generator(*key, device=batch.measured.device)
        draws = _cut(self._noise(batch.among(share, count), generator), share)
        seeds = dropout_seeds(key, count)[share]

        def loss(part: slice) -> tuple[Tensor, ...]:
            with item_seeds(seeds[part]):
                return self._losses(self.denoiser, batch[part], *_cut(draws, part))

        return loss, len(batch)

    def _noise(self, batch: Batch, generator: torch.Generator) -> Draws:
        settings, objective = self.settings, self.config.objective
        law = settings.sigma_mean, settings.sigma_std
        draw = draw_for(objective, batch, generator, *law)
        deeper = draw_consistency(batch, generator) if settings.consistency else None
        if not settings.equivariance:
            return draw, deeper, None
        along = settings.equivariance_flips
        flips = along in ("y", "both"), along in ("x", "both")
        group = Group(settings.equivariance_shift, flips, settings.equivariance_rotation)
        return draw, deeper, draw_equivariance(objective, batch, group, generator, *law)

    def _losses(
        self,
        denoiser: Denoiser,
        batch: Batch,
        draw: NoiseDraw,
        deeper: NoiseDraw | None,
        moved: EquivarianceDraw | None,
    ) -> tuple[Tensor, ...]:
        loss = teacher_loss(self.config.objective, denoiser, batch, draw)
        parts = []
        if deeper is not None:
            parts.append(consistency_loss(denoiser, batch, deeper))
            loss = loss + self.settings.consistency * parts[-1]
        if moved is not None:
            parts.append(equivariance_loss(denoiser, batch, moved))
            loss = loss + self.settings.equivariance * parts[-1]
        return loss, *parts

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and moments."""
        return {
            **prefixed("model", self.denoiser),
            **self.averages.state(),
            **moments("adam", self.optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.denoiser, "model", state)
        self.averages.load_state(state)
        load_moments("adam", self.optimiser, state)


def _cut(draws: Draws, part: slice) -> Draws:
    """The draws of the items ``part``."""
    draw, deeper, moved = draws
    return draw[part], None if deeper is None else deeper[part], None if moved is None else moved[part]
