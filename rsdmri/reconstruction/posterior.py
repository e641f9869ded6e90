"""Reconstruction with a trained prior: the network proposes, the measured samples decide.

All methods work per item, take any matrix size and end with data consistency: the image closest to the network's
estimate, weighed by how far each can be trusted,
    argmin_x |A x - y|^2 / sigma_y^2 + |x - x_0|^2 / rho^2.
"""

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.sense import Sense
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.priors import Prior

LEVELS = (0.3, 0.1, 0.04)
TRUST = 0.3
CG_ITERATIONS = 12


def data_consistency(
    operator: Sense, kspace: Tensor, estimate: Tensor, sigma_y: Tensor, rho: Tensor, iterations: int = CG_ITERATIONS
) -> Tensor:
    """Solve (A^H A + w) x = A^H y + w x_0 with w = sigma_y^2 / rho^2, started at the estimate x_0.

    Args:
        operator: A, batched.
        kspace: y, complex64 ``(batch, coil, y, x)``.
        estimate: x_0, complex64 ``(batch, y, x)``.
        sigma_y: noise per complex k-space sample, ``(batch,)``.
        rho: expected error of the estimate per pixel, ``(batch,)``.
        iterations: conjugate-gradient steps.
    """
    weight = (sigma_y / rho) ** 2
    target = operator.adjoint(kspace) + weight[:, None, None] * estimate
    return conjugate_gradient(operator.normal, target, shift=weight, iterations=iterations, start=estimate)


def ambient_one_step(prior: Prior, operator: Sense, kspace: Tensor, sigma_y: Tensor) -> Tensor:
    """Estimate E[x | y] by one evaluation, D(A^H y, M, s) with s the noise level of the data, then data consistency.

    Args:
        prior: its denoiser is used.
        operator: A with the scan's own mask, batched.
        kspace: complex64 ``(batch, coil, y, x)``, scaled units.
        sigma_y: noise per complex k-space sample, ``(batch,)``.
    """
    _check(operator, kspace)
    with torch.no_grad():
        level = (sigma_y / 2**0.5).clamp_min(0.01)
        estimate = prior.denoiser(operator.adjoint(kspace), operator, level)
        return data_consistency(operator, kspace, estimate, _floor(sigma_y), torch.full_like(sigma_y, TRUST))


def _floor(sigma_y: Tensor) -> Tensor:
    return sigma_y.clamp_min(1e-3)


def _check(operator: Sense, kspace: Tensor) -> None:
    if operator.maps.shape != kspace.shape:
        raise InputError(
            f"k-space has shape {tuple(kspace.shape)} and the coil maps {tuple(operator.maps.shape)}; they must agree"
        )
