"""What every linear operator must satisfy; subclass and give the operators."""

import pytest
import torch
from torch import Tensor

from rsdmri.physics.linop import LinearOperator
from rsdmri.runtime import torch_generator

DTYPE = torch.complex128
SIZES = ((5, 6), (8, 5), (7, 9), (6, 4))


def randn(*shape: int, key: object = 0, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch_generator("contract", key, *shape))


class OperatorContract:
    """Subclasses give ``build(size)`` for a (y, x) size, 3 coils, complex128."""

    leading = True  # whether further leading axes are taken; otherwise the first axis is a batch

    def build(self, size: tuple[int, int]) -> LinearOperator:
        raise AssertionError("subclasses build their operator")

    @pytest.fixture(params=SIZES, ids=str)
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return self.build(request.param)

    def test_shapes(self, operator):
        assert operator.forward(randn(*operator.domain_shape)).shape == operator.range_shape
        assert operator.adjoint(randn(*operator.range_shape)).shape == operator.domain_shape
        assert operator.normal(randn(*operator.domain_shape)).shape == operator.domain_shape
        assert operator.H.domain_shape == operator.range_shape
        assert operator.H.H is operator or operator.H.H.domain_shape == operator.domain_shape

    def test_wrong_ranks_and_sizes_are_refused(self, operator):
        for apply, shape in (
            (operator.forward, operator.domain_shape),
            (operator.normal, operator.domain_shape),
            (operator.adjoint, operator.range_shape),
        ):
            for wrong in (shape[1:], (*shape[:-1], shape[-1] + 1), (*shape, 1)):
                with pytest.raises(ValueError, match="expected"):
                    apply(randn(*wrong))
            if not self.leading:
                with pytest.raises(ValueError, match="expected"):
                    apply(randn(2, *shape))

    def test_inputs_stay_untouched_and_applying_changes_nothing(self, operator):
        for apply, shape in (
            (operator.forward, operator.domain_shape),
            (operator.adjoint, operator.range_shape),
            (operator.normal, operator.domain_shape),
        ):
            x = randn(*shape)
            before = x.clone()
            first = apply(x)
            kept = first.clone()
            assert torch.equal(apply(x), kept)
            first.zero_()  # the result is the caller's own
            assert torch.equal(x, before)
            assert torch.equal(apply(x), kept)

    def test_complex_linear(self, operator):
        a, b = randn(*operator.domain_shape, key=1), randn(*operator.domain_shape, key=2)
        scale = 0.3 - 1.7j
        torch.testing.assert_close(
            operator.forward(a + scale * b), operator.forward(a) + scale * operator.forward(b), rtol=1e-12, atol=1e-12
        )

    def test_adjoint(self, operator):
        x, y = randn(*operator.domain_shape, key=1), randn(*operator.range_shape, key=2)
        left, right = (
            torch.vdot(y.flatten(), operator.forward(x).flatten()),
            torch.vdot(operator.adjoint(y).flatten(), x.flatten()),
        )
        assert abs(left - right) < 1e-10 * x.norm() * y.norm()

    def test_normal_is_adjoint_of_forward(self, operator):
        x = randn(*operator.domain_shape)
        torch.testing.assert_close(operator.normal(x), operator.adjoint(operator.forward(x)), rtol=1e-10, atol=1e-10)

    def test_dense_matrices(self):
        operator = self.build((5, 6))
        dense = operator.to_dense(DTYPE)
        x, y = randn(*operator.domain_shape), randn(*operator.range_shape)
        torch.testing.assert_close(dense @ x.flatten(), operator.forward(x).flatten(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(dense.mH @ y.flatten(), operator.adjoint(y).flatten(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(operator.H.to_dense(DTYPE), dense.mH, rtol=1e-10, atol=1e-10)

    def test_gradient_is_the_adjoint(self, operator):
        for apply, back, shape_in, shape_out in (
            (operator.forward, operator.adjoint, operator.domain_shape, operator.range_shape),
            (operator.adjoint, operator.forward, operator.range_shape, operator.domain_shape),
            (operator.normal, operator.normal, operator.domain_shape, operator.domain_shape),
        ):
            x, g = randn(*shape_in).requires_grad_(), randn(*shape_out, key=2)
            (gradient,) = torch.autograd.grad(apply(x), x, g)
            torch.testing.assert_close(gradient, back(g), rtol=1e-10, atol=1e-10)

    def test_second_derivatives(self):
        operator = self.build((5, 6))
        x = randn(*operator.domain_shape).requires_grad_()
        (gradient,) = torch.autograd.grad(operator.forward(x).abs().square().sum(), x, create_graph=True)
        torch.testing.assert_close(gradient, 2 * operator.normal(x), rtol=1e-10, atol=1e-10)
        (second,) = torch.autograd.grad(gradient, x, g := randn(*operator.domain_shape, key=3))
        torch.testing.assert_close(second, 2 * operator.normal(g), rtol=1e-10, atol=1e-10)

    def test_items_are_independent(self, operator):
        if not self.leading:
            return self.check_batch(operator)
        for apply, shape in (
            (operator.forward, operator.domain_shape),
            (operator.adjoint, operator.range_shape),
            (operator.normal, operator.domain_shape),
        ):
            x = randn(2, 3, *shape)
            together = apply(x)
            for i in range(2):
                for j in range(3):
                    torch.testing.assert_close(together[i, j], apply(x[i, j]), rtol=1e-12, atol=1e-12)
        return None

    def check_batch(self, operator):
        for apply, shape in (
            (operator.forward, operator.domain_shape),
            (operator.adjoint, operator.range_shape),
            (operator.normal, operator.domain_shape),
        ):
            x = randn(*shape)
            expected = apply(x)[1].clone()
            x[0] = torch.nan
            assert torch.equal(apply(x)[1], expected)
