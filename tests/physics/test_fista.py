import itertools

import pytest
import torch
from contract import randn

from rsdmri.physics import sense
from rsdmri.physics.fista import fista
from rsdmri.physics.linop import Identity
from rsdmri.runtime import torch_generator


def soft(x, threshold):
    return torch.sgn(x) * (x.abs() - threshold).clamp(min=0)


def problem(batch=3, size=(7, 6)):
    maps = randn(batch, 3, *size, key="maps")
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.rand(batch, 1, size[1], generator=torch_generator("fista")) < 0.7
    operator = sense(maps, mask)
    return operator, operator.normal(randn(batch, *size, key="image"))


def objective(operator, rhs, x, strength):
    quadratic = 0.5 * (x.conj() * operator.normal(x)).real - (x.conj() * rhs).real
    return (quadratic + strength * x.abs()).sum((1, 2))


def test_with_the_identity_one_step_is_the_proximal_map():
    rhs = randn(2, 5, 6)
    for iterations in (1, 20):
        found = fista(Identity((5, 6)).normal, rhs, lambda v: soft(v, 0.7), iterations=iterations)
        torch.testing.assert_close(found, soft(rhs, 0.7), rtol=1e-12, atol=1e-12)


def test_a_diagonal_problem_has_a_closed_form():
    weight = torch.linspace(0.2, 1, 30, dtype=torch.float64).view(5, 6)
    rhs = randn(2, 5, 6)
    found = fista(lambda x: weight * x, rhs, lambda v: soft(v, 0.3), iterations=400)
    torch.testing.assert_close(found, soft(rhs, 0.3) / weight, rtol=1e-8, atol=1e-8)


def test_equals_a_dense_admm():
    operator, rhs = problem(batch=1)
    matrix = operator.H.to_dense() @ operator.to_dense()
    factor = torch.linalg.inv(matrix + torch.eye(42))
    z = u = torch.zeros(42, dtype=torch.complex128)
    for _ in range(5000):
        x = factor @ (rhs.flatten() + z - u)
        z = soft(x + u, 0.4)
        u = u + x - z
    found = fista(operator.normal, rhs, lambda v: soft(v, 0.4), iterations=3000)
    torch.testing.assert_close(found.flatten(), z, rtol=0, atol=1e-6)


def test_the_objective_falls_faster_than_without_momentum():
    operator, rhs = problem()
    values = [
        objective(operator, rhs, fista(operator.normal, rhs, lambda v: soft(v, 0.1), iterations=n), 0.1)
        for n in (0, 1, 3, 10, 30, 300)
    ]
    for before, after in itertools.pairwise(values):
        assert bool((after <= before + 1e-12).all())
    x = rhs
    for _ in range(30):
        x = soft(x + rhs - operator.normal(x), 0.1)
    plain = objective(operator, rhs, x, 0.1) - values[-1]
    assert float((values[-2] - values[-1]).sum()) < 0.5 * float(plain.sum())


def test_a_smaller_step_leads_to_the_same_minimum():
    operator, rhs = problem()
    whole, half = (
        fista(operator.normal, rhs, lambda v, s=step: soft(v, 0.3 * s), step=step, iterations=3000) for step in (1, 0.5)
    )
    torch.testing.assert_close(half, whole, rtol=0, atol=1e-6)


def test_each_item_stops_by_itself():
    operator, rhs = problem()
    rhs[1] = 0
    arguments = {"proximal": lambda v: soft(v, 0.3), "tolerance": 1e-3, "iterations": 500}
    together = fista(operator.normal, rhs, **arguments)
    assert bool((together[1] == 0).all())
    for item in (0, 2):
        own = sense(operator.maps[item], operator.mask[item])
        torch.testing.assert_close(together[item], fista(own.normal, rhs[item], **arguments), rtol=1e-12, atol=1e-12)
    rhs[1] = torch.nan
    torch.testing.assert_close(fista(operator.normal, rhs, **arguments)[0], together[0], rtol=1e-12, atol=1e-12)


def test_inputs_stay_untouched_and_the_result_is_new():
    operator, rhs = problem()
    start, before = randn(3, 7, 6, key="start"), rhs.clone()
    kept = start.clone()
    for iterations in (0, 5):
        for given in (None, start):
            fista(operator.normal, rhs, lambda v: v, iterations=iterations, start=given).zero_()
            fista(lambda x: x, rhs, lambda v: v, iterations=iterations, start=given).zero_()
    assert torch.equal(rhs, before)
    assert torch.equal(start, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rhs": randn(4)}, "rhs"), ({"start": randn(2, 4, 5)}, "start"), ({"iterations": -1}, "iterations")],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"rhs": randn(2, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        fista(lambda x: x, arguments.pop("rhs"), lambda v: v, **arguments)
