"""A network that draws from the posterior in few evaluations, fine-tuned on held-out acquired lines."""

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.amortised import PosteriorSampler, held_out_score
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.training.shards import Shards
from rsdmri.training.single import Draws, SingleStage
from rsdmri.training.stage import BatchSource, compiled


class PosteriorStage(SingleStage[PosteriorSampler]):
    """Fine-tuning by `held_out_score` of two draws of each slice.

    Args:
        config: settings.
        denoiser: trained network that it starts from.
        batches: gives the batch of a key, with the noise of each slice.
        shards: runs shares of a batch.
        held_out: gives the batches that `validate` looks at; the score is proper there, too.
    """

    name = "posterior"

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        batches: BatchSource,
        shards: Shards,
        held_out: BatchSource | None = None,
    ):
        self.settings = config.posterior
        sampler = PosteriorSampler(denoiser.requires_grad_(True), self.settings.levels, self.settings.trust)
        super().__init__(config, self.settings, sampler, batches, shards, held_out)
        compiled(denoiser, config.network.compile)

    def _noise(self, batch: Batch, generator: torch.Generator) -> Draws:
        like = batch.image, batch.image, batch.measured, batch.measured, batch.measured
        return [unit_noise(each, generator) for each in like]

    def _losses(self, network: PosteriorSampler, batch: Batch, draws: Draws) -> tuple[Tensor, ...]:
        images, noise = (draws[0], draws[1]), (draws[2], draws[3])
        return (held_out_score(network, batch, images, noise, self.settings.rows, draws[4]),)
