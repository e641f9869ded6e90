"""Training losses of the teacher: what a denoiser can learn from k-space that was never fully sampled.

The mask M says what was acquired, the further mask M~ (a random subset of it) what the denoiser is shown. Learning to
predict the lines of M from those of M~ gives E[x | u, M~] on every line that can be acquired given M~
(Daras et al. 2023; Aali et al. 2025). Losses are named by the mask whose residual they measure.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.schedule import complex_noise, lognormal_sigma
from rsdmri.physics.sense import Sense, sense


@dataclass(frozen=True)
class Batch:
    """A batch of acquired slices, in scaled units.

    Attributes:
        kspace: acquired samples, 0 elsewhere, complex64 ``(batch, coil, y, x)``.
        maps: coil sensitivities, complex64 ``(batch, coil, y, x)``.
        mask: acquired positions M, bool ``(batch, 1 or y, x)``.
        further_mask: positions M~ shown to the denoiser, a subset of ``mask``.
    """

    kspace: Tensor
    maps: Tensor
    mask: Tensor
    further_mask: Tensor

    def __len__(self) -> int:
        return self.kspace.shape[0]

    def __getitem__(self, items: slice) -> "Batch":
        return Batch(self.kspace[items], self.maps[items], self.mask[items], self.further_mask[items])

    def to(self, device: torch.device) -> "Batch":
        """Copy to ``device``."""
        parts = (self.kspace, self.maps, self.mask, self.further_mask)
        return Batch(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class NoiseDraw:
    """Noise of one training step, drawn for the whole batch: levels ``(batch,)`` and complex ``(batch, y, x)``."""

    sigma: Tensor
    noise: Tensor

    def __getitem__(self, items: slice) -> "NoiseDraw":
        return NoiseDraw(self.sigma[items], self.noise[items])


def draw_noise(batch: Batch, generator: torch.Generator, mean: float = -1.2, std: float = 1.2) -> NoiseDraw:
    """Draw the noise levels (ln sigma ~ N(mean, std^2)) and images of one training step."""
    device = batch.kspace.device
    sigma = lognormal_sigma(len(batch), generator, mean, std, device)
    return NoiseDraw(sigma, complex_noise(batch.kspace[:, 0], generator))


def ambient_loss(denoiser: Denoiser, batch: Batch, draw: NoiseDraw) -> Tensor:
    """Ambient diffusion loss on the residual over M, one number per item ``(batch,)``.

    u = A~^H y~ + s A~^H A~ e,   loss = sum over lines of w |A D(u, M~, s) - y|^2 / (2 pixels)

    The image x enters only through A~^H y~ and y, so nothing unacquired is needed. Weights w: see `line_weights`.
    """
    operator = sense(batch.maps, batch.mask)
    shown = operator.with_mask(batch.further_mask)
    u = shown.adjoint(batch.kspace) + shown.normal(draw.noise * draw.sigma[:, None, None])
    return residual_loss(denoiser(u, shown, draw.sigma), operator, batch, draw.sigma, denoiser)


def image_loss(denoiser: Denoiser, images: Tensor, batch: Batch, draw: NoiseDraw) -> Tensor:
    """The same loss with y = A x for given images ``(batch, y, x)``: how the fake score learns generated images."""
    operator = sense(batch.maps, batch.mask)
    shown = operator.with_mask(batch.further_mask)
    u = shown.normal(images + draw.noise * draw.sigma[:, None, None])
    estimate = denoiser(u, shown, draw.sigma)
    weights = line_weights(batch, draw.sigma, denoiser)
    residual = operator.forward(estimate - images)
    return _energy(residual, weights)


def residual_loss(estimate: Tensor, operator: Sense, batch: Batch, sigma: Tensor, denoiser: Denoiser) -> Tensor:
    """Weighted energy of A D - y per item, ``(batch,)``."""
    return _energy(operator.forward(estimate) - batch.kspace, line_weights(batch, sigma, denoiser))


def line_weights(batch: Batch, sigma: Tensor, denoiser: Denoiser) -> Tensor:
    """Weight of each k-space position, ``(batch, 1 or y, x)``; any positive choice keeps the minimiser.

    ``published``: (s^2 + sd^2) / (s sd)^2 on all of M.
    ``operator``: 1/sd^2 on M plus min(1/s^2, 4/sd^2) on M~: lines that are shown can be predicted to within s,
    held-out lines only to within sd.
    """
    data = denoiser.sigma_data
    if denoiser.preconditioning == "published":
        return ((sigma**2 + data**2) / (sigma * data) ** 2)[:, None, None] * batch.mask
    shown = torch.minimum(1 / sigma**2, 4 / data**2)
    return batch.mask / data**2 + shown[:, None, None] * batch.further_mask


def _energy(residual: Tensor, weights: Tensor) -> Tensor:
    pixels = residual.shape[-1] * residual.shape[-2]
    power = residual.real.square() + residual.imag.square()
    return (power.sum(dim=1) * weights).sum(dim=(-2, -1)) / (2 * pixels)
