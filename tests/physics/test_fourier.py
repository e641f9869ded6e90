import numpy as np
import pytest
import torch

from rsdmri.physics import fourier
from rsdmri.runtime import torch_generator

SHAPES = ((8, 8), (7, 9), (8, 5), (1, 6), (2, 3, 11, 12))


def random_image(shape, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch_generator("fourier", *shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transforms_equal_numpy(shape):
    x = random_image(shape)
    shifted = np.fft.ifftshift(x.numpy(), axes=(-2, -1))
    forward = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))
    backward = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))
    np.testing.assert_allclose(fourier.fft2c(x).numpy(), forward, atol=1e-12)
    np.testing.assert_allclose(fourier.ifft2c(x).numpy(), backward, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transforms_are_unitary_and_separable(shape):
    x, y = random_image(shape), random_image(shape).flip(-1)
    torch.testing.assert_close(fourier.ifft2c(fourier.fft2c(x)), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(fourier.fft1c(fourier.fft1c(x, -1), -2), fourier.fft2c(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(fourier.ifft1c(fourier.fft1c(x, -2), -2), x, atol=1e-12, rtol=0)
    assert (
        abs(torch.vdot(y.flatten(), fourier.fft2c(x).flatten()) - torch.vdot(fourier.ifft2c(y).flatten(), x.flatten()))
        < 1e-10
    )


@pytest.mark.parametrize(("height", "width"), [(8, 9), (7, 6)])
def test_centre_of_kspace_is_the_mean_of_the_image(height, width):
    x = random_image((height, width))
    centre = fourier.fft2c(x)[height // 2, width // 2]
    torch.testing.assert_close(centre, x.sum() / (height * width) ** 0.5)
    point = torch.zeros(height, width, dtype=torch.complex128)
    point[height // 2, width // 2] = 1
    torch.testing.assert_close(fourier.fft2c(point), torch.full_like(point, (height * width) ** -0.5))


def test_channels_round_trip():
    x = random_image((2, 5, 6), torch.complex64)
    channels = fourier.to_channels(x)
    assert channels.shape == (2, 2, 5, 6)
    assert channels.dtype == torch.float32
    assert torch.equal(channels[:, 0], x.real)
    assert torch.equal(channels[:, 1], x.imag)
    assert torch.equal(fourier.from_channels(channels), x)


@pytest.mark.parametrize("wrong", [torch.ones(2, 3, 4, 4), torch.ones(2, 4), torch.ones(2, 4, 4) * 1j])
def test_from_channels_refuses(wrong):
    with pytest.raises(ValueError, match=r"real \[..., 2, y, x\]"):
        fourier.from_channels(wrong)


def test_to_channels_refuses_real_images():
    with pytest.raises(ValueError, match="complex"):
        fourier.to_channels(torch.ones(3, 3))


@pytest.mark.parametrize("size", [(8, 9), (7, 6), (5, 5)])
@pytest.mark.parametrize("crop", [(4, 5), (5, 4), (5, 5), (1, 1)])
def test_crop_and_pad_keep_the_centre(size, crop):
    x = torch.zeros(size)
    x[size[0] // 2, size[1] // 2] = 1
    cropped = fourier.center_crop(x, crop)
    assert cropped.shape == crop
    assert cropped[crop[0] // 2, crop[1] // 2] == 1
    padded = fourier.center_pad(cropped, size)
    assert torch.equal(padded, x)


def test_crop_and_pad_refuse():
    with pytest.raises(ValueError, match="crop"):
        fourier.center_crop(torch.ones(4, 4), (5, 4))
    with pytest.raises(ValueError, match="crop"):
        fourier.center_crop(torch.ones(4, 4), (0, 4))
    with pytest.raises(ValueError, match="pad"):
        fourier.center_pad(torch.ones(4, 4), (3, 4))


def test_rss_is_the_root_of_the_summed_squares():
    x = random_image((4, 5, 6))
    torch.testing.assert_close(fourier.rss(x), x.abs().square().sum(0).sqrt())
