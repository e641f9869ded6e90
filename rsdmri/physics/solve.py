"""Solvers of (N + shift I) x = b for self-adjoint positive N, each item of a batch on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from rsdmri.runtime import torch_generator


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    shift: float | Tensor = 0.0,
    iterations: int = 30,
    tolerance: float = 0.0,
    start: Tensor | None = None,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    axes: int = 2,
) -> Tensor:
    """Solve (N + shift I) x = rhs by conjugate gradients (Hestenes and Stiefel 1952), x [..., y, x] like ``rhs``.

    The last ``axes`` axes are one problem (3 for volumes and for images of several map sets); items along the leading
    axes never influence each other. ``normal`` applies N, self-adjoint and positive semi-definite; ``shift`` >= 0 is a
    number or one per item (the shape of the leading axes).
    An item stops when its residual is zero or below ``tolerance`` times its right-hand side. ``start`` is 0 if None.
    ``preconditioner`` applies an approximate inverse of N + shift I, self-adjoint and positive definite.
    Raises ``ValueError`` for shapes that do not fit.
    """
    shift = _checked_shift(rhs, shift, start, iterations, axes)
    x = torch.zeros_like(rhs) if start is None else start.clone()
    residual = rhs.clone() if start is None else rhs - normal(start) - shift * start
    direction = (residual if preconditioner is None else preconditioner(residual)).clone()
    energy = inner(residual, direction, axes)
    goal = tolerance**2 * inner(rhs, rhs, axes)
    recorded = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (rhs, shift, start))
    for _ in range(iterations):
        active = (energy if preconditioner is None else inner(residual, residual, axes)) > goal
        if tolerance > 0 and not bool(active.any()):
            break
        image = normal(direction)
        recorded = recorded or image.requires_grad
        image = torch.add(image, direction * shift)
        step = torch.where(active, _ratio(energy, inner(direction, image, axes)), 0)
        x = _plus(x, step, direction, recorded)
        residual = _plus(residual, -step, image, recorded)
        preconditioned = residual if preconditioner is None else preconditioner(residual)
        previous, energy = energy, inner(residual, preconditioned, axes)
        direction = _plus(preconditioned.clone(), _ratio(energy, previous), direction, recorded)
    return x


def _checked_shift(
    rhs: Tensor, shift: float | Tensor, start: Tensor | None, iterations: int, axes: int
) -> float | Tensor:
    """``shift`` so that it multiplies ``rhs``; ``ValueError`` for what does not fit."""
    if not 1 <= axes <= rhs.ndim:
        raise ValueError(f"rhs: expected at least {axes} axes, [..., y, x], got shape {list(rhs.shape)}")
    if start is not None and start.shape != rhs.shape:
        raise ValueError(f"start: expected shape {list(rhs.shape)}, got {list(start.shape)}")
    if iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")
    if not isinstance(shift, Tensor) or shift.ndim == 0:
        return shift
    leading = rhs.shape[: rhs.ndim - axes]
    if shift.shape != leading:
        raise ValueError(f"shift: expected one number or shape {list(leading)}, got {list(shift.shape)}")
    return shift.reshape(*leading, *[1] * axes)


def _plus(a: Tensor, weight: Tensor, b: Tensor, recorded: bool) -> Tensor:
    """a + weight b for a real ``weight`` per item; in place on ``a`` unless gradients are ``recorded``."""
    if recorded:
        return a + weight * b
    if a.is_complex():
        torch.view_as_real(a).addcmul_(weight[..., None], torch.view_as_real(b))
        return a
    return a.addcmul_(weight, b)


def largest_eigenvalue(
    normal: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    iterations: int = 30,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Largest eigenvalue of each item's N by power iteration from a fixed random start, real, shape ``shape[:-2]``.

    ``normal`` applies N, self-adjoint and positive semi-definite, to ``shape`` [..., y, x]. The value approaches the
    true one from below.
    """
    start = torch.randn(shape, dtype=dtype, generator=torch_generator("largest eigenvalue", *shape))
    x = start.to(device)
    value = torch.zeros_like(inner(x, x))
    for _ in range(iterations):
        x = x * _ratio(torch.ones_like(value), inner(x, x).sqrt())
        image = normal(x)
        value, x = inner(x, image), image
    return value[..., 0, 0]


def inner(a: Tensor, b: Tensor, axes: int = 2) -> Tensor:
    """Real part of <a, b> over the last ``axes`` axes, which are kept with size 1."""
    if a.is_complex():
        last = tuple(range(-axes - 1, 0))
        return (torch.view_as_real(a) * torch.view_as_real(b)).sum(last, keepdim=True)[..., 0]
    return (a * b).sum(tuple(range(-axes, 0)), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is not positive (a finished or empty problem), with finite gradients."""
    positive = b > 0
    return torch.where(positive, a / torch.where(positive, b, 1), 0)
