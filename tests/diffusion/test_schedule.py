"""Noise levels: the ladder against its formula, the training law, the noise itself."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rsdmri.diffusion.schedule import karras_ladder, karras_sigma, lognormal_sigma, unit_noise
from rsdmri.runtime import torch_generator


@pytest.mark.parametrize(("steps", "low", "high", "rho"), [(18, 0.002, 80, 7), (7, 0.1, 3, 5), (40, 0.5, 2.5, 1)])
def test_ladder_is_the_formula_in_double_precision(steps, low, high, rho):
    i = np.arange(steps) / (steps - 1)
    expected = (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    ladder = karras_ladder(steps, low, high, rho)
    assert ladder.dtype == torch.float64
    np.testing.assert_allclose(ladder[:-1].numpy(), expected, rtol=1e-13)
    assert ladder[-1] == 0
    assert bool((ladder.diff() < 0).all())


def test_ladder_ends():
    assert karras_ladder(1).tolist() == pytest.approx([80, 0])
    assert karras_ladder(5)[0] == pytest.approx(80, rel=1e-14)
    assert karras_ladder(5)[-2] == pytest.approx(0.002, rel=1e-12)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        karras_ladder(0)


def test_time_zero_is_the_least_noise():
    t = torch.linspace(0, 1, 18, dtype=torch.float64)
    assert torch.equal(karras_sigma(t).flip(0), karras_ladder(18)[:-1])
    assert float(karras_sigma(torch.zeros(1))) == pytest.approx(0.002, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_training_levels_are_lognormal_in_every_place_of_the_batch(batch):
    generator = torch_generator("levels", batch)
    draws = torch.stack([lognormal_sigma(batch, generator, -1.2, 1.2) for _ in range(1500)]).double().log()
    n = draws.numel()
    assert float(draws.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(n))
    assert float(draws.std()) == pytest.approx(1.2, abs=4 * 1.2 / math.sqrt(2 * n))
    for place in {0, batch - 1}:
        assert stats.kstest(draws[:, place].numpy(), "norm", args=(-1.2, 1.2)).pvalue > 1e-4


def test_training_levels_take_one_from_each_slice_of_probability():
    generator = torch_generator("strata")
    orders = set()
    for _ in range(20):
        levels = lognormal_sigma(8, generator, 0.3, 0.7).double()
        strata = np.floor(8 * stats.norm.cdf(levels.log().numpy(), 0.3, 0.7) + 1e-5).astype(int).clip(0, 7)
        assert sorted(strata) == list(range(8))
        orders.add(tuple(strata))
    assert len(orders) > 10


def test_draws_follow_their_generator_and_nothing_else():
    like = torch.zeros(2, 5, 3, dtype=torch.complex64)

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch_generator("draw", seed)
        return lognormal_sigma(6, generator), unit_noise(like, generator)

    state = torch.get_rng_state()
    first = draw(0)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.rand(17)
        again = draw(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, draw(1), strict=True))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_noise_is_standard_per_real_channel(dtype):
    noise = unit_noise(torch.zeros(200, 32, 32, dtype=dtype), torch_generator("noise"))
    assert noise.dtype == dtype
    parts = torch.view_as_real(noise).double().reshape(-1, 2)
    covariance = parts.T @ parts / len(parts)
    assert covariance.tolist() == pytest.approx(torch.eye(2), abs=5 / math.sqrt(len(parts)))
