"""Precision, recall, density and coverage of sets whose answer is known."""

import numpy as np
import pytest
from heads import blurred, heads, noisy, rng

from rsdmri.errors import InputError
from rsdmri.metrics.magnitude_features import image_features
from rsdmri.metrics.manifolds import Manifolds, manifold_intervals, manifolds


def loops(samples, reference):
    """All four measures by loops over images."""

    def radius(x, own, k):
        return sorted(np.linalg.norm(x - other) for other in own)[k]

    near = [radius(r, reference, 3) for r in reference]
    wide = [radius(r, reference, 5) for r in reference]
    balls = [radius(s, samples, 3) for s in samples]
    d = [[np.linalg.norm(s - r) for r in reference] for s in samples]
    n, m = len(samples), len(reference)
    precision = np.mean([any(d[i][j] <= near[j] for j in range(m)) for i in range(n)])
    recall = np.mean([any(d[i][j] <= balls[i] for i in range(n)) for j in range(m)])
    density = np.mean([sum(d[i][j] <= wide[j] for j in range(m)) / 5 for i in range(n)])
    coverage = np.mean([any(d[i][j] <= wide[j] for i in range(n)) for j in range(m)])
    return Manifolds(precision, recall, density, coverage)


def test_measures_by_loops_over_images():
    g = rng("loops")
    samples, reference = g.standard_normal((15, 2)) + 0.8, g.standard_normal((19, 2))
    found = manifolds(samples, reference)
    assert found == pytest.approx(loops(samples, reference))
    assert all(0.2 < v < 0.95 for v in found)


def test_identical_sets_are_precise_and_complete():
    x = rng("same").standard_normal((30, 40))  # fewer images than features
    assert manifolds(x, x) == pytest.approx((1, 1, 6 / 5, 1))  # each ball holds its five neighbours and its centre
    assert manifolds(x, x[::-1]) == manifolds(x, x)


def test_disjoint_sets_have_nothing_in_common():
    x = rng("far").standard_normal((30, 4))
    assert manifolds(x, x + 100) == (0, 0, 0, 0)


def test_samples_of_one_mode_are_precise_and_incomplete():
    g = rng("modes")
    reference = np.r_[g.standard_normal((100, 3)), g.standard_normal((100, 3)) + 30]
    found = manifolds(g.standard_normal((200, 3)), reference)
    assert found.precision > 0.9
    assert found.recall == pytest.approx(0.5, abs=0.05)
    assert found.coverage == pytest.approx(0.5, abs=0.05)


def test_repeated_samples_have_no_recall():
    g = rng("repeated")
    found = manifolds(np.repeat(g.standard_normal((10, 3)), 10, axis=0), g.standard_normal((100, 3)))
    assert found.precision > 0.8
    assert found.recall == 0


def test_an_outlier_of_the_reference_raises_precision_but_not_density():
    g = rng("outlier")
    reference, samples = g.standard_normal((60, 2)), g.uniform(-20, 20, (60, 2))
    lonely = np.r_[reference, [[60.0, 60.0]]]
    assert manifolds(samples, lonely).precision > manifolds(samples, reference).precision + 0.3
    assert manifolds(samples, lonely).density < manifolds(samples, reference).density + 0.2


def test_precision_falls_with_blur_and_noise_of_heads():
    reference, images = image_features(np.abs(heads(60))), heads(60, seed=1)
    for spoil, strengths in ((blurred, (0.5, 1, 2)), (noisy, (0.03, 0.1, 0.2))):
        sets = [images, *(spoil(images, s) for s in strengths)]
        found = [manifolds(image_features(np.abs(x)), reference) for x in sets]
        for name in ("precision", "density", "coverage"):
            values = [getattr(f, name) for f in found]
            assert values[0] > 0.3, (name, values)
            assert np.all(np.diff(values) <= 0), (name, values)
            assert values[-1] == 0, (name, values)


def test_order_scale_and_place_change_nothing():
    g = rng("order")
    a, b = g.standard_normal((25, 3)), g.standard_normal((30, 3)) + 0.5
    assert manifolds(1e6 * a[::-1] + 1e3, 1e6 * b + 1e3) == manifolds(a, b)


def test_intervals_are_as_wide_as_the_spread_of_fresh_samples():
    g = rng("spread")
    shift = np.array([0, 0.6])[:, None, None]
    draws = np.array([manifolds(*(g.standard_normal((2, 150, 5)) + shift)) for _ in range(60)])
    a, b = g.standard_normal((2, 150, 5)) + shift
    low, high = manifold_intervals(a, b, generator=rng("draws"), repeats=60)
    width = (np.array(high) - np.array(low)) / (2 * 1.96)
    np.testing.assert_allclose(width / draws.std(0), 1.15, atol=0.45)
    assert all(x <= v <= y for x, v, y in zip(low, manifolds(a, b), high, strict=True))
    assert (low, high) == manifold_intervals(a, b, generator=rng("draws"), repeats=60)


def test_intervals_stay_within_shares():
    x = rng("ends").standard_normal((30, 4))
    low, high = manifold_intervals(x, x + 0.1, generator=rng(), repeats=20)
    assert max(high.precision, high.recall, high.coverage) <= 1
    assert min(low) >= 0


@pytest.mark.parametrize(
    ("samples", "reference", "message"),
    [
        (np.zeros((11, 2)), np.zeros((20, 2)), "need 12"),
        (np.zeros((20, 2)), np.zeros((20, 3)), "one d"),
        (np.full((20, 2), np.nan), np.zeros((20, 2)), "NaN"),
    ],
)
def test_bad_input_is_refused(samples, reference, message):
    with pytest.raises(InputError, match=message):
        manifolds(samples, reference)
