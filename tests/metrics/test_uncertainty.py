"""Coverage, calibration, rank correlation and CRPS against what Gaussian draws must give."""

import math

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from rsdmri.errors import InputError
from rsdmri.metrics.uncertainty import (
    calibration_curve,
    coverage,
    crps,
    difference_in_std,
    interval_width,
    object_mask,
    rank_correlation,
)
from rsdmri.runtime import numpy_generator

Z = norm.ppf(0.95)


@pytest.fixture
def pixels():
    """Mean, true std (both 200 x 200) and the truth, 40,000 pixels."""
    rng = numpy_generator("uncertainty metrics")
    mean, std = rng.uniform(2, 9, (200, 200)), rng.uniform(0.1, 1, (200, 200))
    return mean, std, mean + std * rng.standard_normal(mean.shape)


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0])
def test_coverage_is_that_of_the_normal_law(factor, pixels):
    mean, std, truth = pixels
    low, high = mean - Z * factor * std, mean + Z * factor * std
    expected = 2 * norm.cdf(Z * factor) - 1  # 0.900, 0.589, 0.999
    assert coverage(truth, low, high) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / truth.size))
    assert interval_width(low, high) == pytest.approx(2 * Z * factor * std.mean())


def test_the_background_does_not_count():
    reference = np.zeros((10, 10))
    reference[2:6, 2:6] = 1.0
    inside = object_mask(reference)
    assert inside.sum() == 16
    off = reference + 0.5 * inside
    assert coverage(reference, off, off) == pytest.approx(0.84)
    assert coverage(reference, off, off, inside) == 0
    reference[6, 2:6] = 0.3
    assert object_mask(reference).sum() == 20
    assert object_mask(reference, floor=0.4).sum() == 16
    with pytest.raises(InputError, match="nothing but zeros"):
        object_mask(np.zeros((4, 4)))


def test_the_calibration_curve_is_the_diagonal_for_exchangeable_draws(pixels):
    mean, std, truth = pixels
    rng = numpy_generator("curve")
    draws = mean + std * rng.standard_normal((9, *mean.shape))
    nominal, empirical = calibration_curve(truth, draws)
    np.testing.assert_allclose(nominal, [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(empirical, nominal, atol=4 * math.sqrt(0.25 / truth.size))
    _, narrow = calibration_curve(truth, mean + 0.5 * (draws - mean))
    assert (narrow < nominal - 0.05).all()


@pytest.mark.parametrize("count", [2, 5, 20])
def test_crps_is_that_of_the_normal_law_for_any_number_of_draws(count, pixels):
    mean, std, truth = pixels
    draws = mean + std * numpy_generator("crps", count).standard_normal((count, *mean.shape))
    assert crps(truth, draws) == pytest.approx(std.mean() / math.sqrt(math.pi), rel=0.02)


def test_crps_is_the_double_sum_over_pairs():
    rng = numpy_generator("pairs")
    draws, truth = rng.normal(size=(4, 6)), rng.normal(size=6)
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / (4 * 3)
    assert crps(truth, draws) == pytest.approx((np.abs(draws - truth).mean(0) - pairs / 2).mean())
    assert crps(truth, draws[:1]) == pytest.approx(np.abs(draws[0] - truth).mean())


def test_rank_correlation_is_spearmans():
    rng = numpy_generator("ranks")
    std = rng.integers(1, 9, 500) / 8.0  # with ties
    error = std * rng.standard_normal(500)
    assert rank_correlation(std, error) == pytest.approx(spearmanr(std, np.abs(error)).statistic)
    assert rank_correlation(std, -3 * std) == pytest.approx(1)
    assert math.isnan(rank_correlation(np.ones(500), error))


def test_difference_in_std():
    found = difference_in_std([3.0, 1, 1, 5], [1.0, 1, 2, 5.1], [0.5, 0, 0, 0.01], floor=0.0)
    np.testing.assert_allclose(found, [4, 0, np.inf, 10])
    np.testing.assert_allclose(difference_in_std([3.0], [1.0], [0.0], floor=2.0), [1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: coverage([1.0, np.nan], [0, 0], [1, 1]), "target: holds NaN"),
        (lambda: coverage([1.0], [0.0], [1.0, 2.0]), "one shape expected"),
        (lambda: coverage([1.0], [0.0], [1.0], [False]), "no pixel"),
        (lambda: coverage([1.0], [0.0], [1.0], [1]), "mask: expected bool"),
        (lambda: crps(np.ones(3), np.ones(3)), "draws: expected"),
        (lambda: coverage([1j], [0.0], [1.0]), "expected real"),
        (lambda: difference_in_std([1.0], [1.0], [1.0, 2.0]), "one shape"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()
