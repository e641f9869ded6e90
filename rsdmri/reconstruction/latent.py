"""Reconstruction by the latent of the one-step generator that explains the data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt

import torch
from torch import Tensor

from rsdmri.diffusion.sample import item_noise
from rsdmri.diffusion.schedule import SIGMA_MAX
from rsdmri.errors import InputError
from rsdmri.reconstruction.consistency import Measurements
from rsdmri.reconstruction.settings import LatentSettings

Generate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LatentFit:
    """What `fit_latent` found, per item.

    Attributes:
        images: data consistent with G(e), ``(batch, y, x)``.
        latents: e, standard noise, ``(batch, y, x)``.
        objective: J(e), ``(batch,)``.
        first: J where the search started, ``(batch,)``.
    """

    images: Tensor
    latents: Tensor
    objective: Tensor
    first: Tensor


def fit_latent(
    generate: Generate,
    measured: Measurements,
    *,
    sigma_init: float,
    generators: Sequence[torch.Generator],
    start: Tensor | None = None,
    settings: LatentSettings | None = None,
) -> LatentFit:
    """Minimise, for each item, over the latent z = s_init e of the generator,

        J(e) = |A G(e) - (y + n)|^2 / s^2 + |e - e_0|^2 / 2,   s^2 = sigma_y^2 + error^2,

    by Adam with a step size that falls to 0 as a half cosine; the e with the least J is kept, and the image made
    consistent with the data. J is a negative log posterior: noise and e count per real channel 1/2 |.|^2 over variance.
    With ``spread`` 0, n = e_0 = 0 and it is the most probable latent. Else n ~ spread CN(0, s^2), e_0 ~ spread N(0, 1)
    are drawn for each item: for a linear generator and spread 1 the minimiser is then an exact draw of the posterior
    (perturb and optimise; Bardsley et al. 2014), for others it is near one.

    Args:
        generate: G, from standard noise ``(batch, y, x)`` to images ``(batch, y, x)``, item by item.
        measured: y, A and the noise of each item.
        sigma_init: s_init, in which an image is ``start`` / s_init of a latent.
        generators: random stream of each item.
        start: image whose latent the search starts from, plus e_0; None: e_0 alone.
        settings: iterations, step size, error, spread, trust.
    """
    settings = settings or LatentSettings()
    if not 0 < sigma_init <= SIGMA_MAX:
        raise ValueError(f"sigma_init: expected a level above 0 and up to {SIGMA_MAX:g}, got {sigma_init:g}")
    fresh, scale = item_noise(generators), (measured.noise**2 + settings.error**2).sqrt()
    centre = settings.spread * fresh(measured.blank)
    perturbation = settings.spread / sqrt(2) * scale[:, None, None, None] * fresh(measured.kspace)
    target = measured.acquired(measured.kspace + perturbation)

    def objective(e: Tensor, images: Tensor) -> Tensor:
        misfit = (measured.operator.forward(images) - target).abs().square().sum((1, 2, 3))
        return misfit / scale**2 + (e - centre).abs().square().sum((1, 2)) / 2

    begin = centre if start is None else centre + start / sigma_init
    latents, images, value, first = _descend(generate, objective, begin, settings)
    with torch.no_grad():
        images = measured.agreeing(images, settings.trust)
    return LatentFit(images, latents, value, first)


def _descend(
    generate: Generate, objective: Callable[[Tensor, Tensor], Tensor], begin: Tensor, settings: LatentSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, images and objectives of the best of Adam's iterates, and the first objective.

    Adam is elementwise and the sum of the objectives separates, so no item feels the others.
    """
    e = begin.detach().clone().requires_grad_()
    adam = torch.optim.Adam([e], lr=settings.rate, betas=(0.9, 0.99))
    latents = images = begin
    least = torch.full(begin.shape[:1], torch.inf, dtype=begin.real.dtype, device=begin.device)
    first = least
    for index in range(settings.iterations + 1):
        with torch.set_grad_enabled(index < settings.iterations):
            generated = generate(e)
            value = objective(e, generated)
        better = value < least
        latents = torch.where(better[:, None, None], e, latents).detach()
        images = torch.where(better[:, None, None], generated, images).detach()
        least = torch.where(better, value, least).detach()
        first = least if index == 0 else first
        if index < settings.iterations:
            (e.grad,) = torch.autograd.grad(value.sum(), e)
            adam.param_groups[0]["lr"] = settings.rate * (1 + cos(pi * index / settings.iterations)) / 2
            adam.step()
    if not bool(torch.isfinite(least).all()):
        raise InputError("the generator gives NaN or infinite values; the prior is damaged: try another --prior")
    return latents, images, least, first
