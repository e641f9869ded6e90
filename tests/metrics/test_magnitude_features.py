"""Features of magnitudes that answer to what spoils MR images."""

import numpy as np
import pytest
from heads import blurred, heads, noisy, rng, zero_filled
from skimage.transform import resize

from rsdmri.errors import InputError
from rsdmri.metrics.distribution import frechet_distance, kernel_distance
from rsdmri.metrics.features import reference_hash
from rsdmri.metrics.magnitude_features import image_features


def features(images):
    return image_features(np.abs(images))


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


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 31, 40)), "at least 32"),
        (np.zeros((40, 40)), "at least 32"),
        (np.zeros((2, 40, 40), complex), "magnitude"),
        (np.full((2, 40, 40), np.nan), "NaN"),
    ],
)
def test_bad_input_is_refused(images, message):
    with pytest.raises(InputError, match=message):
        image_features(images)
