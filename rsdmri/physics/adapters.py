"""Operators of this package for deepinv and mrpro, and theirs for this package.

deepinv holds a complex tensor [...] as a real one with two channels behind the batch: images [batch, 2, y, x], k-space
[batch, 2, coil, y, x]. mrpro holds complex images (..., 1, z, y, x) and k-space (..., coil, k2, k1, k0), its operators
return tuples. An adapter only lays tensors out anew; it keeps no copy, and the operator behind it stays on its device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.linop import LinearOperator, check_shape, linear
from rsdmri.runtime import torch_generator

_Map = Callable[[Tensor], Tensor]


def to_deepinv(operator: LinearOperator, *, complex_images: bool = True) -> Any:
    """``operator`` as a ``deepinv.physics.LinearPhysics`` with its adjoint and its closed-form normal.

    Tensors [batch, 2, *shape] become complex [batch, *shape]; with ``complex_images`` false, real [batch, *shape] are
    passed on as they are (a blur of colour images, say). The noise model is deepinv's default, none; its Gaussian sigma
    counts per real channel, sigma_y / sqrt(2) for complex data.
    Raises ``InputError`` when deepinv is not installed.
    """
    try:
        from deepinv.physics import LinearPhysics
    except ImportError as error:
        raise _missing("deepinv", error) from None

    def adapted(apply: _Map) -> Callable[..., Tensor]:
        def applied(x: Tensor, **_: Any) -> Tensor:
            return _split(apply(_joined(x))) if complex_images else apply(x)

        return applied

    class Physics(LinearPhysics):  # type: ignore[misc]
        def A_adjoint_A(self, x: Tensor, **parameters: Any) -> Tensor:
            return normal(x, **parameters)

    normal = adapted(operator.normal)
    return Physics(A=adapted(operator.forward), A_adjoint=adapted(operator.adjoint))


def from_deepinv(
    physics: Any,
    domain_shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str | None = None,
) -> LinearOperator:
    """A deepinv ``LinearPhysics`` as an operator on images of ``domain_shape``, (y, x), or (channel, y, x) if real.

    A complex ``dtype`` takes its two channels, a real one passes tensors on as they are. The range is found by
    measuring an image of this type on ``device``, where the physics computes. What deepinv keeps per item of a batch
    (a mask for each image) does not fit: every item meets the same physics.
    Raises ``InputError`` for a physics that is not linear over these numbers, such as one that treats the real and the
    imaginary channel differently, or whose adjoint is not one.
    """

    def adapted(apply: _Map) -> _Map:
        return (lambda x: _joined(apply(_split(x)))) if dtype.is_complex else apply

    unit = torch.randn((1, *domain_shape), dtype=dtype, generator=torch_generator("probe", *domain_shape)).to(device)
    return _Foreign(adapted(physics.A), adapted(physics.A_adjoint), adapted(physics.A_adjoint_A), unit)


def to_mrpro(operator: LinearOperator, *, coils: bool = True) -> Any:
    """``operator`` on images [(batch,) y, x] as a ``mrpro.operators.LinearOperator``, its ``gram`` the normal.

    Images (..., 1, z, y, x) to k-space (..., coil, z, k1, k0): slices are items. A trajectory's samples lie along k0,
    with k1 = 1. ``coils`` false is for operators from images to images, (..., 1, z, y, x).
    Raises ``InputError`` when mrpro is not installed, ``ValueError`` for an operator on other shapes.
    """
    try:
        from mrpro.operators import LinearOperator as MrproOperator
    except ImportError as error:
        raise _missing("mrpro", error) from None
    batch_axes = len(operator.domain_shape) - 2
    sample_axes = len(operator.range_shape) - batch_axes - coils
    if batch_axes not in (0, 1) or sample_axes not in (1, 2):
        raise ValueError(
            f"expected an operator from [(batch,) y, x] to [(batch,) {'coil, ' if coils else ''}y, x], "
            f"got {operator.domain_shape} to {operator.range_shape}"
        )

    def image_in(x: Tensor) -> Tensor:
        return x.squeeze(-4).reshape(-1, *x.shape[-2:])

    def image_out(x: Tensor, like: Tensor) -> Tensor:
        return x.reshape(*like.shape[:-4], 1, like.shape[-3], *x.shape[-2:])

    def samples_in(y: Tensor) -> Tensor:
        items = y.movedim(-3, -4).reshape(-1, y.shape[-4], *y.shape[-2:])
        items = items.squeeze(-2) if sample_axes == 1 else items
        return items if coils else items.squeeze(1)

    def samples_out(y: Tensor, like: Tensor) -> Tensor:
        items = y if coils else y.unsqueeze(1)
        items = items.unsqueeze(-2) if sample_axes == 1 else items
        return items.reshape(*like.shape[:-4], like.shape[-3], *items.shape[1:]).movedim(-4, -3)

    class Gram(MrproOperator):  # type: ignore[misc]
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (image_out(operator.normal(image_in(x)), x),)

        def adjoint(self, x: Tensor) -> tuple[Tensor]:
            return self.forward(x)

    class Acquisition(MrproOperator):  # type: ignore[misc]
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (samples_out(operator.forward(image_in(x)), x),)

        def adjoint(self, x: Tensor) -> tuple[Tensor]:
            return (image_out(operator.adjoint(samples_in(x)), x),)

        @property
        def gram(self) -> Any:
            return Gram()

    return Acquisition()


def from_mrpro(
    operator: Any,
    domain_shape: tuple[int, int],
    *,
    coils: bool = True,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str | None = None,
) -> LinearOperator:
    """A mrpro ``LinearOperator`` on one slice as an operator from (y, x) to (coil, k1, k0), or (y, x) without coils.

    Leading axes become mrpro's first one. The range is found by measuring an image of ``dtype`` on ``device``.
    Raises ``ValueError`` for an operator whose measurement has several partitions (k2) or, without ``coils``, coils;
    ``InputError`` when it is not linear or its adjoint is not one.
    """

    def image_in(x: Tensor) -> Tensor:
        return x[:, None, None]

    def image_out(x: Tensor) -> Tensor:
        return x[:, 0, 0]

    def samples_out(y: Tensor) -> Tensor:
        if y.ndim != 5 or y.shape[2] != 1 or (not coils and y.shape[1] != 1):
            raise ValueError(f"expected measurements (1, {'coil' if coils else '1'}, 1, k1, k0), got {list(y.shape)}")
        return y[:, :, 0] if coils else y[:, 0, 0]

    def samples_in(y: Tensor) -> Tensor:
        return y[:, :, None] if coils else y[:, None, None]

    unit = torch.randn((1, *domain_shape), dtype=dtype, generator=torch_generator("probe", *domain_shape)).to(device)
    return _Foreign(
        lambda x: samples_out(operator(image_in(x))[0]),
        lambda y: image_out(operator.adjoint(samples_in(y))[0]),
        lambda x: image_out(operator.gram(image_in(x))[0]),
        unit,
    )


class _Foreign(LinearOperator):
    """An operator given by functions of tensors with one leading axis; ``unit`` (1, *domain) tries them out."""

    def __init__(self, forward: _Map, adjoint: _Map, normal: _Map, unit: Tensor) -> None:
        self._maps = forward, adjoint, normal
        self.domain_shape = tuple(unit.shape[1:])
        with torch.no_grad():
            _require_linear(unit, measured := forward(unit), forward, adjoint)
        self.range_shape = tuple(measured.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self._applied(x, self.domain_shape, self._maps[0], self._maps[1])

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^H y."""
        return self._applied(y, self.range_shape, self._maps[1], self._maps[0])

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x, as the wrapped operator computes it."""
        return self._applied(x, self.domain_shape, self._maps[2], self._maps[2])

    def _applied(self, x: Tensor, shape: tuple[int, ...], apply: _Map, adjoint: _Map) -> Tensor:
        check_shape(x, shape)
        items = linear(x.reshape(-1, *shape), apply, adjoint)
        return items.reshape(*x.shape[: x.ndim - len(shape)], *items.shape[1:]).clone()


def _require_linear(x: Tensor, y: Tensor, forward: _Map, adjoint: _Map) -> None:
    """Raise ``InputError`` unless A (i x) = i A x (-x for real x) and <A x, A x> = <x, A^H A x>; y = A x."""
    turn = 1j if x.is_complex() else -1.0
    if not float(torch.linalg.vector_norm(forward(turn * x) - turn * y)) <= 1e-3 * float(torch.linalg.vector_norm(y)):
        raise InputError(f"expected an operator that is linear on {x.dtype} images, A(c x) = c A(x) does not hold")
    back = adjoint(y)
    if back.shape != x.shape:
        raise InputError(f"expected an adjoint that gives shape {list(x.shape[1:])}, got {list(back.shape[1:])}")
    energy = float(torch.linalg.vector_norm(y)) ** 2
    if not abs(complex(torch.vdot(x.flatten(), back.flatten())) - energy) <= 1e-3 * energy:
        raise InputError("expected an adjoint with <A x, y> = <x, A^H y>; the one of this operator is something else")


def _split(x: Tensor) -> Tensor:
    """Complex [batch, ...] to real [batch, 2, ...]."""
    return torch.view_as_real(x).movedim(-1, 1).contiguous()


def _joined(x: Tensor) -> Tensor:
    """Real [batch, 2, ...] to complex [batch, ...]."""
    if x.ndim < 2 or x.shape[1] != 2 or x.is_complex():
        raise ValueError(f"expected real [batch, 2, ...], got {x.dtype} of shape {list(x.shape)}")
    return torch.view_as_complex(x.movedim(1, -1).contiguous())


def _missing(name: str, error: ImportError) -> InputError:
    return InputError(f"{name} cannot be imported ({error}): python -m pip install 'rsdmri[{name}]'")
