"""Linear operators: forward, adjoint, normal, composition.

An operator is immutable once built and applying it changes nothing. ``domain_shape`` and ``range_shape`` are the
trailing axes it acts on; unless an operator says otherwise, further leading axes are independent items.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class LinearOperator(ABC):
    """A complex-linear map A between tensors of fixed trailing shapes."""

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x; ``x`` is ``[..., *domain_shape]``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^H y; ``y`` is ``[..., *range_shape]``."""

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x; operators with a closed form override this."""
        return self.adjoint(self.forward(x))

    @property
    def H(self) -> "LinearOperator":
        """The adjoint A^H as an operator."""
        return Adjoint(self)

    @overload
    def __matmul__(self, other: "LinearOperator") -> "LinearOperator": ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    def __matmul__(self, other: "LinearOperator | Tensor") -> "LinearOperator | Tensor":
        if isinstance(other, LinearOperator):
            return Composition(self, other)
        if isinstance(other, Tensor):
            return self.forward(other)
        return NotImplemented

    def to_dense(self, dtype: torch.dtype = torch.complex128, device: torch.device | str | None = None) -> Tensor:
        """Matrix of A on flattened ``domain_shape`` vectors, ``[range size, domain size]``; for small problems."""
        columns = []
        for index in range(torch.Size(self.domain_shape).numel()):
            unit = torch.zeros(self.domain_shape, dtype=dtype, device=device)
            unit.view(-1)[index] = 1
            columns.append(self.forward(unit).reshape(-1))
        return torch.stack(columns, dim=1)


class Adjoint(LinearOperator):
    """A^H of ``operator``."""

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape

    def forward(self, x: Tensor) -> Tensor:
        """Return A^H x."""
        return self._operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A y."""
        return self._operator.forward(y)

    @property
    def H(self) -> LinearOperator:
        """The operator itself."""
        return self._operator


class Composition(LinearOperator):
    """A B: first ``inner`` (B), then ``outer`` (A)."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if inner.range_shape != outer.domain_shape:
            raise ValueError(f"cannot compose: inner gives {inner.range_shape}, outer takes {outer.domain_shape}")
        self.outer, self.inner = outer, inner
        self.domain_shape, self.range_shape = inner.domain_shape, outer.range_shape

    def forward(self, x: Tensor) -> Tensor:
        """Return A B x."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return B^H A^H y."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        """Return B^H A^H A B x, with the closed-form normal of A where it has one."""
        return self.inner.adjoint(self.outer.normal(self.inner.forward(x)))


class Identity(LinearOperator):
    """x to x on ``shape``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.domain_shape = self.range_shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        check_shape(x, self.domain_shape)
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        """Return y."""
        return self.forward(y)

    def normal(self, x: Tensor) -> Tensor:
        """Return x."""
        return self.forward(x)


def check_shape(x: Tensor, shape: tuple[int, ...], *, leading: bool = True) -> None:
    """Raise ``ValueError`` unless ``x`` has trailing axes ``shape`` (and no others when ``leading`` is false)."""
    fits = x.ndim >= len(shape) and tuple(x.shape[x.ndim - len(shape) :]) == shape
    if not fits or (not leading and x.ndim != len(shape)):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"expected shape [{'..., ' if leading else ''}{wanted}], got {list(x.shape)}")


class _Linear(torch.autograd.Function):
    """Autograd of a linear map whose adjoint is known: nothing is stored, the gradient is the adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.maps = (apply, adjoint)
        return apply(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        apply, adjoint = ctx.maps
        return linear(grads[0], adjoint, apply), None, None


def linear(x: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``apply(x)``, whose gradient is ``adjoint``; ``apply`` itself may work in place on its own buffers."""
    if x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Linear.apply(x, apply, adjoint)  # type: ignore[no-untyped-call]
        return result
    return apply(x)
