"""Held-out samples: what is held out, and residuals against what exact posterior draws must leave."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import COILS, SIZE, GaussianProblem

from rsdmri.errors import InputError
from rsdmri.physics.masks import acs_block
from rsdmri.reconstruction.held_out import check, compare, informative, joined, split_mask
from rsdmri.runtime import numpy_generator

SHOWN = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0, 0, 1]).bool()[None]
HELD = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 1, 0]).bool()[None]


def lines(width: int, key: int, acs: int = 6, share: float = 0.4) -> torch.Tensor:
    mask = torch.from_numpy(numpy_generator("lines", key).random((1, width)) < share)
    mask[..., width // 2 - acs // 2 : width // 2 + acs // 2] = True
    return mask


@pytest.mark.parametrize("width", [40, 41])
def test_lines_are_held_out_of_the_acquired_ones_alone(width):
    mask = lines(width, 1)
    shown, held = split_mask(mask, numpy_generator("split"), 0.2)
    assert torch.equal(shown | held, mask)
    assert not (shown & held).any()
    assert int(held.sum()) == round(0.2 * int(mask.sum()))
    assert torch.equal(shown[..., acs_block(mask)[1]], mask[..., acs_block(mask)[1]])
    assert acs_block(shown) == acs_block(mask)
    again = split_mask(mask, numpy_generator("split"), 0.2)
    assert torch.equal(again[1], held)
    others = [split_mask(mask, numpy_generator("split", k), 0.2)[1] for k in range(8)]
    assert any(not torch.equal(other, held) for other in others)


def test_what_is_held_out_is_spread_over_k():
    mask = lines(200, 2, share=0.5)
    for key in range(5):
        _, held = split_mask(mask, numpy_generator("spread", key))
        left, right = (int(part.sum()) for part in (held[..., :100], held[..., 100:]))
        assert abs(left - right) <= 2
        assert int(held[..., 60:140].sum()) < int(held.sum())


def test_points_of_two_dimensional_masks():
    mask = torch.from_numpy(numpy_generator("points").random((24, 31)) < 0.3)
    mask[9:15, 12:19] = True
    shown, held = split_mask(mask, numpy_generator("split"))
    assert int(held.sum()) == round(0.1 * int(mask.sum()))
    assert torch.equal(shown | held, mask)
    assert not held[acs_block(mask)].any()


@pytest.mark.parametrize(
    ("mask", "share", "words"),
    [(torch.ones(1, 20).bool(), 0.1, "nothing was acquired outside"), (lines(20, 3), 0.0, "above 0"),
     (lines(20, 3), 0.6, "at most 0.5")],
)  # fmt: skip
def test_what_cannot_be_split(mask, share, words):
    with pytest.raises(InputError, match=words):
        split_mask(mask, numpy_generator("split"), share)


def many(count: int, draws: int, *, spread: float = 1.0, sigma: float = 0.3, shift: float = 0.0, key: int = 0):
    """Held-out samples of ``count`` scans of the Gaussian problem."""
    problem = GaussianProblem(SHOWN | HELD, SHOWN, sigma)
    rng = numpy_generator("held out", key, draws)
    parts = []
    for _ in range(count):
        _, samples = problem.scan(rng)
        found = problem.draws(samples, draws, rng, spread) + shift
        parts.append(compare(problem.operator(HELD), problem.kspace(samples), found, sigma))
    return problem, joined(parts)


@pytest.mark.parametrize("draws", [2, 8])
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_exact_draws_leave_the_residual_that_they_predict(draws, sigma):
    problem, samples = many(150, draws, sigma=sigma)
    found = check(samples)
    unexplained = problem.covariance - problem.gain @ problem.seen @ problem.covariance
    rows = problem.everything[np.tile(np.broadcast_to(HELD.numpy(), (SIZE, SIZE)).reshape(-1), COILS)]
    variance = np.einsum("ij,jk,ik->i", rows, unexplained, rows.conj()).real.mean()
    expected = math.sqrt(1 + (1 + 1 / draws) * variance / sigma**2)
    assert found.predicted == pytest.approx(expected, rel=0.05)
    assert found.residual == pytest.approx(expected, rel=0.05)
    assert found.excess == pytest.approx(1, abs=4 * (found.excess - found.excess_low) / 1.645)
    assert found.alarm is None
    assert found.samples == 150 * 2 * SIZE * COILS


def test_the_true_image_leaves_one_noise_unit():
    problem = GaussianProblem(SHOWN | HELD, SHOWN, 0.3)
    rng = numpy_generator("truth")
    parts = []
    for _ in range(100):
        image, samples = problem.scan(rng)
        truth = torch.from_numpy(image).reshape(1, SIZE, SIZE)
        parts.append(compare(problem.operator(HELD), problem.kspace(samples), truth, 0.3))
    found = check(joined(parts))
    assert found.residual == pytest.approx(1, abs=4 * found.residual_error)
    assert found.residual_error == pytest.approx(1 / (2 * math.sqrt(found.samples)), rel=0.3)
    assert found.explained == pytest.approx(1, abs=0.02)
    assert (found.predicted, found.excess, found.alarm) == (None, None, None)


def test_draws_that_are_too_sure_raise_the_alarm():
    _, samples = many(40, 8, spread=0.3, sigma=0.05)
    found = check(samples)
    assert found.excess > 1.5
    assert "does not explain" in found.alarm
    assert check(samples, spread_factor=1 / 0.3).alarm is None  # where it is known by how much
    assert check(samples, threshold=9).alarm is None


def test_an_image_that_is_worse_than_none_raises_the_alarm():
    _, samples = many(20, 1, shift=5.0)
    assert "contradicts measured samples" in check(samples).alarm
    assert check(many(20, 1)[1]).alarm is None


def test_chance_raises_no_alarm():
    alarms = [check(many(1, 4, sigma=0.2, key=key)[1]).alarm for key in range(40)]
    assert sum(alarm is not None for alarm in alarms) <= 4


def test_units_do_not_matter():
    problem = GaussianProblem(SHOWN | HELD, SHOWN, 0.3)
    rng = numpy_generator("units")
    _, samples = problem.scan(rng)
    draws = problem.draws(samples, 4, rng)
    one = compare(problem.operator(HELD), problem.kspace(samples), draws, 0.3)
    other = compare(problem.operator(HELD), 1e6 * problem.kspace(samples), 1e6 * draws, 0.3e6)
    np.testing.assert_allclose(one.error, other.error)
    np.testing.assert_allclose(one.spread, other.spread)
    poisoned = torch.where(HELD, problem.kspace(samples), torch.nan)
    np.testing.assert_array_equal(compare(problem.operator(HELD), poisoned, draws, 0.3).error, one.error)


def test_spread_below_the_noise_says_nothing():
    assert informative(many(3, 8, sigma=0.05)[1])
    assert not informative(many(3, 8, sigma=3.0)[1])
    assert not informative(replace(many(3, 8)[1], draws=1))


def test_no_noise_level_and_no_slice_are_refused():
    problem = GaussianProblem(SHOWN | HELD, SHOWN, 0.3)
    _, samples = problem.scan(numpy_generator("none"))
    with pytest.raises(InputError, match="noise level"):
        compare(problem.operator(HELD), problem.kspace(samples), torch.zeros(2, SIZE, SIZE, dtype=torch.complex128), 0)
    with pytest.raises(InputError, match="every slice is empty"):
        joined([])
