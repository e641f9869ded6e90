"""Ambient diffusion posterior sampling: the teacher's ODE, pulled to the data (Aali et al. 2025, arXiv 2403.08728)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.sample import Denoise, item_noise
from rsdmri.diffusion.schedule import SIGMA_MIN, karras_ladder
from rsdmri.physics.sense import Sense
from rsdmri.reconstruction.consistency import Measurements, shown
from rsdmri.reconstruction.settings import AdpsSettings

_LEAST_RESIDUAL = 1e-12


def adps(
    denoiser: Denoiser,
    measured: Measurements,
    *,
    sigma_data: float,
    generators: Sequence[torch.Generator],
    settings: AdpsSettings | None = None,
    coil_noise: bool = False,
    sigma_min: float = SIGMA_MIN,
) -> Tensor:
    """One draw of each item, ``(batch, y, x)``, from noise at the highest level s down Karras' ladder.

    D = D(A~^H A~ x_s, M~, s), r = A D - y, and, gradients taken through A and D,
        ``norm`` (published):  x_t = x_s + (t - s) (x_s - D) / s - scale grad |r|^2 / |r|,
        ``variance``:          dx/ds = (x_s - D) / s + scale s grad |r|^2 / (2 v),
                               v = sigma_y^2 / 2 + s^2 sd^2 / (s^2 + sd^2).
    |r| is that of each item, never of the batch. The published step is as long at the end as at the start, in units of
    the whole image, so ``scale`` belongs to a matrix size. ``variance`` is pseudo-inverse guidance (Song et al. 2023)
    with the variance of white images: for them and one coil it is exact, and its draws are of the posterior; for the
    coloured ones of the tests its mean is 26 % off, which more steps do not change.

    Args:
        denoiser: D, the teacher.
        measured: y, A and the noise of each item.
        sigma_data: sd, standard deviation of the images per real channel.
        generators: random stream of each item.
        settings: sampler, steps, guidance, lines M~ that D is shown.
        coil_noise: see `shown`.
        sigma_min: last level of the ladder before 0, that of the teacher's training data.
    """
    settings = settings or AdpsSettings()
    operator, sigma_y = measured.operator, measured.sigma_y
    denoise = shown(denoiser, operator, settings.lines, coil_noise=coil_noise, generators=generators)
    acquired, published = measured.acquired(measured.kspace), settings.guidance == "norm"
    x = settings.sigma_max * item_noise(generators)(measured.blank)

    def slope_and_pull(x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        denoised, squares, gradient = residual_gradient(denoise, operator, acquired, x, level)
        slope = (x - denoised) / level
        if published:
            return slope, settings.scale * gradient / squares.sqrt().clamp_min(_LEAST_RESIDUAL)[:, None, None]
        variance = sigma_y**2 / 2 + (level * sigma_data) ** 2 / (level**2 + sigma_data**2)
        return slope + settings.scale * level * gradient / (2 * variance)[:, None, None], torch.zeros_like(x)

    for now, after in pairwise(karras_ladder(settings.steps, max(SIGMA_MIN, sigma_min), settings.sigma_max).tolist()):
        slope, pull = slope_and_pull(x, now)
        ahead = x + (after - now) * slope - pull
        if settings.sampler == "heun" and after > 0:
            slope = (slope + slope_and_pull(ahead, after)[0]) / 2
            ahead = x + (after - now) * slope - pull
        x = ahead
    return x


def residual_gradient(
    denoise: Denoise, operator: Sense, acquired: Tensor, x: Tensor, level: float
) -> tuple[Tensor, Tensor, Tensor]:
    """D(x, s), |A D - y|^2 of each item ``(batch,)``, and its gradient d/dRe x + i d/dIm x.

    ``acquired`` is y with 0 where nothing was.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoise(x, torch.full(x.shape[:1], level, dtype=x.real.dtype, device=x.device))
        squares = (operator.forward(denoised) - acquired).abs().square().sum((1, 2, 3))
        (gradient,) = torch.autograd.grad(squares.sum(), x)
    return denoised.detach(), squares.detach(), gradient
