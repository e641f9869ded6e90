"""Emulated single-coil scans: the linear combination of coils that looks most like their root sum of squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsdmri.physics.fourier import rss


def single_coil_weights(images: Tensor) -> Tensor:
    """Weights w (coil,) complex64 of one emulated coil, sum_c w_c k_c, for a whole volume.

    w minimises sum_p (sqrt |sum_c w_c x_cp| - sqrt b_p)^2 over the pixels p, b the root sum of squares of the coil
    images x, by L-BFGS from the linear least-squares fit of sum_c w_c x_c to b. The noise and the phase of a single
    receiver stay. Tygert and Zbontar, Commun. Appl. Math. Comput. Sci. 15 (2020), arXiv:1811.08026: fastMRI's
    single-coil data.

    Args:
        images: (slice, coil, y, x) complex, of the fully sampled scan, cropped to what the fit should see.

    Raises:
        ValueError: another shape or a real type; images that are zero everywhere or not finite.
    """
    if images.ndim != 4 or not images.is_complex():
        raise ValueError(f"images: expected complex (slice, coil, y, x), got {images.dtype} {list(images.shape)}")
    target = rss(images)
    size = float(target.mean())
    if not 0 < size < float("inf"):
        raise ValueError("images: expected finite values, not all zero")
    from scipy.optimize import minimize

    pixels = (images / size).movedim(1, 0).flatten(1)
    wanted = (target / size).flatten()
    gram = (pixels @ pixels.mH).conj().to(torch.complex128)
    right = (pixels @ wanted.to(pixels.dtype)).conj().to(torch.complex128)
    start = torch.linalg.lstsq(gram, right, driver="gelsd").solution.numpy()
    found = minimize(misfit, np.concatenate([start.real, start.imag]), (pixels, wanted), "L-BFGS-B", jac=True)
    real, imaginary = np.split(found.x, 2)
    return torch.from_numpy(real + 1j * imaginary).to(torch.complex64)


def misfit(
    weights: npt.NDArray[np.float64], pixels: Tensor, wanted: Tensor
) -> tuple[float, npt.NDArray[np.floating[Any]]]:
    """Misfit sum (sqrt |z| - sqrt b)^2 of z = sum_c w_c x_c and its gradient in the real and imaginary parts of w.

    Args:
        weights: real parts of w, then imaginary parts.
        pixels: x (coil, pixel) complex.
        wanted: b (pixel,) real.
    """
    real, imaginary = np.split(weights, 2)
    combined = torch.from_numpy(real + 1j * imaginary).to(pixels.dtype) @ pixels
    magnitude = combined.abs()
    difference = magnitude.sqrt() - wanted.sqrt()
    slope = torch.where(magnitude > 0, difference * magnitude.clamp(min=1e-30) ** -1.5, 0)
    gradient = (pixels @ (slope * combined).conj()).to(torch.complex128).numpy().conj()
    value = float(difference.to(torch.float64).square().sum())
    return value, np.concatenate([gradient.real, gradient.imag])
