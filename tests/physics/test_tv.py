import pytest
import torch
from contract import randn

from rsdmri.physics.tv import total_variation, tv_proximal

STRENGTH = 0.3


def differences(height, width):
    """Forward differences along y and x as dense matrices, 0 across the border."""
    y, x = (torch.diag(torch.ones(n - 1, dtype=torch.complex128), 1) - torch.eye(n) for n in (height, width))
    y[-1], x[-1] = 0, 0
    return torch.kron(y, torch.eye(width)), torch.kron(torch.eye(height), x)


@pytest.mark.parametrize("size", [(5, 6), (7, 4), (1, 5), (1, 1)])
def test_value_by_dense_matrices(size):
    x = randn(2, *size)
    along = [x.flatten(1) @ matrix.mT for matrix in differences(*size)]
    expected = (along[0].abs().square() + along[1].abs().square()).sqrt().sum(1)
    torch.testing.assert_close(total_variation(x), expected)


def test_value_of_a_disc_is_its_contrast_times_its_outline():
    image = torch.zeros(20, 20, dtype=torch.complex128)
    image[4:10, 5:12] = 2j
    # 2 * (6 + 7) edges of height 2, of which one corner pixel holds two
    assert float(total_variation(image)) == pytest.approx(2 * (2 * (6 + 7) - 2 + 2**0.5))


@pytest.mark.parametrize("size", [(6, 5), (9, 8), (1, 7)])
def test_equals_a_dense_admm(size):
    x = randn(*size)
    matrix = torch.cat(differences(*size))
    inverse = torch.linalg.inv(torch.eye(x.numel()) + matrix.mH @ matrix)
    z = u = torch.zeros(2 * x.numel(), dtype=torch.complex128)
    for _ in range(3000):
        image = inverse @ (x.flatten() + matrix.mH @ (z - u))
        moved = (matrix @ image + u).view(2, -1)
        length = torch.linalg.vector_norm(moved, dim=0).clamp(min=1e-30)
        z = (moved * (1 - STRENGTH / length).clamp(min=0)).flatten()
        u = u + matrix @ image - z
    found, _ = tv_proximal(x, STRENGTH, iterations=3000)
    torch.testing.assert_close(found, image.view(size), rtol=0, atol=1e-6)


def test_a_step_moves_by_the_strength_over_its_width_and_a_constant_stays():
    x = torch.full((6, 10), 1 + 1j, dtype=torch.complex128)
    torch.testing.assert_close(tv_proximal(x, STRENGTH)[0], x, rtol=0, atol=1e-12)
    x[:, 4:] += 2j
    expected = x.clone()
    expected[:, :4] += 1j * STRENGTH / 4
    expected[:, 4:] -= 1j * STRENGTH / 6
    torch.testing.assert_close(tv_proximal(x, STRENGTH, iterations=2000)[0], expected, rtol=0, atol=1e-6)


def test_strength_zero_keeps_and_a_large_one_leaves_the_mean():
    x = randn(2, 7, 6)
    strength = torch.tensor([0.0, 1e3], dtype=torch.float64)[:, None, None]
    found, _ = tv_proximal(x, strength, iterations=4000)
    torch.testing.assert_close(found[0], x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], x[1].mean().expand(7, 6), rtol=0, atol=1e-6)


def test_the_dual_of_a_similar_problem_saves_iterations():
    x = randn(12, 11)
    exact, dual = tv_proximal(x, STRENGTH, iterations=3000)
    moved = x + 0.01 * randn(12, 11, key="move")
    goal = tv_proximal(moved, STRENGTH, iterations=3000)[0]
    cold, warm = (tv_proximal(moved, STRENGTH, dual=d, iterations=5)[0] for d in (None, dual))
    assert float((warm - goal).norm()) < 0.1 * float((cold - goal).norm())
    assert float(total_variation(exact)) < float(total_variation(x))


def test_items_are_independent_and_inputs_stay_untouched():
    x = randn(3, 6, 5)
    strength = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    before = x.clone()
    alone = [tv_proximal(item, float(s))[0] for item, s in zip(x, strength, strict=True)]
    torch.testing.assert_close(tv_proximal(x, strength[:, None, None])[0], torch.stack(alone), rtol=0, atol=1e-12)
    assert torch.equal(x, before)
    x[1] = torch.nan
    torch.testing.assert_close(tv_proximal(x, strength[:, None, None])[0][2], alone[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_follows_the_scale(factor):
    x = randn(8, 9, dtype=torch.complex64)
    scaled, _ = tv_proximal(factor * x, factor * STRENGTH)
    torch.testing.assert_close(scaled / factor, tv_proximal(x, STRENGTH)[0], rtol=1e-5, atol=1e-5)
