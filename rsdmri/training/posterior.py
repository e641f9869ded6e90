"""A network that draws from the posterior in few evaluations, fine-tuned on held-out acquired lines."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from rsdmri.config import Config
from rsdmri.diffusion.amortised import PosteriorSampler, Spread, held_out_score
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.diffusion.unet import draw_weights
from rsdmri.runtime import torch_generator
from rsdmri.training.shards import Shards
from rsdmri.training.single import Draws, SingleStage
from rsdmri.training.stage import BatchSource, compiled

PHASE_GRID = (4, 10)  # rows of a strip are few
NOISE_RANGE = 20.0  # of the highest level to the lowest


class PosteriorStage(SingleStage[PosteriorSampler]):
    """Fine-tuning by `held_out_score` of two draws of each slice, as it was measured or made `noisier` and `turned`.

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
        spread = Spread()
        draw_weights(spread, torch_generator(config.seed, "spread"))
        way = self.settings.levels, self.settings.trust
        sampler = PosteriorSampler(denoiser.requires_grad_(True), *way, spread=spread, warm=self.settings.warm)
        super().__init__(config, self.settings, sampler, batches, shards, held_out)
        compiled(denoiser, config.network.compile)

    def _noise(self, batch: Batch, generator: torch.Generator) -> Draws:
        like = batch.image, batch.image, *[batch.measured] * 4
        drawn: list[Tensor] = [unit_noise(each, generator) for each in like]
        device, count = batch.measured.device, len(batch)
        chances = torch.rand(count, 2, generator=generator, device=device)
        return [*drawn, chances, torch.randn(count, *PHASE_GRID, generator=generator, device=device)]

    def _losses(self, network: PosteriorSampler, batch: Batch, draws: Draws) -> tuple[Tensor, ...]:
        first, second, n_first, n_second, again, added, chances, grid = draws
        settings = self.settings
        if settings.noise > 0:
            batch = noisier(batch, further_levels(chances[:, 0], settings.noise), added)
        if settings.phase > 0:
            batch = turned(batch, settings.phase * chances[:, 1, None, None] * grid)
        block = settings.rows, settings.columns
        return (held_out_score(network, batch, (first, second), (n_first, n_second), block, again),)


def further_levels(chances: Tensor, highest: float) -> Tensor:
    """Levels of noise to add, ``(batch,)``: for one of two items ``highest`` / 20 to ``highest``, the logarithm being
    uniform, for others 0; from ``chances`` uniform in [0, 1]."""
    share = 2 * chances
    return torch.where(share < 1, highest * NOISE_RANGE**-share, 0)


def noisier(batch: Batch, level: Tensor, noise: Tensor) -> Batch:
    """``batch`` with the further ``noise`` of ``level`` in its samples, and told so: a worse scan of the same head.

    Args:
        batch: with maps.
        level: standard deviation per real number, ``(batch,)``.
        noise: standard noise of the measurements ``(batch, coil, y, x)``.
    """
    acquired = batch.measured + level[:, None, None, None] * noise
    measured = torch.where(batch.mask[:, None], acquired, 0)
    return replace(batch, measured=measured, sigma_y=torch.hypot(batch.sigma_y, level))


def turned(batch: Batch, grid: Tensor) -> Batch:
    """``batch`` as of images whose phase is less by a smooth field: y = A x = (A exp(i f)) (exp(-i f) x).

    Coil maps are known but for a phase common to all coils, so that images of any smooth phase fit the same samples,
    and only what was acquired is used.

    Args:
        batch: with maps.
        grid: f in radians at a coarse grid, ``(batch, rows, columns)``; bicubic between.
    """
    if batch.maps is None:
        raise ValueError("batch: expected k-space with coil maps, got images")
    field = nn.functional.interpolate(grid[:, None], batch.maps.shape[-2:], mode="bicubic", align_corners=True)
    return replace(batch, maps=batch.maps * torch.polar(torch.ones_like(field), field))
