"""The denoiser: from a masked noisy image u = A~^H A~ x_s to an estimate of x.

The network sees an image and the mask; this module wraps it so that its inputs and outputs have unit size at every
noise level, and is the one place where complex images become two real channels.
"""

import copy
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from rsdmri.physics.fourier import from_channels, to_channels
from rsdmri.physics.linop import linear
from rsdmri.physics.sense import Sampling, Sense
from rsdmri.physics.solve import conjugate_gradient

Preconditioning = Literal["operator", "published", "consistent"]
Acquisition = Sense | Sampling
_LEAST_RATIO = 0.1  # on simulated heads 6 iterations give gradients within 6 %; at 0.004 they point elsewhere


def ridge_inverse(u: Tensor, operator: Acquisition, shift: Tensor, iterations: int) -> Tensor:
    """Return r = (A^H A + shift)^-1 u by a few conjugate-gradient steps, per item, with the implicit gradient.

    The matrix is Hermitian, so the adjoint of the inverse is the inverse itself: the backward pass solves once more
    instead of recording the iterations.

    Args:
        u: images ``(batch, y, x)``.
        operator: A, batched like ``u``.
        shift: positive, ``(batch,)``.
        iterations: conjugate-gradient steps.
    """

    if isinstance(operator, Sampling):  # a projection
        per_item = shift[:, None, None]
        return u / torch.where(operator.mask, 1 + per_item, per_item)

    def solve(rhs: Tensor) -> Tensor:
        return conjugate_gradient(operator.normal, rhs, shift=shift, iterations=iterations)

    return linear(u, solve, solve)


def within_support(estimate: Tensor, operator: Acquisition) -> Tensor:
    """``estimate`` (batch, y, x) where some coil sees, 0 elsewhere: no measurement says anything there, and x is 0."""
    if isinstance(operator, Sampling):
        return estimate
    return torch.where((operator.maps != 0).any(dim=-3), estimate, 0)


class Denoiser(nn.Module):
    """D(u, M~, sigma): estimate of the clean image from u = A~^H A~ (x + sigma e).

    ``published`` (Karras et al. 2022, used by Daras et al. 2023 and the RSD paper):
        D = c_skip u + c_out F(c_in u, M~, c_noise), c_skip = sd^2/(s^2+sd^2), c_out = s sd/sqrt(s^2+sd^2),
        c_in = 1/sqrt(s^2+sd^2), c_noise = ln(s)/4.
    ``operator``: lines missing from M~ carry no input, so the skip path inverts the known operator instead:
        lambda = s^2/sd^2, r = (A~^H A~ + lambda)^-1 u, D = r + sd F((1+lambda) r / sqrt(s^2+sd^2), M~, c_noise),
        which has the published skip path where A~ is the identity.
    ``consistent``: the published form, then data consistency, the proximal step of the samples v that gave u = A~^H v,
        D = argmin_x |A~ x - v|^2 / s^2 + |x - D_p|^2 / sd^2 = D_p + (A~^H A~ + lambda)^-1 (u - A~^H A~ D_p),
        lambda at least 0.1: what few iterations solve, and the gradient takes for solved.
    In all of them the estimate is 0 where no coil sees anything: no loss reaches the network's output there.

    Args:
        network: maps channels (real, imaginary, mask) and c_noise to (real, imaginary); for real images (image, mask)
            to (image). Masks of lines (batch, 1, x) and of points (batch, y, x) are the same to it: a plane.
        sigma_data: standard deviation sd of the images per real channel.
        preconditioning: which of the three forms.
        iterations: conjugate-gradient steps of the ``operator`` and ``consistent`` forms.
        autocast: run the network (never the physics) in bfloat16.
    """

    sigma_data: Tensor

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float,
        preconditioning: Preconditioning = "operator",
        iterations: int = 6,
        autocast: bool = False,
    ):
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.network = network
        self.preconditioning = preconditioning
        self.iterations = iterations
        self.autocast = autocast
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))

    def forward(self, u: Tensor, operator: Acquisition, sigma: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return the estimate ``(batch, y, x)``.

        Args:
            u: A~^H A~ x_s, ``(batch, y, x)``, complex64 or, for real images, float32.
            operator: A~, batched like ``u``.
            sigma: noise level per item, ``(batch,)``.
            conditions: what is known of the scans, ``(batch, 2)``, see `rsdmri.diffusion.conditions`; None: nothing.
        """
        data, total, ratio = self.sigma_data, self._total(sigma), (sigma / self.sigma_data) ** 2
        if self.preconditioning == "operator":
            return self.refined(ridge_inverse(u, operator, ratio, self.iterations), operator, sigma, conditions)
        change = self._network(_scaled(u, 1 / total), operator.mask, sigma, conditions)
        estimate = _scaled(u, (data / total) ** 2) + _scaled(change, sigma * data / total)
        if self.preconditioning == "consistent":
            estimate = within_support(estimate, operator)
            left = u - operator.normal(estimate)
            estimate = estimate + ridge_inverse(left, operator, ratio.clamp_min(_LEAST_RATIO), self.iterations)
        return within_support(estimate, operator)

    def refined(self, base: Tensor, operator: Acquisition, sigma: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return r + sd F((1 + lambda) r / sqrt(s^2 + sd^2), M~, c_noise) of the ``operator`` form for any image r.

        Args:
            base: r, ``(batch, y, x)``.
            operator: A~; its mask and the support of its maps are used.
            sigma: noise level told to the network, ``(batch,)``.
            conditions: as of `forward`.
        """
        data = self.sigma_data
        inputs = _scaled(base, (1 + (sigma / data) ** 2) / self._total(sigma))
        change = self._network(inputs, operator.mask, sigma, conditions)
        return within_support(base + _scaled(change, data.expand_as(sigma)), operator)

    def _total(self, sigma: Tensor) -> Tensor:
        """Standard deviation of noisy images per real number."""
        return torch.sqrt(sigma**2 + self.sigma_data**2)

    def _network(self, image: Tensor, mask: Tensor, sigma: Tensor, conditions: Tensor | None) -> Tensor:
        channels = to_channels(image) if image.is_complex() else image[:, None]
        plane = mask.to(channels.dtype).reshape(-1, 1, *mask.shape[-2:]).expand(image.shape[0], 1, *image.shape[-2:])
        known = () if conditions is None else (conditions,)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            out = self.network(torch.cat([channels, plane], dim=1), sigma.log() / 4, *known).to(channels.dtype)
        return from_channels(out) if image.is_complex() else out[:, 0]


def given(denoiser: Denoiser, conditions: Tensor | None) -> Denoiser:
    """``denoiser`` with its weights for scans of ``conditions`` ``(batch, 2)``; itself for None."""
    if conditions is None:
        return denoiser
    view = copy.copy(denoiser)
    view.forward = partial(denoiser.forward, conditions=conditions)  # type: ignore[method-assign]
    return view


class GaussianDenoiser(nn.Module):
    """Exact E[x | u, M~] for x ~ N(0, C) (circular complex, C per real channel): the reference in closed form.

    With B = A~^H A~ and u = B (x + sigma e): D = C B (B (C + sigma^2) B)^+ u. Dense, for small images only.

    Args:
        covariance: complex Hermitian ``(pixels, pixels)``.
    """

    def __init__(self, covariance: Tensor):
        super().__init__()
        self.covariance = covariance

    def forward(self, u: Tensor, operator: Acquisition, sigma: Tensor) -> Tensor:
        """Return the posterior mean for ``u`` ``(batch, y, x)`` and ``sigma`` ``(batch,)``."""
        batch, height, width = u.shape
        pixels = height * width
        basis = torch.eye(pixels, dtype=u.dtype, device=u.device).reshape(pixels, 1, height, width)
        columns = torch.stack([operator.normal(e.expand(batch, -1, -1)) for e in basis], dim=-1)
        normal = columns.reshape(batch, pixels, pixels)
        identity = torch.eye(pixels, dtype=u.dtype, device=u.device)
        noisy = self.covariance + (sigma**2)[:, None, None] * identity
        gain = self.covariance @ normal @ torch.linalg.pinv(normal @ noisy @ normal, hermitian=True, rtol=1e-9)
        return (gain @ u.reshape(batch, pixels, 1)).reshape(u.shape)


def _scaled(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image ``(batch, y, x)`` by its own number ``(batch,)``."""
    return image * factor[:, None, None]
