"""The proximal distance ranks generators as clean images would, and what it cannot see."""

import numpy as np
import pytest
import torch
from heads import blurred, heads, noisy

from rsdmri.errors import InputError
from rsdmri.metrics.distribution import frechet_distance
from rsdmri.metrics.feature_sets import select_features
from rsdmri.metrics.memorisation import copy_test
from rsdmri.metrics.proximal import measured_again, measured_distances, proximal_distance
from rsdmri.physics.fourier import fft1c, ifft1c
from rsdmri.physics.masks import further_mask
from rsdmri.physics.sense import Sampling, sense
from rsdmri.runtime import numpy_generator, torch_generator

N, SIZE, ACS, SIGMA = 100, (40, 36), 6, 0.02


def maps_of(n, coils=3):
    """Smooth coil maps with sum |s|^2 = 1, one set an item."""
    g = torch_generator("proximal", "maps")
    y, x = (torch.linspace(-1, 1, k) for k in SIZE)
    centre = torch.rand(n, coils, 2, generator=g) * 2 - 1
    distance = (y[:, None] - centre[..., 0, None, None]) ** 2 + (x - centre[..., 1, None, None]) ** 2
    maps = torch.exp(-distance) * torch.exp(1j * 3 * centre[..., 0, None, None] * x)
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt()


def masks_of(n, key, share=0.4):
    mask = torch.rand(n, 1, SIZE[1], generator=torch_generator("proximal", key)) < share
    centre = SIZE[1] // 2
    mask[..., centre - ACS // 2 : centre + ACS // 2] = True
    return mask


def images_of(seed, n=N):
    return torch.from_numpy(heads(n, SIZE, seed=seed)).to(torch.complex64)


def spoiled(images, function, *strength):
    return torch.from_numpy(np.ascontiguousarray(function(images.numpy(), *strength))).to(torch.complex64)


def training_set(n):
    """Further operators of a training set, and its measurements seen through them."""
    operator = sense(maps_of(n), masks_of(n, "masks"))
    measured = operator.forward(images_of(0, n))
    noise = torch.randn(measured.shape, dtype=torch.complex64, generator=torch_generator("noise")) * SIGMA * 2**0.5
    mask = further_mask(operator.mask, 4, acs=ACS, generator=torch_generator("further"))
    further = operator.with_mask(mask)
    return further, further.adjoint(measured + noise)


@pytest.fixture(scope="module")
def training():
    return training_set(N)


@pytest.fixture(scope="module")
def small():
    return training_set(40)


def distance(images, training, features="mr-magnitude-v1", sigma=SIGMA):
    further, seen = training
    again = measured_again(images, further, sigma, torch_generator("again"))
    kind = select_features(features)
    return proximal_distance(kind, again, seen, generator=numpy_generator("proximal"), repeats=8)


def moved(images, pixels):
    return np.roll(images, pixels, axis=-1)


@pytest.mark.parametrize(
    ("spoil", "strengths"), [(blurred, (0.5, 0.8, 1.2)), (noisy, (0.05, 0.1, 0.2)), (moved, (2, 4, 6))]
)
def test_generators_are_ranked_without_clean_images(spoil, strengths, training):
    images = images_of(1)
    found = [distance(images, training).frechet.value]
    found += [distance(spoiled(images, spoil, s), training).frechet.value for s in strengths]
    assert np.all(np.diff(found) > 0), found
    assert found[-1] > 3 * found[0]


def test_real_images_measured_again_are_at_the_floor(training):
    honest = distance(images_of(1), training)
    assert 0.3 * honest.floor < honest.frechet.value < honest.floor  # twice as many images as in the halves
    assert honest.precision.value > 0.6
    assert abs(honest.kernel.value) < honest.kernel.high - honest.kernel.low


def test_radiomics_rank_blur_as_well(small):
    images = images_of(1, 40)
    sets = [images, *(spoiled(images, blurred, s) for s in (0.6, 1.2))]
    found = [distance(x, small, "radiomics").frechet.value for x in sets]
    assert np.all(np.diff(found) > 0), found


def test_the_noise_of_the_measurements_must_be_added(small):
    images = images_of(1, 40)
    right, without, twice = (distance(images, small, "radiomics", s).frechet.value for s in (SIGMA, 0.0, 2 * SIGMA))
    assert without > 1.5 * right
    assert twice > 1.5 * right


@pytest.mark.parametrize("masks", ["varied", "one for all"])
def test_generators_right_on_acquired_lines_alone_are_found_out_unless_there_is_one_mask(masks):
    flat = torch.ones(N, 1, *SIZE, dtype=torch.complex64)  # one coil: a skipped line reaches no acquired one
    one = masks_of(1, "single").expand(N, -1, -1)
    data, own = (one, one) if masks == "one for all" else (masks_of(N, "data"), masks_of(N, "generator"))
    operator, images = sense(flat, data), images_of(1)
    lacking = ifft1c(torch.where(own, fft1c(images, -1), 0), -1)
    kind = select_features("mr-magnitude-v1")
    seen, honest, fooling = (kind(operator.normal(x).abs().numpy()) for x in (images_of(0), images, lacking))
    ratio = frechet_distance(fooling, seen) / frechet_distance(honest, seen)
    assert ratio == pytest.approx(1, abs=1e-3) if masks == "one for all" else ratio > 3, ratio


def test_measured_again_is_the_operator_s_image_with_noise_of_the_asked_level():
    further = sense(maps_of(4), masks_of(4, "few"))
    x = images_of(3, 4)
    exact = measured_again(x, further, 0.0, torch_generator(0))
    torch.testing.assert_close(exact, further.normal(x), atol=1e-5, rtol=1e-5)
    levels = torch.tensor([0.0, 0.1, 0.2, 0.4])
    noise = measured_again(torch.zeros_like(x), further, levels, torch_generator(0))
    # A^H n with sum |s|^2 = 1: the share of acquired samples of the noise of k-space
    expected = levels * (2 * further.mask.float().mean((-2, -1))).sqrt()
    torch.testing.assert_close(noise.abs().square().mean((-2, -1)).sqrt(), expected, rtol=0.1, atol=1e-6)


def test_real_images_of_pixels_are_measured_again_too():
    mask = torch.rand(3, 8, 8, generator=torch_generator(1)) < 0.5
    x = torch.rand(3, 8, 8, generator=torch_generator(2))
    again = measured_again(x, Sampling(mask, (3, 8, 8)), 0.1, torch_generator(3))
    assert again.dtype == torch.float32
    assert (again[~mask] == 0).all()
    assert 0.05 < (again - x)[mask].std() < 0.15


def test_copies_are_found_among_measurements_alone():
    operator = sense(maps_of(40), masks_of(40, "copies"))
    x = images_of(4, 40)
    measured = operator.forward(x)
    noise = torch.randn(measured.shape, dtype=torch.complex64, generator=torch_generator("n")) * SIGMA
    measured = torch.where(operator.mask[:, None], measured + noise, 0)
    samples = torch.cat([images_of(5, 22), x[:5]])
    found = measured_distances(samples, measured, operator)
    residual = operator.forward(samples[:1].expand(40, -1, -1)) - measured
    torch.testing.assert_close(found[0], residual.flatten(1).norm(dim=1) / measured.flatten(1).norm(dim=1))
    held_out = measured_distances(images_of(6, 20), measured, operator).min(1).values
    nearest = found.min(1)
    assert nearest.indices[-5:].tolist() == [0, 1, 2, 3, 4]
    flags = copy_test(nearest.values.numpy(), held_out.numpy()).copied
    assert np.flatnonzero(flags).tolist() == [22, 23, 24, 25, 26]


def test_items_without_signal_are_refused():
    operator = sense(maps_of(2), masks_of(2, "empty"))
    with pytest.raises(InputError, match="without signal"):
        measured_distances(images_of(0, 1), torch.zeros(operator.range_shape, dtype=torch.complex64), operator)
