"""Distances against closed forms, and features that answer to what spoils MR images."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from rsdmri.errors import InputError
from rsdmri.metrics.distribution import (
    bootstrap,
    describe_features,
    frechet_distance,
    image_features,
    kernel_distance,
    reference_hash,
)
from rsdmri.runtime import numpy_generator


def rng(*key):
    return numpy_generator("distribution", *key)


def heads(n=80, size=(48, 48), seed=0):
    """Ellipses in ellipses, complex, brightest about 1."""
    generator = rng("heads", seed)
    y, x = np.meshgrid(*[np.linspace(-1, 1, k) for k in size], indexing="ij")
    images = np.zeros((n, *size), complex)
    for image in images:
        a, b = generator.uniform(0.6, 0.85, 2)
        image += 0.5 * generator.uniform(0.8, 1.2) * ((x / a) ** 2 + (y / b) ** 2 < 1)
        for _ in range(6):
            cx, cy, r, s = *generator.uniform(-0.4, 0.4, 2), *generator.uniform(0.05, 0.3, 2)
            image += generator.uniform(-0.3, 0.4) * (((x - cx) / r) ** 2 + ((y - cy) / s) ** 2 < 1)
        image *= np.exp(1j * generator.uniform(0, 6))
    return images


def features(images):
    return image_features(np.abs(images))


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


def blurred(images, strength):
    return gaussian_filter(images.real, (0, strength, strength)) + 1j * gaussian_filter(
        images.imag, (0, strength, strength)
    )


def noisy(images, sigma):
    g = rng("noise")
    return images + sigma * (g.standard_normal(images.shape) + 1j * g.standard_normal(images.shape)) / np.sqrt(2)


def zero_filled(images, acceleration):
    g, width = rng("mask"), images.shape[-1]
    mask = g.random((len(images), 1, width)) < 1 / acceleration
    mask[..., width // 2 - 2 : width // 2 + 2] = True
    kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(images, axes=-1)), axes=-1)
    kspace = np.where(mask, kspace, 0)
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes=-1)), axes=-1)


@pytest.mark.parametrize(
    ("spoil", "strengths"),
    [(blurred, (0.4, 0.7, 1, 2)), (noisy, (0.02, 0.05, 0.1, 0.2)), (zero_filled, (1.5, 2, 4, 8))],
)
@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_grow_with_blur_noise_and_undersampling(spoil, strengths, distance):
    reference, images = features(heads()), heads(seed=1)
    distances = [distance(features(images), reference)]
    distances += [distance(features(spoil(images, s)), reference) for s in strengths]
    assert np.all(np.diff(distances) > 0), distances


def test_distances_see_lost_variety_and_wrong_brightness():
    reference, images = features(heads()), heads(seed=1)
    honest = frechet_distance(features(images), reference)
    assert frechet_distance(features(np.repeat(images[:4], 20, axis=0)), reference) > 2 * honest
    assert frechet_distance(features(1.3 * images), reference) > 2 * honest


def test_ghosts_along_phase_encode_are_told_from_ghosts_along_readout():
    images = heads()
    along_x = features(0.8 * images + 0.2 * np.roll(images, images.shape[-1] // 4, axis=-1))
    along_y = features(0.8 * images + 0.2 * np.roll(images, images.shape[-2] // 4, axis=-2))
    assert frechet_distance(along_x, features(images)) > 5
    assert frechet_distance(along_x, along_y) > 5


def test_order_changes_nothing_and_each_image_stands_alone():
    images = np.abs(heads(40))
    f = image_features(images)
    shuffle = rng("order").permutation(40)
    np.testing.assert_allclose(image_features(images[shuffle]), f[shuffle], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(image_features(images[3:4])[0], f[3], rtol=1e-12, atol=1e-12)
    other = features(heads(30, seed=2))
    assert frechet_distance(f[shuffle], other) == pytest.approx(frechet_distance(f, other), rel=1e-9)
    assert reference_hash(f[shuffle]) == reference_hash(f)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40), (101, 99)])
def test_any_size_from_32_gives_finite_features_of_constant_number(size):
    f = features(heads(3, size))
    assert f.shape == (3, 128)
    assert np.isfinite(f).all()


@pytest.mark.parametrize("side", [45, 48])
def test_layout_is_linear_and_every_pixel_counts_the_same(side):
    dark, bright = np.zeros((1, side, side)), np.ones((1, side, side))
    base, unit = (image_features(x)[0, :64] for x in (dark, bright))
    np.testing.assert_allclose(unit - base, (unit - base)[0])
    image = rng("layout").random((1, side, side))
    layout = (image_features(image)[0, :64] - base) / (unit - base)
    assert layout.mean() == pytest.approx(image.mean())
    if side == 48:
        np.testing.assert_allclose(layout, image.reshape(8, 6, 8, 6).mean((1, 3)).ravel())


def test_the_same_anatomy_at_another_resolution_keeps_its_layout():
    large = np.abs(heads(4, (96, 96)))
    small = resize(large, (4, 48, 48), order=1, anti_aliasing=True)
    assert np.abs(image_features(large) - image_features(small))[:, :64].max() < 0.2


def test_no_image_and_empty_air_are_finite():
    assert np.isfinite(image_features(np.zeros((2, 40, 40)))).all()
    assert image_features(np.zeros((0, 40, 40))).shape == (0, 128)


def test_description_names_features_counts_and_reference():
    reference = features(heads(5))
    text = describe_features(np.zeros((7, 128)), reference)
    assert "64 layout, 48 energy, 16 spectrum" in text
    assert "7 samples; 5 reference images" in text
    assert reference_hash(reference) in text
    assert reference_hash(reference) == reference_hash(reference + 1e-9 * np.sign(reference))
    assert reference_hash(reference) != reference_hash(reference + 1e-3)
    assert "samples" not in describe_features()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_features(np.zeros((2, 31, 40))), "at least 32"),
        (lambda: image_features(np.zeros((40, 40))), "at least 32"),
        (lambda: image_features(np.zeros((2, 40, 40), complex)), "magnitude"),
        (lambda: image_features(np.full((2, 40, 40), np.nan)), "NaN"),
        (lambda: frechet_distance(np.zeros((5, 3)), np.zeros((5, 4))), "one d"),
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "at least two"),
        (lambda: kernel_distance(np.full((5, 3), np.inf), np.zeros((5, 3))), "infinite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
