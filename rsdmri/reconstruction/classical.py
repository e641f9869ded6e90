"""Reconstruction without a network: zero-filled, SENSE by conjugate gradients, L1-wavelet compressed sensing.

All take an operator A with maps (batch, coil, y, x) and scaled, whitened k-space (batch, coil, y, x), read only where
the operator's mask is set, and return complex images (batch, y, x). Items of a batch never influence each other.
"""

import torch
from torch import Tensor

from rsdmri.physics.sense import Sense
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.reconstruction.wavelet import Wavelet

_SENSE_FACTOR = 10.0
_L1_FACTOR, _L1_FLOOR = 0.1, 3e-4


def sense_strength(sigma_y: float | Tensor) -> float | Tensor:
    """Ridge 10 sigma_y^2 for `sense_cg`, image units of about 1 and noise ``sigma_y`` per complex k-space sample.

    Grid search on simulated heads (64 and 128, R = 2 and 4, sigma_y 0.003 to 0.1): the least NMSE lay at 10 to 30,
    with 10 the best of one number for all because a large ridge darkens noisy scans.
    """
    return _SENSE_FACTOR * sigma_y**2


def l1_strength(sigma_y: float | Tensor) -> float | Tensor:
    """Threshold 0.1 sigma_y + 0.0003 for `l1_wavelet`, in the same units.

    Same grid search, 80 iterations: the least NMSE lay at 0.1 to 0.4 sigma_y (more for more noise), and at 0.0005 to
    0.001 for little noise.
    """
    return _L1_FACTOR * sigma_y + _L1_FLOOR


def zero_filled(operator: Sense, kspace: Tensor) -> Tensor:
    """A^H y: the coil images of the acquired samples alone, combined by the maps."""
    return operator.adjoint(kspace)


def sense_cg(operator: Sense, kspace: Tensor, *, strength: float | Tensor, iterations: int = 30) -> Tensor:
    """CG-SENSE (Pruessmann et al. 2001): the x that solves (A^H A + ``strength``) x = A^H y, from 0.

    Args:
        operator: A.
        kspace: y.
        strength: ridge >= 0, one number or (batch,).
        iterations: conjugate-gradient steps.
    """
    return conjugate_gradient(operator.normal, operator.adjoint(kspace), shift=strength, iterations=iterations)


def l1_wavelet(
    operator: Sense,
    kspace: Tensor,
    *,
    strength: float | Tensor,
    iterations: int = 80,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-3,
) -> Tensor:
    """argmin 1/2 |A x - y|^2 + strength |Psi x|_1 by FISTA (Beck and Teboulle 2009); Psi: `Wavelet`, db4.

    The coarse band is not penalised; a complex coefficient is shrunk in magnitude. Images of any size live in the
    corner of a slightly larger grid. |A| <= 1 because the maps have unit norm, so the step is 1.

    Args:
        operator: A.
        kspace: y.
        strength: threshold >= 0 in image units, one number or (batch,).
        iterations: at most this many.
        generator: where given, each iteration shifts the grid at random, the same for all items, which averages out
            the blocks of a fixed wavelet grid (Coifman and Donoho 1995). Without one it is plain FISTA.
        tolerance: an item is finished when its relative change |x_k+1 - x_k| / |x_k+1| falls below this.
    """
    target = operator.adjoint(kspace)
    height, width = target.shape[-2:]
    wavelet = Wavelet((height, width), target.dtype, target.device)
    threshold = torch.as_tensor(strength, dtype=target.real.dtype, device=target.device).reshape(-1, 1, 1)

    x = target.new_zeros(target.shape[0], *wavelet.shape)
    x[:, :height, :width] = target
    ahead, momentum = x, 1.0
    active = torch.ones(target.shape[0], 1, 1, dtype=torch.bool, device=target.device)
    for _ in range(iterations):
        moved = ahead.clone()
        image = ahead[:, :height, :width].contiguous()
        moved[:, :height, :width] += target - operator.normal(image)
        new = _shrink(moved, wavelet, threshold, _shift(wavelet, generator))
        step = new - x
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = torch.where(active, new + ((momentum - 1) / following) * step, ahead)
        x, momentum = torch.where(active, new, x), following
        active = active & (_norm(step) > tolerance * _norm(x))
        if not bool(active.any()):
            break
    return x[:, :height, :width].contiguous()


def _shrink(image: Tensor, wavelet: Wavelet, threshold: Tensor, shift: tuple[int, int]) -> Tensor:
    """Proximal map of threshold |Psi x|_1 on the grid moved by ``shift``, coarse band kept."""
    moved = torch.roll(image, shift, (1, 2)) if any(shift) else image
    coefficients = wavelet.forward(moved)
    coarse = wavelet.coarse(coefficients).clone()
    magnitude = coefficients.abs()
    coefficients *= (magnitude - threshold).clamp_(min=0).div_(magnitude.clamp_(min=1e-30))
    wavelet.coarse(coefficients).copy_(coarse)
    result = wavelet.inverse(coefficients)
    return torch.roll(result, (-shift[0], -shift[1]), (1, 2)) if any(shift) else result


def _shift(wavelet: Wavelet, generator: torch.Generator | None) -> tuple[int, int]:
    if generator is None:
        return 0, 0
    y, x = torch.randint(2**wavelet.levels, (2,), generator=generator, device=generator.device).tolist()
    return y, x


def _norm(image: Tensor) -> Tensor:
    return torch.linalg.vector_norm(image, dim=(-2, -1), keepdim=True)
