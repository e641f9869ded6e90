"""Distances against closed forms."""

import numpy as np
import pytest
from heads import rng
from scipy.linalg import sqrtm

from rsdmri.errors import InputError
from rsdmri.metrics.distribution import (
    bootstrap,
    distance_floor,
    frechet_distance,
    half_samples,
    kernel_distance,
)


def exact_moments(generator, n, mean, root):
    """n samples whose sample mean and covariance are exactly ``mean`` and ``root root^T``."""
    z = generator.standard_normal((n, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return mean + z @ root.T


def test_frechet_distance_of_known_gaussians():
    g = rng("gaussians")
    mean_a, mean_b = g.standard_normal((2, 5))
    root_a, root_b = g.standard_normal((2, 5, 5))
    a, b = exact_moments(g, 50, mean_a, root_a), exact_moments(g, 40, mean_b, root_b)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_commuting_and_singular_covariances():
    g = rng("commuting")
    zero, eye = np.zeros(4), np.eye(4)
    a, b = exact_moments(g, 30, zero, 3 * eye), exact_moments(g, 30, zero + 1, eye)
    assert frechet_distance(a, b) == pytest.approx(4 + 4 * (3 - 1) ** 2, rel=1e-9)
    line_a, line_b = np.outer(g.standard_normal(6), [1.0, 0, 0]), np.outer(g.standard_normal(9), [0, 1.0, 0])
    expected = line_a[:, 0].var(ddof=1) + line_b[:, 1].var(ddof=1) + line_a[:, 0].mean() ** 2 + line_b[:, 1].mean() ** 2
    assert frechet_distance(line_a, line_b) == pytest.approx(expected, rel=1e-9)


def test_identical_sets_are_at_zero_also_with_fewer_images_than_features():
    for n in (20, 200):
        f = rng("same", n).standard_normal((n, 60)) * np.logspace(-6, 3, 60)
        spread = f.var(0, ddof=1).sum()
        assert 0 <= frechet_distance(f, f) < 1e-6 * spread
        assert 0 <= frechet_distance(f, f[::-1]) < 1e-6 * spread


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    g = rng("kernel")
    same = [kernel_distance(*g.standard_normal((2, 20, 4))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20
    assert min(same) < 0 < max(same)
    a, b = g.standard_normal((2, 200, 4))
    assert kernel_distance(a, b + 0.5) > 4 * np.std(same)


def test_kernel_distance_by_its_double_sums():
    a, b = rng("sums").standard_normal((2, 7, 3))
    b = b[:5]

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * np.mean([k(x, y) for x in a for y in b]))


def test_bootstrap_interval_is_as_wide_as_the_spread_of_fresh_samples():
    g = rng("bootstrap")
    shift = np.array([0, 0.6])[:, None, None]
    draws = [frechet_distance(*(g.standard_normal((2, 150, 5)) + shift)) for _ in range(200)]
    a, b = g.standard_normal((2, 150, 5))
    low, high = bootstrap(frechet_distance, a, b + 0.6, generator=rng("draws"))
    assert low < frechet_distance(a, b + 0.6) < high
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.35)
    assert (low, high) == bootstrap(frechet_distance, a, b + 0.6, generator=rng("draws"))


def test_sample_size_bias_falls_as_one_over_n():
    g = rng("bias")
    mean = {n: np.mean([frechet_distance(*g.standard_normal((2, n, 10))) for _ in range(30)]) for n in (100, 400)}
    assert mean[100] / mean[400] == pytest.approx(4, rel=0.25)


def test_half_samples_are_halves_without_repetition_and_every_image_has_its_turn():
    picks = list(half_samples(9, 6, generator=rng("halves"), repeats=200))
    assert {(len(set(a)), len(set(b)), len(a), len(b)) for a, b in picks} == {(4, 3, 4, 3)}
    shares = np.bincount(np.concatenate([a for a, _ in picks]), minlength=9) / 200
    assert np.abs(shares - 4 / 9).max() < 0.15


def test_the_spread_of_a_mean_over_half_samples_is_that_of_the_mean():
    def difference(a, b):
        return a.mean() - b.mean()

    a, b = rng("mean").standard_normal((2, 200, 1))
    low, high = bootstrap(difference, a, b, generator=rng("draws"), repeats=400)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.sqrt(a.var(ddof=1) / 200 + b.var(ddof=1) / 200), rel=0.1)


def test_the_floor_is_between_halves_in_their_order():
    x = np.r_[np.zeros((5, 1)), np.ones((5, 1))] + rng("floor").standard_normal((10, 1)) * 1e-3
    assert distance_floor(frechet_distance, x) == pytest.approx(1, abs=0.01)
    assert distance_floor(frechet_distance, x[[0, 5, 1, 6, 2, 7, 3, 8, 4, 9]]) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros((5, 3)), np.zeros((5, 4))), "one d"),
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "at least two"),
        (lambda: kernel_distance(np.full((5, 3), np.inf), np.zeros((5, 3))), "infinite"),
        (lambda: bootstrap(frechet_distance, np.zeros((3, 2)), np.ones((5, 2)), generator=rng()), "at least four"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
