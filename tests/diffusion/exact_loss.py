"""Expected losses of linear denoisers, exactly.

The loss of D(u) = L u is quadratic in the image and the noise. For Gaussian vectors its mean is the sum of its values
on their scaled unit vectors, its gradient in L is affine, and conjugate gradients find its minimiser to rounding.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from rsdmri.physics.sense import Sampling, Sense


class Linear(nn.Module):
    """D(u) = L u, all that a denoiser can be for one M~ and one level."""

    def __init__(self, gain: Tensor, form: str, sigma_data: float = 0.6):
        super().__init__()
        self.gain = nn.Parameter(gain.clone())
        self.preconditioning = form
        self.sigma_data = torch.tensor(sigma_data, dtype=torch.float64)

    def forward(self, u: Tensor, operator: Sense | Sampling, sigma: Tensor) -> Tensor:
        return (u.reshape(len(u), -1) @ self.gain.T).reshape(u.shape)


def minimiser(gradient: Callable[[Tensor], Tensor], law: np.ndarray, iterations: int = 300) -> Tensor:
    """Zero of the affine ``gradient``, by conjugate gradients from L = 0; u, of covariance ``law``, is whitened."""
    values, vectors = np.linalg.eigh(law)
    seen = values > 1e-9 * values[-1]
    whiten = torch.as_tensor((vectors[:, seen] / np.sqrt(values[seen])) @ vectors[:, seen].conj().T)
    white = torch.zeros_like(whiten)
    offset = gradient(white) @ whiten.mH
    residual = direction = -offset
    energy = start = float((residual.abs() ** 2).sum())
    for _ in range(iterations):
        image = gradient(direction @ whiten) @ whiten.mH - offset
        step = energy / float((direction.conj() * image).sum().real)
        white, residual = white + step * direction, residual - step * image
        energy, before = float((residual.abs() ** 2).sum()), energy
        if energy < 1e-22 * start:
            break
        direction = residual + energy / before * direction
    return white @ whiten


def distance(gain: Tensor, best: Tensor, law: np.ndarray) -> float:
    """Root-mean-square difference of two estimates over u of covariance ``law``, relative to ``best``."""
    away, right = (gain - best).numpy(), best.numpy()
    return float(np.sqrt(np.trace(away @ law @ away.conj().T).real / np.trace(right @ law @ right.conj().T).real))
