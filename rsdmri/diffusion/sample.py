"""Samplers: from noise to an image by the probability-flow ODE dx/ds = (x - D(x, s)) / s.

Each takes ``denoise(x_s, sigma)`` with sigma ``(batch,)`` and treats every item of the batch on its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.schedule import SIGMA_MAX, SIGMA_MIN, karras_ladder
from rsdmri.physics.sense import Sampling, Sense

Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor], None]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """First-order steps along ``sigmas`` (decreasing, ``(steps + 1,)``); ``x`` is at ``sigmas[0]``."""
    for index, (now, after) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        x = x + (after - now) * _slope(denoise, x, now)
        if on_step is not None:
            on_step(index, x)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Second-order steps (Karras et al. 2022, algorithm 1); a final step to 0 stays first order.

    ``steps`` steps need ``2 steps - 1`` evaluations when the last level is 0, else ``2 steps``.
    """
    for index, (now, after) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        slope = _slope(denoise, x, now)
        ahead = x + (after - now) * slope
        if after > 0:
            slope = (slope + _slope(denoise, ahead, after)) / 2
            ahead = x + (after - now) * slope
        x = ahead
        if on_step is not None:
            on_step(index, x)
    return x


def sample_teacher(
    denoiser: Denoiser,
    operator: Sense | Sampling,
    noise: Tensor,
    steps: int = 18,
    coil_noise: Tensor | None = None,
    sigma_y: float = 0.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw images from the teacher: Heun on x_s with D(A~^H A~ x_s, M~, s), fixed (maps, M~) per item.

    Args:
        denoiser: the teacher.
        operator: A~, batched.
        noise: standard noise of images ``(batch, y, x)``.
        steps: Heun steps; ``2 steps - 1`` network evaluations.
        coil_noise: the part of k-space noise that no image has, see `Acquisitions.draw_coil_noise`.
        sigma_y: level at which sampling is truncated: the last step goes from there to the estimate.
        on_step: called with the step's index and state.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        u = operator.normal(x)
        if coil_noise is not None:
            u = u + sigma[:, None, None] * coil_noise
        return denoiser(u, operator, sigma)

    with torch.no_grad():
        return heun(denoise, SIGMA_MAX * noise, karras_ladder(steps, max(SIGMA_MIN, sigma_y)), on_step)


def _slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    level = torch.full((x.shape[0],), sigma, dtype=x.real.dtype, device=x.device)
    return (x - denoise(x, level)) / sigma
