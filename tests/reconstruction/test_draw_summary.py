"""Maps of posterior draws: known quantiles, coverage of a further draw, and draws too few for 5 %."""

import math

import numpy as np
import pytest
import torch

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.reconstruction.uncertainty import (
    LEAST_FOR_ORDER,
    magnitude_quantiles,
    pooled,
    pooled_variance,
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
@pytest.mark.parametrize("patch", [(1, 1), (3, 3)])
def test_a_further_draw_lies_in_the_band_with_90_per_cent(count: int, patch: tuple[int, int]) -> None:
    pixels = complex_draws(count + 1, 150 * 150, 1, 1).real.abs()  # normal, 5 standard deviations and more from 0
    draws = pixels.expand(-1, -1, *patch)  # neighbours that tell nothing new
    low, middle, high = magnitude_quantiles(draws[1:])
    inside = ((low <= draws[0]) & (draws[0] <= high)).double().mean()
    assert float(inside) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 150**2))
    assert bool(((low <= middle) & (middle <= high)).all())


@pytest.mark.parametrize("count", [4, 8, 18])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_it_does_whether_neighbours_tell_something_new_or_not(count: int, width: int) -> None:
    white = complex_draws(count + 1, 6, 150 + width - 1, 150 + width - 1).real - 5
    draws = 20 + torch.nn.functional.avg_pool2d(white, width, stride=1)  # normal, neighbours alike as far as ``width``
    low, _, high = magnitude_quantiles(draws[1:])
    inside = float(((low <= draws[0]) & (draws[0] <= high)).double().mean())
    assert inside == pytest.approx(0.9, abs=4 * math.sqrt(0.09 * width**2 / (6 * 150**2)) + 0.004)


def test_degrees_of_freedom_are_those_of_what_neighbours_tell() -> None:
    white = complex_draws(8, 200, 200).real
    assert float(pooled_variance(white)[1]) == pytest.approx(9 * 7, rel=0.05)
    assert float(pooled_variance(white[:, :1, :1].expand(-1, 9, 9))[1]) == pytest.approx(7)
    pairs = white.repeat_interleave(2, -1)  # windows of 3 columns hold 2 pixels, one of them twice: 9 / (4 + 1) of 1
    assert float(pooled_variance(pairs)[1]) == pytest.approx(7 * 3 * 9 / 5, rel=0.06)
    assert float(pooled_variance(white[:2])[1]) == 1
    assert float(pooled_variance(torch.ones(8, 5, 5))[1]) == 7


def test_a_band_is_as_even_as_the_law_of_its_draws() -> None:
    wide = torch.where(torch.arange(40) < 20, 0.1, 1.0)  # a step of the spread
    draws = 20 + wide * (complex_draws(8, 60, 40).real - 5)
    low, _, high = magnitude_quantiles(draws)
    reach = pooled(draws.var(0)).sqrt()
    assert float(((high - low) / reach).std()) < 1e-9 * float((high - low).mean())  # one factor for all
    for half, value in ((slice(1, 18), 0.1), (slice(22, 39), 1.0)):
        kept = draws[:, :, half].std(0)
        assert float(reach[:, half].mean()) == pytest.approx(value * math.sqrt(0.5), rel=0.03)
        assert float(reach[:, half].std()) < 0.6 * float(kept.std())


def test_the_median_of_a_lone_uncertain_pixel_is_inside_its_band() -> None:
    draws = torch.full((8, 5, 5), 10.0)
    draws[5:, 2, 2] = 9.0  # mean 9.625, and a third of its standard deviation once pooled
    low, middle, high = magnitude_quantiles(draws)
    assert float(middle[2, 2]) == 10
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
