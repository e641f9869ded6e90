"""Maps of posterior draws: known quantiles, coverage of a further draw, and draws too few for 5 %."""

import math

import numpy as np
import pytest
import torch

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.reconstruction.uncertainty import (
    LEAST_FOR_ORDER,
    magnitude_quantiles,
    quantile_estimator,
    summarise,
    widened,
)
from rsdmri.runtime import torch_generator


def complex_draws(count: int, *shape: int) -> torch.Tensor:
    generator = torch_generator("draws", count, *shape)
    return 5 + unit_noise(torch.empty(count, *shape, dtype=torch.complex128), generator) / math.sqrt(2)


@pytest.mark.parametrize("count", [19, 20, 37, 100])
def test_many_draws_are_read_at_numpys_weibull_rank(count: int) -> None:
    draws = complex_draws(count, 5, 6)
    found = summarise(draws)
    expected = np.quantile(draws.abs().numpy(), [0.05, 0.5, 0.95], axis=0, method="weibull")
    np.testing.assert_allclose(found.quantiles.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.std.numpy(), draws.abs().numpy().std(0, ddof=1))
    torch.testing.assert_close(found.mean, draws.mean(0))


@pytest.mark.parametrize("count", [2, 4, 8, 18, 19, 39])
def test_a_further_draw_lies_in_the_band_with_90_per_cent(count: int) -> None:
    draws = complex_draws(count + 1, 150, 150).real.abs()  # normal, 5 standard deviations and more from 0
    low, middle, high = magnitude_quantiles(draws[1:])
    inside = ((low <= draws[0]) & (draws[0] <= high)).double().mean()
    assert float(inside) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 150**2))
    assert bool(((low <= middle) & (middle <= high)).all())


def test_the_estimator_is_stated() -> None:
    assert "order statistics of 19" in quantile_estimator(LEAST_FOR_ORDER)
    assert "2.01 std" in quantile_estimator(8)
    assert "there are 8" in quantile_estimator(8)


def test_a_single_draw_has_no_spread() -> None:
    found = summarise(complex_draws(1, 4, 5))
    assert found.std is None
    assert found.quantiles is None
    with pytest.raises(ValueError, match="2 draws or more"):
        magnitude_quantiles(torch.ones(1, 4, 5))
    with pytest.raises(ValueError, match="draws: expected"):
        summarise(torch.ones(0, 4, 5))


def test_limits_are_never_negative_and_widen_about_the_median() -> None:
    band = magnitude_quantiles(torch.tensor([0.0, 1.0, 3.0])[:, None, None])
    assert float(band[0]) == 0
    twice = widened(band + 50, 2.0)
    torch.testing.assert_close(twice - (band + 50)[1], 2 * (band - band[1]))
    torch.testing.assert_close(widened(band, 1.0), band)
    assert float(widened(band, 9.0).min()) == 0
