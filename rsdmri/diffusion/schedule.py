"""Noise levels of the diffusion.

A sample at noise level sigma is x_s = x + sigma e, where the real and the imaginary part of e are independent standard
normal numbers. sigma therefore counts *per real channel*: complex measurement noise with E|n|^2 = sigma_y^2 has the
level sigma_y / sqrt(2) on this scale.
"""

import math

import torch
from torch import Tensor

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0


def karras_sigma(
    t: Tensor, sigma_min: float | Tensor = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """Noise level at time ``t`` in [0, 1]: 0 gives ``sigma_min`` (one, or one per item), 1 gives ``sigma_max``.

    sigma(t) = (sigma_max^(1/rho) + (1 - t) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho  (Karras et al. 2022, eq. 5)
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + (1 - t) * (low - high)) ** rho


def karras_ladder(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """Decreasing noise levels of a sampler with ``steps`` steps, float64 ``(steps + 1,)``; the last one is 0."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    t = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    return torch.cat([karras_sigma(t, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def lognormal_sigma(
    batch: int, generator: torch.Generator, mean: float = -1.2, std: float = 1.2, device: torch.device | None = None
) -> Tensor:
    """Draw training noise levels, ln sigma ~ N(mean, std^2), stratified over the batch; float32 ``(batch,)``.

    Stratification (one draw in each of ``batch`` equal slices of probability) keeps each level's marginal law and
    lowers the variance of the loss.
    """
    uniform = torch.rand(batch, generator=generator, device=device)
    order = torch.randperm(batch, generator=generator, device=device)
    quantile = ((order + uniform) / batch).clamp(1e-6, 1 - 1e-6)
    normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    return torch.exp(mean + std * normal)


def unit_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of ``like``'s shape and type whose real numbers are independent standard normal (complex: E|e|^2 = 2)."""
    shape = (*like.shape, 2) if like.is_complex() else like.shape
    parts = torch.randn(shape, generator=generator, device=like.device, dtype=like.real.dtype)
    return torch.view_as_complex(parts) if like.is_complex() else parts
