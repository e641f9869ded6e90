"""Bootstrap intervals: known ones, their coverage, and when there is none."""

import numpy as np
import pytest

from rsdmri.metrics.intervals import mean_interval
from rsdmri.runtime import numpy_generator


def test_many_normal_values_have_the_interval_of_their_standard_error():
    values = numpy_generator("interval").normal(5, 2, size=400)
    low, high = mean_interval(values, generator=numpy_generator("resamples"))
    arm = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - arm, values.mean() + arm), abs=0.05 * arm)


def test_of_skewed_values_the_long_tail_has_the_long_arm():
    values = numpy_generator("skewed").exponential(size=15)
    low, high = mean_interval(values, generator=numpy_generator("resamples"))
    assert high - values.mean() > 1.2 * (values.mean() - low) > 0


def test_it_holds_the_true_mean_as_often_as_it_says():
    draws = [numpy_generator("coverage", k).normal(3, 2, size=25) for k in range(120)]
    ends = [mean_interval(x, generator=numpy_generator("resamples")) for x in draws]
    assert 0.88 <= np.mean([low < 3 < high for low, high in ends]) <= 1


def test_shift_scale_and_seed():
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = mean_interval(values, generator=numpy_generator("a"))
    assert (low, high) == mean_interval(values, generator=numpy_generator("a"))
    moved = mean_interval([10 - 3 * v for v in values], generator=numpy_generator("a"))
    assert moved == pytest.approx((10 - 3 * high, 10 - 3 * low), rel=0.01)


def test_none_where_nothing_can_be_said():
    assert mean_interval([1.0, 2.0], generator=numpy_generator("a")) is None
    assert mean_interval([1.0, 2.0, float("inf")], generator=numpy_generator("a")) is None
    assert mean_interval([0.5] * 4, generator=numpy_generator("a")) == (0.5, 0.5)
