"""Reconstruction without a network: zero-filled, SENSE by conjugate gradients, L1-wavelet and total variation.

All take an operator A with maps (batch, coil, y, x) and scaled, whitened k-space (batch, coil, y, x), read only where
the operator's mask is set, and return complex images (batch, y, x). Items of a batch never influence each other. With
sets of maps (batch, set, coil, y, x) there is an image of each set, (batch, set, y, x).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from rsdmri.physics.fista import fista
from rsdmri.physics.sense import Sense
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.physics.tv import tv_proximal
from rsdmri.physics.wavelet import Wavelet

SENSE_FACTOR = 10.0
L1_FACTOR, L1_FLOOR = 0.2, 3e-4
TV_FACTOR, TV_FLOOR = 0.3, 1e-4
_DUAL_STEPS = 6  # of the proximal map within an iteration: with fewer, the error stays where the dual lags behind


def sense_strength(sigma_y: float | Tensor, factor: float = SENSE_FACTOR) -> float | Tensor:
    """Ridge ``factor`` sigma_y^2 for `sense_cg`, images of about 1 and noise ``sigma_y`` per complex k-space sample.

    Grid search on simulated heads (64 and 128, R = 2 and 4, sigma_y 0.003 to 0.1): the least NMSE lay at 10 to 30,
    with 10 the best of one number for all because a large ridge darkens noisy scans.
    """
    return factor * sigma_y**2


def l1_strength(sigma_y: float | Tensor, factor: float = L1_FACTOR, floor: float = L1_FLOOR) -> float | Tensor:
    """Threshold ``factor`` sigma_y + ``floor`` for `l1_wavelet`, in the same units.

    Grid search on simulated heads (160, three contrasts, R = 4, sigma_y 0.003 and 0.03) and on three measured scans,
    80 iterations: the least error lay at 0.1 to 0.3 sigma_y + 0.0003.
    """
    return factor * sigma_y + floor


def tv_strength(sigma_y: float | Tensor, factor: float = TV_FACTOR, floor: float = TV_FLOOR) -> float | Tensor:
    """Weight ``factor`` sigma_y + ``floor`` for `tv`, in the same units.

    Grid search on simulated heads (64 and 128, R = 2 and 4, sigma_y 0.003 to 0.1), 80 iterations: the least NMSE lay at
    0.1 sigma_y for little noise to 0.4 for much; 0.3 came within 6 % of it in the geometric mean.
    """
    return factor * sigma_y + floor


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
    target = operator.adjoint(kspace)
    return conjugate_gradient(operator.normal, target, shift=strength, iterations=iterations, axes=target.ndim - 1)


def l1_wavelet(
    operator: Sense,
    kspace: Tensor,
    *,
    strength: float | Tensor,
    iterations: int = 80,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-3,
) -> Tensor:
    """argmin 1/2 |A x - y|^2 + strength |Psi x|_1 by FISTA (Beck and Teboulle 2009); Psi: `Wavelet`, Haar's.

    The coarse band is not penalised; a complex coefficient is shrunk in magnitude. Images of any size live in the
    corner of a slightly larger grid. |A| <= 1 because the maps have unit norm, so the step is 1.

    Args:
        operator: A.
        kspace: y.
        strength: threshold >= 0 in image units, one number or (batch,).
        iterations: at most this many.
        generator: where given, each iteration shifts the grid at random, the same for all items, which averages out
            the blocks of a fixed wavelet grid (Coifman and Donoho 1995): then short wavelets do best. Without one it is
            plain FISTA.
        tolerance: an item is finished when its relative change |x_k+1 - x_k| / |x_k+1| falls below this.
    """
    target = operator.adjoint(kspace)
    height, width = target.shape[-2:]
    wavelet = Wavelet((height, width), target.dtype, target.device)
    threshold = _per_item(strength, target)
    margins = (0, wavelet.shape[1] - width, 0, wavelet.shape[0] - height)

    def normal(x: Tensor) -> Tensor:
        return pad(operator.normal(x[..., :height, :width].contiguous()), margins)

    def proximal(x: Tensor) -> Tensor:
        return wavelet.shrink(x, threshold, _shift(wavelet, generator))

    axes, start = target.ndim - 1, pad(target, margins)
    grid = fista(normal, start, proximal, iterations=iterations, tolerance=tolerance, axes=axes)
    return grid[..., :height, :width].contiguous()


def tv(
    operator: Sense,
    kspace: Tensor,
    *,
    strength: float | Tensor,
    iterations: int = 80,
    tolerance: float = 1e-3,
) -> Tensor:
    """argmin 1/2 |A x - y|^2 + strength TV(x) by FISTA (Beck and Teboulle 2009); TV: `total_variation`, isotropic.

    The proximal map is solved by a few dual steps from where the last iteration left them; |A| <= 1, so the step is 1.

    Args:
        operator: A.
        kspace: y.
        strength: weight >= 0 in image units, one number or (batch,).
        iterations: at most this many.
        tolerance: as in `l1_wavelet`.
    """
    target = operator.adjoint(kspace)
    weight = _per_item(strength, target)
    dual: Tensor | None = None

    def proximal(x: Tensor) -> Tensor:
        nonlocal dual
        image, dual = tv_proximal(x, weight, dual=dual, iterations=_DUAL_STEPS)
        return image

    axes = target.ndim - 1
    return fista(operator.normal, target, proximal, iterations=iterations, tolerance=tolerance, axes=axes)


def _per_item(strength: float | Tensor, images: Tensor) -> Tensor:
    """A number, or one for each of ``images`` (batch, ...), so that it multiplies them."""
    weight = torch.as_tensor(strength, dtype=images.real.dtype, device=images.device)
    return weight.reshape(-1, *[1] * (images.ndim - 1))


def _shift(wavelet: Wavelet, generator: torch.Generator | None) -> tuple[int, int]:
    if generator is None:
        return 0, 0
    y, x = torch.randint(2**wavelet.levels, (2,), generator=generator, device=generator.device).tolist()
    return y, x
