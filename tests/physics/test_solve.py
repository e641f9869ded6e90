import numpy as np
import pytest
import torch
from contract import randn

from rsdmri.physics import sense
from rsdmri.physics.linop import Identity
from rsdmri.physics.solve import conjugate_gradient, largest_eigenvalue
from rsdmri.runtime import torch_generator


def problem(batch=3, size=(5, 6)):
    maps = randn(batch, 3, *size, key="maps")
    mask = torch.rand(batch, 1, size[1], generator=torch_generator("solve")) < 0.6
    return sense(maps, mask)


def dense_solution(operator, rhs, shift):
    matrix = operator.H.to_dense() @ operator.to_dense()
    n = matrix.shape[0] // rhs.shape[0]
    shifts = torch.as_tensor(shift, dtype=torch.float64).expand(rhs.shape[0]).repeat_interleave(n)
    return torch.linalg.solve(matrix + torch.diag(shifts).to(matrix.dtype), rhs.flatten()).view(rhs.shape)


@pytest.mark.parametrize("shift", [0.1, torch.tensor([0.05, 0.4, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("with_start", [False, True])
def test_equals_the_dense_solution(shift, with_start):
    operator, rhs = problem(), randn(3, 5, 6, key="rhs")
    start = randn(3, 5, 6, key="start") if with_start else None
    found = conjugate_gradient(operator.normal, rhs, shift=shift, iterations=60, start=start)
    torch.testing.assert_close(found, dense_solution(operator, rhs, shift), rtol=1e-8, atol=1e-8)


def test_finds_the_image_of_noise_free_data():
    maps = randn(4, 12, 10, key="maps")
    operator = sense(maps, torch.arange(10) % 2 == 0)
    image = randn(12, 10)
    found = conjugate_gradient(operator.normal, operator.adjoint(operator.forward(image)), iterations=100)
    torch.testing.assert_close(found, image, rtol=1e-6, atol=1e-6)


def test_each_item_is_the_same_alone_or_beside_zero_converged_or_broken_items():
    maps = randn(3, 3, 8, 6, key="maps", dtype=torch.complex64)
    operator = sense(maps, torch.ones(6, dtype=torch.bool))
    rhs = randn(3, 8, 6, key="rhs", dtype=torch.complex64)
    rhs[1] = 0
    alone = conjugate_gradient(sense(maps[0], torch.ones(6, dtype=torch.bool)).normal, rhs[0], shift=0.1)
    together = conjugate_gradient(operator.normal, rhs, shift=0.1)
    assert torch.equal(together[0], alone)
    assert bool((together[1] == 0).all())
    rhs[2] = torch.nan
    together = conjugate_gradient(operator.normal, rhs, shift=0.1)
    assert torch.equal(together[0], alone)
    assert bool((together[1] == 0).all())


def test_converged_problems_stay_finite_and_put():
    rhs = randn(2, 6, 5, dtype=torch.complex64)
    found = conjugate_gradient(Identity((2, 6, 5)).normal, rhs, iterations=500)
    torch.testing.assert_close(found, rhs)
    exact = conjugate_gradient(Identity((2, 6, 5)).normal, rhs, iterations=5, start=rhs)
    assert torch.equal(exact, rhs)


def test_a_direction_that_the_operator_does_not_see_is_left_out():
    found = conjugate_gradient(lambda x: torch.zeros_like(x), randn(2, 4, 4), iterations=5)
    assert bool((found == 0).all())


def test_tolerance_stops_each_item_by_its_own_residual():
    calls = 0

    def normal(x):
        nonlocal calls
        calls += 1
        return x * torch.tensor([1.0, 5.0]).view(1, 2, 1)

    rhs = torch.ones(3, 2, 4)
    rhs[1] = torch.tensor([[1.0], [0.0]])  # an eigenvector: one step
    found = conjugate_gradient(normal, rhs, iterations=50, tolerance=1e-5)
    torch.testing.assert_close(found, rhs / torch.tensor([1.0, 5.0]).view(1, 2, 1))
    assert calls < 5


def test_inputs_stay_untouched_and_the_result_is_new():
    operator, rhs, start = problem(), randn(3, 5, 6), randn(3, 5, 6, key="start")
    before = rhs.clone(), start.clone()
    found = conjugate_gradient(operator.normal, rhs, shift=0.1, iterations=0, start=start)
    assert torch.equal(found, start)
    found.zero_()
    conjugate_gradient(operator.normal, rhs, shift=0.1, start=start)
    assert torch.equal(rhs, before[0])
    assert torch.equal(start, before[1])


def test_gradients_reach_the_right_hand_side_and_the_shift():
    operator = problem()
    rhs = randn(3, 5, 6).requires_grad_()
    shift = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64, requires_grad=True)

    def value(rhs, shift):
        return conjugate_gradient(operator.normal, rhs, shift=shift, iterations=40).abs().square().sum()

    by_rhs, by_shift = torch.autograd.grad(value(rhs, shift), (rhs, shift))
    solution = conjugate_gradient(operator.normal, rhs.detach(), shift=shift.detach(), iterations=60)
    dual = conjugate_gradient(operator.normal, 2 * solution, shift=shift.detach(), iterations=60)
    torch.testing.assert_close(by_rhs, dual, rtol=1e-6, atol=1e-8)
    expected = -(dual.conj() * solution).real.sum((-2, -1))
    torch.testing.assert_close(by_shift, expected, rtol=1e-6, atol=1e-8)


def scaled_problem():
    """Badly scaled: N = D B D with B well conditioned and D over three orders of magnitude."""
    operator = problem()
    weight = torch.logspace(-1.5, 1.5, 30, dtype=torch.float64).view(5, 6)
    return lambda x: weight * (operator.normal(weight * x) + weight * x), 1 / weight.square()


def test_a_preconditioner_gives_the_same_solution_in_fewer_iterations():
    normal, inverse = scaled_problem()
    rhs = randn(3, 5, 6, key="rhs")
    exact = conjugate_gradient(normal, rhs, iterations=500)
    torch.testing.assert_close(normal(exact), rhs, rtol=0, atol=1e-8)
    plain, helped = (
        conjugate_gradient(normal, rhs, iterations=15, preconditioner=p) for p in (None, lambda r: inverse * r)
    )
    torch.testing.assert_close(helped, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    assert float((helped - exact).norm()) < 1e-2 * float((plain - exact).norm())


def test_the_inverse_as_preconditioner_needs_one_step():
    weight = torch.linspace(0.1, 3, 30, dtype=torch.float64).view(5, 6)
    rhs = randn(2, 5, 6)
    shift = torch.tensor([0.2, 0.7], dtype=torch.float64)
    whole = weight + shift[:, None, None]
    found = conjugate_gradient(lambda x: weight * x, rhs, shift=shift, iterations=1, preconditioner=lambda r: r / whole)
    torch.testing.assert_close(found, rhs / whole, rtol=1e-12, atol=1e-12)


def test_items_are_independent_under_a_preconditioner():
    normal, inverse = scaled_problem()
    rhs = randn(3, 5, 6, key="rhs")
    arguments = {"iterations": 40, "tolerance": 1e-6, "preconditioner": lambda r: inverse * r}
    expected = conjugate_gradient(normal, rhs, **arguments)
    rhs[1], rhs[2] = 0, torch.nan
    found = conjugate_gradient(normal, rhs, **arguments)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    assert bool((found[1] == 0).all())


def test_gradients_pass_a_preconditioner():
    normal, inverse = scaled_problem()
    rhs = randn(3, 5, 6, key="rhs").requires_grad_()
    found = conjugate_gradient(normal, rhs, iterations=60, preconditioner=lambda r: inverse * r)
    (gradient,) = torch.autograd.grad(found, rhs, g := randn(3, 5, 6, key="g"))
    dual = conjugate_gradient(normal, g, iterations=60, preconditioner=lambda r: inverse * r)
    torch.testing.assert_close(gradient, dual, rtol=1e-5, atol=1e-6 * float(dual.abs().max()))


def test_gradients_reach_what_the_operator_holds():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    rhs = randn(4, 4)
    found = conjugate_gradient(lambda x: weight * x, rhs, iterations=3)
    (gradient,) = torch.autograd.grad(found.real.sum(), weight)
    torch.testing.assert_close(gradient, -rhs.real.sum() / 4)


def test_real_problems():
    rhs = torch.ones(2, 3, 4)
    torch.testing.assert_close(conjugate_gradient(lambda x: 2 * x, rhs, shift=1.0), rhs / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rhs": randn(4)}, "rhs"),
        ({"start": randn(2, 4, 5)}, "start"),
        ({"iterations": -1}, "iterations"),
        ({"shift": torch.ones(3)}, "shift"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"rhs": randn(2, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        conjugate_gradient(lambda x: x, arguments.pop("rhs"), **arguments)


def test_cg_sense_equals_sigpy():
    from sigpy.mri.app import SenseRecon

    generator = torch_generator("sense recon")
    maps = torch.randn(4, 24, 30, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    for mask in (torch.rand(30, generator=generator) < 0.5, torch.rand(24, 30, generator=generator) < 0.4):
        operator = sense(maps, mask)
        kspace = operator.forward(torch.randn(24, 30, dtype=torch.complex64, generator=generator))
        weights = mask.expand(24, 30).numpy().astype(np.float32)
        for iterations in (5, 30):
            expected = SenseRecon(
                kspace.numpy(), maps.numpy(), lamda=0.01, weights=weights, max_iter=iterations, show_pbar=False
            ).run()
            found = conjugate_gradient(operator.normal, operator.adjoint(kspace), shift=0.01, iterations=iterations)
            assert np.linalg.norm(found.numpy() - expected) < 1e-4 * np.linalg.norm(expected)


def test_largest_eigenvalue_of_each_item():
    operator = problem()
    found = largest_eigenvalue(operator.normal, (3, 5, 6), iterations=100, dtype=torch.complex128)
    blocks = (operator.H.to_dense() @ operator.to_dense()).view(3, 30, 3, 30)
    expected = torch.stack([torch.linalg.eigvalsh(blocks[i, :, i])[-1] for i in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert bool((found <= expected * (1 + 1e-12)).all())


def test_normal_of_normalised_maps_has_norm_at_most_one():
    maps = randn(4, 10, 12)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    operator = sense(maps, torch.arange(12) % 3 == 0)
    value = largest_eigenvalue(operator.normal, (10, 12), dtype=torch.complex128)
    assert value.shape == ()
    assert 0.3 < float(value) <= 1 + 1e-12


def test_three_axes_are_one_problem_for_images_of_two_map_sets():
    generator = torch_generator("sets")
    maps = torch.randn(2, 2, 3, 5, 6, dtype=torch.complex128, generator=generator)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    operator = sense(maps, mask, sets=True)
    rhs = torch.randn(2, 2, 5, 6, dtype=torch.complex128, generator=generator)
    shift = torch.tensor([0.5, 0.1], dtype=torch.float64)
    solved = conjugate_gradient(operator.normal, rhs, shift=shift, iterations=200, axes=3)
    for item, weight, own, right in zip(solved, shift, maps, rhs, strict=True):
        dense = sense(own, mask, sets=True).to_dense()
        exact = torch.linalg.solve(dense.mH @ dense + weight * torch.eye(60, dtype=dense.dtype), right.flatten())
        torch.testing.assert_close(item.flatten(), exact, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="at least 5 axes"):
        conjugate_gradient(operator.normal, rhs, axes=5)
