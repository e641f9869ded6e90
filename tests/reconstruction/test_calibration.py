"""Conformal factors: exact ranks, coverage in image and k-space where draws are exact or too sure, and their file."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import SIZE, GaussianProblem
from test_held_out import SHOWN, many

from rsdmri.errors import InputError
from rsdmri.metrics.uncertainty import coverage
from rsdmri.reconstruction.calibration import (
    Calibration,
    conformal_quantile,
    interval_scores,
    kspace_factor,
    load_calibration,
    save_calibration,
)
from rsdmri.reconstruction.uncertainty import summarise, widened
from rsdmri.runtime import numpy_generator


@pytest.mark.parametrize("n", [9, 10, 57, 200])
def test_one_score_each_gives_the_rank_of_split_conformal(n):
    scores = numpy_generator("rank", n).random(n)
    assert conformal_quantile(list(scores)) == np.sort(scores)[math.ceil((n + 1) * 0.9 - 1e-9) - 1]


def test_the_marginal_coverage_is_the_exact_one():
    rng = numpy_generator("coverage")
    factors = np.array([conformal_quantile(list(rng.random(19))) for _ in range(4000)])
    assert factors.mean() == pytest.approx(18 / 20, abs=0.006)  # the 18th of 19 uniform numbers


def test_members_count_the_same_however_many_scores_they_have():
    few, many_ = [np.full(3, 1.0)] * 18, [np.full(1000, 2.0)]
    assert conformal_quantile(few + many_) == 1.0  # 18 of 19 inside, (19 + 1) 0.9 = 18 needed
    assert conformal_quantile(few[:-1] + many_ * 2) == 2.0


def test_too_few_members_and_draws_that_do_not_differ():
    with pytest.raises(InputError, match=r"8 scans are too few for 90 %, at least 9"):
        conformal_quantile([1.0] * 8)
    with pytest.raises(InputError, match="do not differ"):
        conformal_quantile([np.inf] * 20)
    with pytest.raises(InputError, match="no object"):
        conformal_quantile([np.ones(0)] * 20)


def test_scores_are_the_factors_at_which_pixels_enter_the_band():
    quantiles = np.array([[1.0, 1, 1, 1], [2, 2, 2, 2], [4, 4, 4, 2]])
    target = np.array([0.0, 2, 5, 3])
    found = interval_scores(target, quantiles, np.ones(4, bool))
    np.testing.assert_allclose(found, [2, 0, 1.5, np.inf])
    low, _, high = widened(torch.from_numpy(quantiles + 10), 2.0).numpy()
    assert low[0] == target[0] + 10
    assert high[2] > target[2] + 10


@pytest.mark.parametrize("spread", [1.0, 0.4])
def test_a_calibration_set_makes_the_band_cover_in_the_image(spread):
    problem = GaussianProblem(SHOWN, SHOWN, 0.1)
    rng = numpy_generator("set", str(spread))
    inside = np.ones((SIZE, SIZE), bool)
    scores, tested = [], []
    for number in range(120):
        image, samples = problem.scan(rng)
        truth = np.abs(image + 6).reshape(SIZE, SIZE)  # away from 0, where magnitudes are not normal
        band = summarise(problem.draws(samples, 8, rng, spread) + 6).quantiles
        if number < 40:
            scores.append(interval_scores(truth, band, inside))
        else:
            tested.append((truth, band))
    factor = conformal_quantile(scores)
    before, after = (
        np.mean([coverage(t, *widened(band, c).numpy()[[0, 2]]) for t, band in tested]) for c in (1.0, factor)
    )
    if spread == 1:
        assert before == pytest.approx(0.9, abs=0.02)  # 8000 dependent pixels of 80 scans
        assert factor == pytest.approx(1, abs=0.12)
    else:
        assert before < 0.65
        assert factor == pytest.approx(1 / spread, rel=0.12)
    assert after == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("spread", "draws"), [(1.0, 8), (0.4, 8), (2.0, 4), (1.0, 30)])
def test_held_out_samples_find_the_factor_of_the_spread(spread, draws):
    _, samples = many(120, draws, spread=spread, sigma=0.1)
    found = kspace_factor(samples, numpy_generator("halves"))
    assert found.factor == pytest.approx(1 / spread, rel=0.15)
    assert found.coverage_after == pytest.approx(0.9, abs=0.02)
    if spread < 1:
        assert found.coverage_before < 0.75


def test_noise_is_not_scaled():
    _, samples = many(200, 8, spread=0.5, sigma=1.0)  # variances of noise and spread are about the same
    found = kspace_factor(samples, numpy_generator("halves"))
    assert found.factor == pytest.approx(2, rel=0.35)
    assert found.coverage_after == pytest.approx(0.9, abs=0.02)


def test_samples_that_calibrate_nothing():
    with pytest.raises(InputError, match="one draw"):
        kspace_factor(many(4, 1)[1], numpy_generator("halves"))
    alone = many(1, 4)[1]
    with pytest.raises(InputError, match="single block"):
        kspace_factor(replace(alone, block=np.zeros_like(alone.block)), numpy_generator("halves"))


def test_the_file_beside_a_prior(tmp_path):
    made = Calibration(1.7, 0.9, 20, 4000, "rsd", 4.0, "{}", 8, "abc", 0.61)
    path = save_calibration(tmp_path, made)
    values = json.loads(path.read_text())
    assert load_calibration(values) == made
    assert made.mismatch("rsd", "{}", 8, "abc") is None
    assert "another method (rsd, here adps)" in made.mismatch("adps", "{}", 8, "abc")
    assert "other draws (8, here 4)" in made.mismatch("rsd", "{}", 4, "abc")
    assert "other settings of the method" in made.mismatch("rsd", '{"zeta":1}', 8, "abc")
    assert "weights" in made.mismatch("rsd", "{}", 8, "xyz")
    for broken in ({}, [], {**values, "factor": 0}, {**values, "level": 2}, {**values, "more": 1}, {"format": 2}):
        with pytest.raises(InputError, match="not a calibration"):
            load_calibration(broken)
