"""General image corruptions with additive Gaussian noise: blur, missing pixels, low resolution.

Denoising is :class:`rsdmri.physics.linop.Identity` with a noise level, Fourier acquisition is
:mod:`rsdmri.physics.sense`. Images [..., y, x], real (channels first) or complex alike; the result has their type.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.linop import Composition, LinearOperator, check_shape, linear
from rsdmri.physics.sense import Sampling, Sense


@dataclass(frozen=True)
class Corruption:
    """The measurement y = A x + n: an operator and its noise level sigma_y.

    ``noise_level`` is the standard deviation of one measured number: of a real value for real images, and
    E|n|^2 = sigma_y^2 per complex sample, n ~ CN(0, sigma_y^2 I), for complex ones.
    Raises ``InputError`` for a noise level that is negative or not finite.
    """

    operator: LinearOperator
    noise_level: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise_level < math.inf:
            raise InputError(f"noise_level: expected a standard deviation of 0 or more, got {self.noise_level}")

    def measure(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return A x + n; what a sampling mask leaves out stays exactly zero, without noise."""
        y = self.operator.forward(x)
        noise = torch.randn(y.shape, dtype=y.dtype, generator=generator, device=generator.device).to(y.device)
        mask = _sampled(self.operator)
        return y + self.noise_level * (noise if mask is None else torch.where(mask, noise, 0))


class Blur(LinearOperator):
    """Gaussian blur of the last two axes of ``shape``, circular boundary: A = F^-1 g F with real g, self-adjoint.

    The kernel exp(-d^2 / 2 sigma^2), d the circular distance in pixels, sums to 1 along each axis; ``sigma`` in pixels.
    Raises ``InputError`` unless sigma is positive.
    """

    def __init__(self, sigma: float, shape: tuple[int, ...]) -> None:
        if not 0 < sigma < math.inf:
            raise InputError(f"sigma: expected a positive width in pixels, got {sigma}; without blur use Identity")
        _require_image(shape)
        self.sigma = sigma
        self.domain_shape = self.range_shape = tuple(shape)
        self._transfer = tuple(torch.fft.fft(_gaussian(torch.arange(n), n, sigma)).real for n in shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self._filter(x, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A y."""
        return self._filter(y, 1)

    def normal(self, x: Tensor) -> Tensor:
        """Return A^2 x, one pass with the squared transfer function."""
        return self._filter(x, 2)

    def _filter(self, x: Tensor, power: int) -> Tensor:
        check_shape(x, self.domain_shape)

        def apply(image: Tensor) -> Tensor:
            rows, columns = (
                transfer.to(device=image.device, dtype=image.real.dtype) ** power for transfer in self._transfer
            )
            if image.is_complex():
                result: Tensor = torch.fft.ifft2(torch.fft.fft2(image).mul_(rows[:, None] * columns))
            else:
                half = columns[: columns.shape[0] // 2 + 1]
                result = torch.fft.irfft2(torch.fft.rfft2(image).mul_(rows[:, None] * half), s=image.shape[-2:])
            return result

        return linear(x, apply, apply)


class Inpainting(Sampling):
    """Keeps the pixels where ``mask`` is set (bool, broadcast to ``shape`` [..., y, x]), others zero; a projection."""

    @classmethod
    def random(
        cls, keep: float, shape: tuple[int, ...], generator: torch.Generator, *, mask_shape: tuple[int, ...] = ()
    ) -> "Inpainting":
        """Each pixel is kept with probability ``keep``, independently; the mask lies on the device of the generator.

        One mask (y, x) serves all leading axes (the channels of a pixel go together) unless ``mask_shape``, which
        broadcasts to ``shape``, says otherwise: (batch, 1, y, x) draws a mask per image.
        Raises ``InputError`` for a probability outside (0, 1].
        """
        return cls(_kept(keep, mask_shape or tuple(shape[-2:]), generator), shape)

    def further(self, keep: float, generator: torch.Generator) -> "Inpainting":
        """A random subset of the pixels, each one kept with probability ``keep``: the further mask of ambient training.

        Raises ``InputError`` for a probability outside (0, 1].
        """
        return Inpainting(self.mask & _kept(keep, tuple(self.mask.shape), generator, self.mask), self.domain_shape)


class Downsampling(LinearOperator):
    """Lower resolution by an integer ``factor``, [..., y, x] to [..., y / factor, x / factor]: A x = R_y x R_x^T.

    Without ``sigma`` each value is the mean of a factor x factor block; with it, a Gaussian of width ``sigma`` (pixels
    of the fine image) about the centre of the block, circular boundary, weights that sum to 1.
    Raises ``InputError`` for a factor that does not divide both sizes or a width that is not positive.
    """

    def __init__(self, factor: int, shape: tuple[int, ...], *, sigma: float | None = None) -> None:
        _require_image(shape)
        if factor < 1 or any(n % factor for n in shape[-2:]):
            cropped = " x ".join(str(max(n // factor, 1) * factor) for n in shape[-2:]) if factor > 0 else "the image"
            raise InputError(
                f"factor: expected a divisor of both sizes of {shape[-2]} x {shape[-1]}, got {factor}; "
                f"crop or pad the image to {cropped} or choose another factor"
            )
        if sigma is not None and not 0 < sigma < math.inf:
            raise InputError(f"sigma: expected a positive width in pixels, got {sigma}; None takes the block mean")
        self.factor, self.sigma = factor, sigma
        self.domain_shape = tuple(shape)
        self.range_shape = (*shape[:-2], *(n // factor for n in shape[-2:]))
        self._rows, self._columns = (_decimation(n, factor, sigma) for n in shape[-2:])
        self._normal_rows, self._normal_columns = (r.mT @ r for r in (self._rows, self._columns))

    def forward(self, x: Tensor) -> Tensor:
        """Return R_y x R_x^T."""
        check_shape(x, self.domain_shape)
        return _separable(x, self._rows, self._columns)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return R_y^T y R_x."""
        check_shape(y, self.range_shape)
        return _separable(y, self._rows.mT, self._columns.mT)

    def normal(self, x: Tensor) -> Tensor:
        """Return (R_y^T R_y) x (R_x^T R_x)."""
        check_shape(x, self.domain_shape)
        return _separable(x, self._normal_rows, self._normal_columns)


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows`` x ``columns``^T over the last two axes."""
    rows, columns = (matrix.to(device=x.device, dtype=x.dtype) for matrix in (rows, columns))
    return rows @ x @ columns.mT


def _decimation(n: int, factor: int, sigma: float | None) -> Tensor:
    """The matrix (n / factor, n) that gives the value of each block along one axis."""
    if sigma is None:
        return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor
    centers = torch.arange(n // factor) * factor + (factor - 1) / 2
    return _gaussian(torch.arange(n) - centers[:, None], n, sigma)


def _gaussian(offset: Tensor, n: int, sigma: float) -> Tensor:
    """Gaussian weights of the circular distance of ``offset`` on an axis of ``n``, sum 1 along the last axis."""
    offset = offset.to(torch.float64).remainder(n)
    exponent = -0.5 * (torch.minimum(offset, n - offset) / sigma).square()
    return torch.softmax(exponent, dim=-1)


def _kept(keep: float, shape: tuple[int, ...], generator: torch.Generator, like: Tensor | None = None) -> Tensor:
    if not 0 < keep <= 1:
        raise InputError(f"keep: expected a probability in (0, 1], got {keep}")
    kept = torch.rand(shape, generator=generator, device=generator.device) < keep
    return kept if like is None else kept.to(like.device)


def _sampled(operator: LinearOperator) -> Tensor | None:
    """Where ``operator`` samples its range, None for everywhere."""
    match operator:
        case Sampling():
            return operator.mask
        case Sense():
            return operator.mask.unsqueeze(-3)
        case Composition():
            return _sampled(operator.outer)
        case _:
            return None


def _require_image(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"shape: expected [..., y, x] without an empty axis, got {list(shape)}")
