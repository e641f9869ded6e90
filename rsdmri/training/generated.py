"""Images of a generator for the acquisitions of a batch: what it starts from, what it makes, what the scores see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.acquisitions import coil_part
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.generator import Generator
from rsdmri.physics.sense import Sampling
from rsdmri.training.degraded import degradation, full_size


@dataclass(frozen=True)
class Latent:
    """Input of the generator: standard noise of images (batch, y, x) and, where it has a part there, of k-space."""

    noise: Tensor
    coils: Tensor | None

    def __getitem__(self, items: slice) -> "Latent":
        return Latent(self.noise[items], None if self.coils is None else self.coils[items])


def draw_latent(config: Config, batch: Batch, generator: torch.Generator) -> Latent:
    """Input of the generator for the acquisitions of ``batch``."""
    noise = unit_noise(full_size(config.corruption, batch.image), generator)
    if config.objective != "fourier-ambient" or batch.maps is None:
        return Latent(noise, None)
    return Latent(noise, unit_noise(batch.measured, generator))


def generated(network: Generator, batch: Batch, latent: Latent) -> Tensor:
    """Images (batch, y, x) that ``network`` makes for the acquisitions of ``batch``."""
    if batch.maps is None and latent.noise.shape != batch.image.shape:  # images larger than what is measured
        every = torch.ones(latent.noise.shape, dtype=torch.bool, device=latent.noise.device)
        return network(latent.noise, Sampling(every, tuple(latent.noise.shape)), None, batch.conditions)
    shown = batch.shown
    coils = None if latent.coils is None else coil_part(shown, latent.coils)
    return network(latent.noise, shown, coils, batch.conditions)


def seen(config: Config, images: Tensor) -> Tensor:
    """``images`` as the scores see them: degraded where the corruption is a known blur or low resolution."""
    return degradation(config.corruption, tuple(images.shape)).forward(images)
