"""Phase I: the corruption-aware teacher."""

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.equivariance import Group, draw_equivariance, equivariance_loss
from rsdmri.diffusion.objectives import consistency_loss, draw_consistency, draw_for, teacher_loss
from rsdmri.training.shards import Shards
from rsdmri.training.single import Draws, SingleStage
from rsdmri.training.stage import BatchSource, compiled


class TeacherStage(SingleStage[Denoiser]):
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
        super().__init__(config, config.teacher, denoiser, batches, shards, held_out, tracked=config.snapshots > 0)
        self.settings, self.denoiser = config.teacher, denoiser
        compiled(denoiser, config.network.compile)

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

    def _losses(self, network: Denoiser, batch: Batch, draws: Draws) -> tuple[Tensor, ...]:
        draw, deeper, moved = draws
        loss = teacher_loss(self.config.objective, network, batch, draw)
        parts = []
        if deeper is not None:
            parts.append(consistency_loss(network, batch, deeper))
            loss = loss + self.settings.consistency * parts[-1]
        if moved is not None:
            parts.append(equivariance_loss(network, batch, moved))
            loss = loss + self.settings.equivariance * parts[-1]
        return loss, *parts

    def _terms(self) -> list[str]:
        return [name for name in ("consistency", "equivariance") if getattr(self.settings, name)]
