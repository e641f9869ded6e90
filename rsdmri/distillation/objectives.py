"""Losses of the generator: match the teacher's score on generated images without ever seeing a clean one.

x_g is a generated image, e fresh noise at level s, u = A~^H A~ (x_g + s e); f_phi is the frozen teacher, f_psi the
fake score, which learns the generator's own distribution by the teacher's loss. Both see the corruption, so that
equal scores mean equal corrupted distributions, which determine the clean one.
References: Zhang et al. 2025 (RSD), Zhou et al. 2024 (SiD), Yin et al. 2024 (DMD), Poole et al. 2023 (SDS).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.diffusion.schedule import karras_sigma, unit_noise

Objective = Literal["sid", "dmd", "sds"]


@dataclass(frozen=True)
class GeneratorLoss:
    """Per-item loss ``(batch,)`` and the score gap sqrt(mean |f_phi - f_psi|^2) ``(batch,)``, an early warning."""

    loss: Tensor
    gap: Tensor


def draw_level(batch: Batch, generator: torch.Generator, t_max: float = 0.8) -> NoiseDraw:
    """Draw s = karras(t), t ~ U[0, t_max], and the noise of a generator step."""
    t = t_max * torch.rand(len(batch), generator=generator, device=batch.measured.device)
    return NoiseDraw(karras_sigma(t), unit_noise(batch.image, generator))


def generator_loss(
    objective: Objective,
    images: Tensor,
    teacher: Denoiser,
    fake_score: Denoiser,
    batch: Batch,
    draw: NoiseDraw,
    alpha: float = 1.2,
) -> GeneratorLoss:
    """Loss whose gradient with respect to ``images`` (batch, y, x) moves them towards the teacher's distribution.

    sid: mean (f_phi - f_psi) . ((f_phi - x_g) - alpha (f_phi - f_psi)) / w, gradients through both networks.
    dmd: gradient (f_psi - f_phi) / w applied to x_g.
    sds: as dmd with the fake score replaced by x_g itself, which is what the injected noise amounts to.
    w = mean |x_g - f_phi| per item, constant, at least 1e-5.
    """
    shown = batch.shown
    teacher, fake_score = given(teacher, batch.conditions), given(fake_score, batch.conditions)
    noisy = images + draw.noise * draw.sigma[:, None, None]
    if objective == "sid":
        u = shown.normal(noisy)
        real, fake = teacher(u, shown, draw.sigma), fake_score(u, shown, draw.sigma)
        gap = real - fake
        weight = _weight(images, real)
        terms = gap.conj() * ((real - images) - alpha * gap)
        return GeneratorLoss(terms.real.mean(dim=(-2, -1)) / weight, _size(gap))
    with torch.no_grad():
        u = shown.normal(noisy)
        real = teacher(u, shown, draw.sigma)
        fake = images.detach() if objective == "sds" else fake_score(u, shown, draw.sigma)
        direction = (fake - real) / _weight(images, real)[:, None, None]
    pull = (direction.conj() * images).real.mean(dim=(-2, -1))
    return GeneratorLoss(pull, _size(real - fake))


def _weight(images: Tensor, real: Tensor) -> Tensor:
    return (images - real).detach().abs().mean(dim=(-2, -1)).clamp_min(1e-5)


def _size(gap: Tensor) -> Tensor:
    return gap.detach().abs().square().mean(dim=(-2, -1)).sqrt()
