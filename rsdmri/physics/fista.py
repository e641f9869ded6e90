"""Proximal gradient descent with momentum, each item of a batch on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from rsdmri.physics.solve import inner


def fista(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    proximal: Callable[[Tensor], Tensor],
    *,
    step: float = 1.0,
    iterations: int = 100,
    tolerance: float = 0.0,
    start: Tensor | None = None,
    axes: int = 2,
) -> Tensor:
    """argmin_x 1/2 <x, N x> - Re <x, rhs> + g(x) by FISTA (Beck and Teboulle 2009), x [..., y, x] like ``rhs``.

    With N = A^H A and rhs = A^H y this is 1/2 |A x - y|^2 + g(x). The last ``axes`` axes are one problem; items along
    the leading axes never influence each other.

    Args:
        normal: applies N, self-adjoint and positive semi-definite.
        rhs: A^H y.
        proximal: v to argmin_x 1/2 |x - v|^2 + ``step`` g(x), a new tensor.
        step: at most 1 / |N|; 1 for coil maps of unit norm.
        iterations: at most this many.
        tolerance: an item stays when its relative change |x_k+1 - x_k| / |x_k+1| falls below this.
        start: ``rhs`` if None.

    Raises ``ValueError`` for shapes that do not fit.
    """
    if not 1 <= axes <= rhs.ndim:
        raise ValueError(f"rhs: expected at least {axes} axes, [..., y, x], got shape {list(rhs.shape)}")
    if start is not None and start.shape != rhs.shape:
        raise ValueError(f"start: expected shape {list(rhs.shape)}, got {list(start.shape)}")
    if iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")
    x = ahead = rhs if start is None else start
    momentum = 1.0
    active = torch.ones_like(inner(rhs, rhs, axes), dtype=torch.bool)
    settled = False
    for _ in range(iterations):
        new = proximal(torch.sub(rhs, normal(ahead)).mul_(step).add_(ahead))
        change = new - x
        if settled:
            new, change = torch.where(active, new, x), torch.where(active, change, 0)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        if tolerance > 0:
            active = active & (inner(change, change, axes) > tolerance**2 * inner(new, new, axes))
            settled = not bool(active.all())
            if not bool(active.any()):
                return new
        x, ahead = new, change.mul_((momentum - 1) / following).add_(new)
        momentum = following
    return x.clone() if x is rhs or x is start else x
