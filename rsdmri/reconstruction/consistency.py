"""What the learnt methods share: what was measured, agreement with it, and the denoiser as a function of x_s."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.diffusion.acquisitions import coil_part
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.sample import Denoise, item_noise
from rsdmri.errors import InputError
from rsdmri.physics.sense import Sense
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.reconstruction.settings import Lines

CG_ITERATIONS = 12
_LEAST_NOISE = 1e-3


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


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of several images, y = A x + n, in scaled units.

    Attributes:
        operator: A with the scan's own mask, batched.
        kspace: y, complex64 ``(batch, coil, y, x)``.
        sigma_y: noise per complex k-space sample, ``(batch,)``.

    Raises:
        InputError: k-space does not fit the maps, or is not finite where it was acquired.
    """

    operator: Sense
    kspace: Tensor
    sigma_y: Tensor

    def __post_init__(self) -> None:
        kspace, maps, sigma_y = self.kspace, self.operator.maps, self.sigma_y
        if maps.shape != kspace.shape:
            raise InputError(
                f"k-space has shape {tuple(kspace.shape)} and the coil maps {tuple(maps.shape)}; they must agree"
            )
        if not bool(torch.isfinite(torch.view_as_real(self.acquired(kspace))).all()):
            raise InputError("k-space: NaN or infinite values among the acquired samples; leave those lines out")
        if sigma_y.shape != kspace.shape[:1] or not bool((torch.isfinite(sigma_y) & (sigma_y >= 0)).all()):
            raise InputError(f"sigma_y: expected one noise level of at least 0 for each of {len(kspace)} images")

    @property
    def noise(self) -> Tensor:
        """``sigma_y``, at least what keeps `data_consistency` solvable."""
        return self.sigma_y.clamp_min(_LEAST_NOISE)

    @property
    def blank(self) -> Tensor:
        """Images of 0, ``(batch, y, x)``."""
        return torch.zeros_like(self.kspace[:, 0])

    def acquired(self, kspace: Tensor) -> Tensor:
        """``kspace`` with 0 wherever nothing was acquired."""
        return torch.where(self.operator.mask.unsqueeze(-3), kspace, 0)

    def agreeing(self, estimate: Tensor, error: float) -> Tensor:
        """`data_consistency` of an estimate with this ``error`` per pixel."""
        rho = torch.full_like(self.sigma_y, error)
        return data_consistency(self.operator, self.kspace, estimate, self.noise, rho)


def shown(
    denoiser: Denoiser,
    operator: Sense,
    lines: Lines,
    *,
    coil_noise: bool = False,
    generators: Sequence[torch.Generator] = (),
) -> Denoise:
    """The denoiser as a function of x_s: (x_s, s) to D(A~^H A~ x_s + s c, M~, s).

    Args:
        denoiser: D.
        operator: A with the scan's own mask M.
        lines: M~: all lines, or the acquired ones M, which are about as many as a teacher was trained with.
        coil_noise: D knows noise of k-space samples: c is then `coil_part` of one draw; 0 where all lines are shown.
        generators: of that draw, one for each item.
    """
    if lines == "all":
        operator = operator.with_mask(torch.ones_like(operator.mask))
    part = coil_part(operator, item_noise(generators)(operator.maps)) if coil_noise and lines != "all" else None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        u = operator.normal(x)
        return denoiser(u if part is None else u + sigma[:, None, None] * part, operator, sigma)

    return denoise
