"""The emulated coil: exact where one can be, a minimum where none can, the gradient of finite differences."""

import numpy as np
import pytest
import torch
from phantoms import phantom

from rsdmri.physics.emulation import misfit, single_coil_weights
from rsdmri.physics.fourier import rss
from rsdmri.runtime import numpy_generator, torch_generator


def coil_images(slices=2, coils=5, size=(24, 21)):
    scene = [phantom(coils, size, seed=seed) for seed in range(slices)]
    images = torch.stack([one.maps * one.image for one in scene])
    noise = torch.randn(*images.shape, dtype=torch.complex64, generator=torch_generator("emulation"))
    return images + 0.02 * noise


def misfit_of(weights, images):
    combined = torch.einsum("c,scyx->syx", weights, images).abs()
    return float((combined.sqrt() - rss(images).sqrt()).square().sum())


def test_coils_of_one_shape_are_emulated_exactly():
    image = torch.randn(3, 1, 16, 15, dtype=torch.complex64, generator=torch_generator("image"))
    gains = torch.tensor([2 - 1j, 0.5j, -3, 1 + 1j], dtype=torch.complex64)[:, None, None]
    weights = single_coil_weights(image * gains)
    combined = torch.einsum("c,scyx->syx", weights, image * gains)
    torch.testing.assert_close(combined.abs(), rss(image * gains), rtol=2e-3, atol=1e-3)
    one = single_coil_weights(image)
    assert abs(abs(complex(one[0])) - 1) < 1e-3


def test_the_gradient_is_that_of_finite_differences():
    generator = numpy_generator("gradient")
    pixels = torch.from_numpy(generator.standard_normal((3, 40)) + 1j * generator.standard_normal((3, 40)))
    wanted = torch.from_numpy(generator.random(40) + 0.1)
    weights, step = generator.standard_normal(6), 1e-6
    _, gradient = misfit(weights, pixels, wanted)
    for index in range(6):
        ahead, behind = weights.copy(), weights.copy()
        ahead[index] += step
        behind[index] -= step
        slope = (misfit(ahead, pixels, wanted)[0] - misfit(behind, pixels, wanted)[0]) / (2 * step)
        assert abs(slope - gradient[index]) < 1e-5 * max(1, abs(slope))
    pixels[:, 0] = 0  # the root has no slope at 0
    assert np.isfinite(misfit(weights, pixels, wanted)[1]).all()


def test_it_is_a_minimum_and_better_than_the_linear_fit():
    images = coil_images()
    weights = single_coil_weights(images)
    least = misfit_of(weights, images)
    pixels, target = images.movedim(1, 0).flatten(1).mT, rss(images).flatten()
    linear = torch.linalg.lstsq(pixels, target.to(pixels.dtype)[:, None]).solution[:, 0]
    assert least < misfit_of(linear, images)
    for number in range(30):
        step = torch.randn(len(weights), dtype=torch.complex64, generator=torch_generator("step", number))
        assert misfit_of(weights + 0.02 * weights.abs().max() * step, images) > least


def test_one_combination_serves_the_volume_whatever_its_scale():
    images = coil_images()
    weights = single_coil_weights(images)
    assert weights.shape == (5,)
    torch.testing.assert_close(single_coil_weights(1e-6 * images), weights, rtol=2e-2, atol=2e-2)
    least = misfit_of(weights, images)
    assert misfit_of(single_coil_weights(1e6 * images), images) < 1.001 * least
    order = torch.tensor([4, 2, 0, 1, 3])
    assert misfit_of(single_coil_weights(images[:, order]), images[:, order]) < 1.001 * least


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.complex64)])
def test_other_shapes_and_types_are_refused(images):
    with pytest.raises(ValueError, match=r"expected complex \(slice, coil, y, x\)"):
        single_coil_weights(images)


@pytest.mark.parametrize("value", [0, float("nan"), float("inf")])
def test_images_without_content_are_refused(value):
    with pytest.raises(ValueError, match="finite values, not all zero"):
        single_coil_weights(torch.full((1, 2, 4, 4), value, dtype=torch.complex64))
