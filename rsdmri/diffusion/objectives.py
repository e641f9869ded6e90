"""Training losses of the teacher: what a denoiser can learn from measurements that were never complete or clean.

The mask M says what was acquired, the further mask M~ (a random subset of it) what the denoiser is shown. Learning to
predict the lines of M from those of M~ gives E[x | u, M~] on every line that can be acquired given M~
(Daras et al. 2023; Aali et al. 2025). Losses are named by the mask whose residual they measure.

| objective | measurements | loss |
|---|---|---|
| ``edm`` (Karras et al. 2022) | images at face value: M = M~ = 1, s_y = 0 | `measurement_loss` |
| ``ambient-tweedie`` (Daras et al. 2024) | images with noise of level s_y: M = M~ = 1 | `measurement_loss` |
| ``ambient`` (Daras et al. 2023; Aali et al. 2025) | images with missing pixels | `measurement_loss` |
| | undersampled k-space, taken at face value | `ambient_loss` |
| ``fourier-ambient`` | undersampled k-space with noise of level s_y | `measurement_loss` |
"""

from typing import Literal

import torch
from torch import Tensor

from rsdmri.diffusion.batch import Batch, NoiseDraw, draw_noise, shown_noise
from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics.sense import Sampling, Sense

Objective = Literal["edm", "ambient-tweedie", "ambient", "fourier-ambient"]


def draw_for(objective: Objective, batch: Batch, generator: torch.Generator, mean: float, std: float) -> NoiseDraw:
    """The noise that ``objective`` adds to ``batch`` in one training step; see `draw_noise`."""
    return draw_noise(batch, generator, mean, std, measured=_in_measurements(objective, batch))


def teacher_loss(objective: Objective, denoiser: Denoiser, batch: Batch, draw: NoiseDraw) -> Tensor:
    """Loss of ``objective`` per item, ``(batch,)``; ``draw`` as of `draw_for`."""
    loss = measurement_loss if _in_measurements(objective, batch) else ambient_loss
    return loss(denoiser, batch, draw)


def ambient_loss(denoiser: Denoiser, batch: Batch, draw: NoiseDraw) -> Tensor:
    """Ambient diffusion loss on the residual over M, the noise added to images; one number per item ``(batch,)``.

    u = A~^H y~ + s A~^H A~ e,   loss = sum over lines of w |A D(u, M~, s) - y|^2 / (2 pixels)

    The image x enters only through A~^H y~ and y, so nothing unacquired is needed. Noise in y is learnt as if it were
    image. Weights w: see `line_weights`.
    """
    operator = batch.operator
    shown = operator.with_mask(batch.further_mask)
    u = shown.adjoint(batch.measured) + shown.normal(draw.noise * draw.sigma[:, None, None])
    estimate = given(denoiser, batch.conditions)(u, shown, draw.sigma)
    return residual_loss(estimate, operator, batch, draw.sigma, denoiser)


def measurement_loss(denoiser: Denoiser, batch: Batch, draw: NoiseDraw) -> Tensor:
    """Loss on the residual over M, the noise added to the measurements, whose own noise is known; ``(batch,)``.

    v = M~ (y + sqrt(s^2 - s_y^2) n),   u = A~^H v,   q = s_y^2 / s^2 on M~, 0 on the lines of M that M~ lacks,
    loss = sum over lines of w |(1 - q) A D(u, M~, s) + q v - y|^2 / (2 pixels)

    On M~ the noise of y is part of that of u, and E[y | v] = (1 - q) A E[x | u] + q v (Tweedie; Daras et al. 2024);
    on the held-out lines it is independent, and the plain residual is unbiased. Without maps and masks this is EDM's
    loss (s_y = 0) or Ambient Tweedie. Weights w: see `line_weights`.

    Errors:
        ValueError: a level s below the noise s_y of the measurements.
    """
    if bool((draw.sigma < batch.sigma_y).any()):
        raise ValueError("sigma: below the noise of the measurements; draw it with `draw_noise`")
    operator = batch.operator
    shown = operator.with_mask(batch.further_mask)
    added = torch.sqrt(draw.sigma**2 - batch.sigma_y**2)
    noisy = batch.measured + draw.noise * _per_item(added, draw.noise)
    estimate = given(denoiser, batch.conditions)(shown.adjoint(noisy), shown, draw.sigma)
    share = torch.where(batch.further_mask, (batch.sigma_y / draw.sigma).square()[:, None, None], 0)
    if batch.maps is not None:
        share = share[:, None]
    residual = (1 - share) * operator.forward(estimate) + share * noisy - batch.measured
    return _energy(residual, line_weights(batch, draw.sigma, denoiser))


def image_loss(denoiser: Denoiser, images: Tensor, batch: Batch, draw: NoiseDraw) -> Tensor:
    """The same loss with y = A x for given images ``(batch, y, x)``: how the fake score learns generated images."""
    operator = batch.operator
    shown = operator.with_mask(batch.further_mask)
    u = shown.normal(images) + draw.sigma[:, None, None] * shown_noise(shown, draw.noise)
    estimate = given(denoiser, batch.conditions)(u, shown, draw.sigma)
    return _energy(operator.forward(estimate - images), line_weights(batch, draw.sigma, denoiser))


def residual_loss(
    estimate: Tensor, operator: Sense | Sampling, batch: Batch, sigma: Tensor, denoiser: Denoiser
) -> Tensor:
    """Weighted energy of A D - y per item, ``(batch,)``."""
    return _energy(operator.forward(estimate) - batch.measured, line_weights(batch, sigma, denoiser))


def draw_consistency(batch: Batch, generator: torch.Generator) -> NoiseDraw:
    """What `consistency_loss` needs: a / s_y, ln-uniform in [0.05, 1], and its noise ``(batch, steps, ...)``."""
    uniform = torch.rand(len(batch), generator=generator, device=batch.measured.device)
    steps = batch.measured[:, None].expand(-1, _DESCENT + 2, *batch.measured.shape[1:])
    return NoiseDraw(_SHALLOWEST ** (1 - uniform), unit_noise(steps, generator))


def consistency_loss(denoiser: Denoiser, batch: Batch, draw: NoiseDraw) -> Tensor:
    """How far an estimate is from the mean of later ones, at levels below s_y, where no measurement teaches.

    E[D(u_b, b) | u_a] = D(u_a, a) for a > b is what the exact denoiser fulfils (Daras et al. 2023, 2024). From the
    measurements, noisy at s_y, the present denoiser is followed down to a level a < s_y by ancestral steps
    u_b = (1 - q) A~^H A~ D(u_a, a) + q u_a + b sqrt(1 - q) A~^H M~ n, q = b^2 / a^2; from there two independent steps
    to b = 0.9 a give Re <D(u_b, b) - D(u_a, a), D(u_b', b) - D(u_a, a)> / (pixels a^2), whose mean is the squared
    distance of the mean. One number per item ``(batch,)``, 0 where s_y = 0; ``draw`` as of `draw_consistency`.
    """
    denoiser = given(denoiser, batch.conditions)
    shown, known = batch.shown, batch.sigma_y > 0
    level = batch.sigma_y.clamp_min(1e-6)
    ratio = draw.sigma ** (1 / _DESCENT)
    u = shown.adjoint(batch.measured)
    with torch.no_grad():
        for step in range(_DESCENT):
            u = _stepped(denoiser(u, shown, level), u, shown, level, level * ratio, draw.noise[:, step])
            level = level * ratio
    here, below = denoiser(u, shown, level), level * _CLOSER
    first, second = (
        denoiser(_stepped(here.detach(), u, shown, level, below, draw.noise[:, step]), shown, below) - here
        for step in (_DESCENT, _DESCENT + 1)
    )
    product = (first.conj() * second).real.mean(dim=(-2, -1))
    return torch.where(known, product / ((2 if u.is_complex() else 1) * level**2), 0)


def line_weights(batch: Batch, sigma: Tensor, denoiser: Denoiser) -> Tensor:
    """Weight of each k-space position (pixel), ``(batch, 1 or y, x)``; any positive choice keeps the minimiser.

    ``published``: (s^2 + sd^2) / (s sd)^2 on all of M.
    Others: 1/sd^2 on M plus min(1/s^2, 4/sd^2) on M~: lines that are shown can be predicted to within s,
    held-out lines only to within sd.
    """
    data = denoiser.sigma_data
    if denoiser.preconditioning == "published":
        return ((sigma**2 + data**2) / (sigma * data) ** 2)[:, None, None] * batch.mask
    shown = torch.minimum(1 / sigma**2, 4 / data**2)
    return batch.mask / data**2 + shown[:, None, None] * batch.further_mask


_DESCENT, _CLOSER, _SHALLOWEST = 4, 0.9, 0.05


def _in_measurements(objective: Objective, batch: Batch) -> bool:
    return objective != "ambient" or batch.maps is None


def _stepped(
    estimate: Tensor, u: Tensor, shown: Sense | Sampling, level: Tensor, below: Tensor, noise: Tensor
) -> Tensor:
    """u at level ``below`` given u at ``level`` and the estimate there."""
    share = (below / level).square()
    spread = below * torch.sqrt(1 - share)
    clean = shown.normal(estimate)
    return _per_item(1 - share, u) * clean + _per_item(share, u) * u + _per_item(spread, u) * shown_noise(shown, noise)


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (batch,) so that they multiply ``like`` (batch, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _energy(residual: Tensor, weights: Tensor) -> Tensor:
    """Sum of w |r|^2 over coils and positions per item, over the real numbers of an image."""
    pixels = residual.shape[-1] * residual.shape[-2]
    power = residual.real.square() + residual.imag.square() if residual.is_complex() else residual.square()
    if power.ndim == 4:
        power = power.sum(dim=1)
    return (power * weights).sum(dim=(-2, -1)) / ((2 if residual.is_complex() else 1) * pixels)
