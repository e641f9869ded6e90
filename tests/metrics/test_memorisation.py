"""Copied training images are flagged, fresh images are not."""

import numpy as np
import pytest
from heads import blurred, heads, noisy, rng
from scipy.stats import mannwhitneyu

from rsdmri.errors import InputError
from rsdmri.metrics.magnitude_features import image_features
from rsdmri.metrics.memorisation import copy_test, nearest_training


def clean(n, seed, noise=0.02):
    return np.abs(noisy(heads(n, (32, 32), seed=seed), noise))


@pytest.fixture(scope="module")
def sets():
    return clean(150, 0), clean(60, 1), clean(60, 2)


def test_nearest_by_loops():
    g = rng("nearest")
    x, t = g.standard_normal((2, 5, 3, 2))
    x[2] = t[4]
    distance, index = nearest_training(x, t)
    expected = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in t] for a in x])
    np.testing.assert_allclose(distance, expected.min(1))
    np.testing.assert_array_equal(index, expected.argmin(1))
    assert (distance[2], index[2]) == (0, 4)


def test_nearest_beyond_one_chunk_and_of_complex_images():
    g = rng("chunks")
    t = g.standard_normal((200, 4)) + 1j * g.standard_normal((200, 4))
    pick = np.array([0, 63, 64, 199])
    distance, index = nearest_training(t[pick] + 0.01j, t)
    np.testing.assert_array_equal(index, pick)
    np.testing.assert_allclose(distance, 0.02)


@pytest.mark.parametrize("space", [lambda x: x, image_features], ids=["pixels", "features"])
def test_copies_are_flagged_and_fresh_images_are_not(sets, space):
    training, held_out, fresh = (space(x) for x in sets)
    reference, _ = nearest_training(held_out, training)
    found = copy_test(nearest_training(fresh, training)[0], reference)
    assert abs(found.c_t) < 3
    assert found.ratio == pytest.approx(1, abs=0.15)
    assert not found.copied.any()
    mixed = space(np.concatenate([sets[2][:50], sets[0][:10]]))
    found = copy_test(nearest_training(mixed, training)[0], reference)
    np.testing.assert_array_equal(np.flatnonzero(found.copied), np.arange(50, 60))
    found = copy_test(nearest_training(training[:60], training)[0], reference)
    assert found.c_t < -8
    assert found.copied.all()
    assert "60 of 60 samples look copied" in str(found)


def test_copies_under_noise_are_still_copies(sets):
    training, held_out, _ = sets
    noise = 0.02 * rng("noise").standard_normal((60, *training.shape[1:]))
    reference, _ = nearest_training(held_out, training)
    distance, index = nearest_training(training[:60] + noise, training)
    np.testing.assert_array_equal(index, np.arange(60))
    assert copy_test(distance, reference).copied.all()


def test_c_t_cannot_tell_blur_from_copies_but_the_flags_can(sets):
    training, held_out, fresh = sets
    reference, _ = nearest_training(held_out, training)
    found = copy_test(nearest_training(np.abs(blurred(fresh.astype(complex), 2)), training)[0], reference)
    assert found.copied.sum() == 0


def test_c_t_is_the_mann_whitney_statistic_and_knows_no_scale():
    g = rng("mann-whitney")
    s, h = g.uniform(0, 1, 30), g.uniform(0.2, 1, 25)
    expected = (mannwhitneyu(s, h).statistic - 30 * 25 / 2) / np.sqrt(30 * 25 * 56 / 12)
    assert copy_test(s, h).c_t == pytest.approx(expected)
    assert copy_test(1e6 * s, 1e6 * h).c_t == pytest.approx(expected)
    assert copy_test(h, h).c_t == pytest.approx(0)


def test_c_t_of_equal_laws_is_standard_normal():
    g = rng("null")
    found = [copy_test(*g.exponential(size=(2, 40))).c_t for _ in range(400)]
    assert np.mean(found) == pytest.approx(0, abs=0.15)
    assert np.std(found) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_training(np.zeros((3, 4)), np.zeros((3, 5))), "like the images"),
        (lambda: nearest_training(np.zeros((3, 4)), np.zeros((0, 4))), "like the images"),
        (lambda: nearest_training(np.full((3, 4), np.nan), np.zeros((3, 4))), "NaN"),
        (lambda: copy_test(np.ones(19), np.ones(30)), "at least 20"),
        (lambda: copy_test(-np.ones(20), np.ones(30)), "negative"),
        (lambda: copy_test(np.ones(20), np.zeros(30)), "other subjects"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
