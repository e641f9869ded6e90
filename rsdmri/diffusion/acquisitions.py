"""A small bank of acquisitions that samples are conditioned on."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics import masks
from rsdmri.physics.sense import Sampling, Sense, sense


@dataclass(frozen=True)
class Acquisitions:
    """Bank of acquisitions with the law of their further masks.

    Attributes:
        maps: coil maps, complex64 ``(n, coil, y, x)``; None for priors of images, without coils.
        mask: bool ``(n, 1 or y, x)``; without maps ``(n, y, x)``.
        drop: with maps: lines of each mask that a further mask leaves out at random.
        keep: without maps: probability that a further mask keeps a pixel of the mask; 1 keeps all.
        real: images are real (magnitudes), not complex.
        sigma_y: noise per real number down to which the denoiser has learnt: sampling ends there.
        factor: the generator's images are so many times larger along each side (super-resolution).
        coil_noise: the denoiser knows noise of k-space samples rather than of images (`fourier-ambient`).
    """

    maps: Tensor | None
    mask: Tensor
    drop: int = 0
    keep: float = 1.0
    real: bool = False
    sigma_y: float = 0.0
    coil_noise: bool = False
    factor: int = 1

    @cached_property
    def acs(self) -> tuple[slice, slice]:
        """The centre that all masks of the bank acquired."""
        return masks.acs_block(self.mask)

    @property
    def shape(self) -> tuple[int, int]:
        """Matrix size (y, x) of the images."""
        height, width = (self.mask if self.maps is None else self.maps).shape[-2:]
        return height, width

    @property
    def device(self) -> torch.device:
        """Where the bank is."""
        return self.mask.device

    def draw(self, count: int, generator: torch.Generator, *, full_size: bool = False) -> Sense | Sampling:
        """Batch of ``count`` operators A~ with random maps and further masks; ``full_size``: for the generator."""
        items = torch.randint(len(self.mask), (count,), generator=generator, device=self.device)
        mask = self.mask[items]
        if self.maps is not None:
            return sense(self.maps[items], masks.further_mask(mask, self.drop, acs=self.acs, generator=generator))
        if full_size and self.factor > 1:
            mask = mask.new_ones((count, *(self.factor * n for n in mask.shape[-2:])))
        elif self.keep < 1:
            mask = mask & (torch.rand(mask.shape, generator=generator, device=self.device) < self.keep)
        return Sampling(mask, tuple(mask.shape))

    def draw_noise(self, operator: Sense | Sampling, generator: torch.Generator) -> Tensor:
        """Standard noise of the images of ``operator``, ``(batch, y, x)``."""
        kind = torch.float32 if self.real else torch.complex64
        return unit_noise(torch.empty(operator.domain_shape, dtype=kind, device=self.device), generator)

    def draw_coil_noise(self, operator: Sense | Sampling, generator: torch.Generator) -> Tensor | None:
        """`coil_part` of fresh noise; None where the denoiser knows no noise of k-space."""
        if not self.coil_noise or not isinstance(operator, Sense):
            return None
        return coil_part(operator, unit_noise(operator.maps, generator))


def coil_part(operator: Sense | Sampling, noise: Tensor) -> Tensor:
    """The part A~^H M~ n' of noise n of k-space that no image has, ``(batch, y, x)``.

    n' = n - A_1 A_1^H n with all lines sampled in A_1. With it, u = A~^H A~ x_s + s A~^H M~ n' is distributed exactly
    as A~^H (A~ x + s n), because sum_c |s_c|^2 = 1; it stays the same along one trajectory of a sampler.
    """
    every = operator.with_mask(torch.ones_like(operator.mask))
    return operator.adjoint(noise - every.forward(every.adjoint(noise)))
