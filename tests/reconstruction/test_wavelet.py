import numpy as np
import pytest
import pywt
import torch

from rsdmri.reconstruction.wavelet import Wavelet
from rsdmri.runtime import torch_generator

SIZES = [(64, 64), (128, 96), (33, 47), (18, 200), (7, 9), (1, 1), (230, 180)]


def image_on_grid(size, dtype=torch.complex64):
    wavelet = Wavelet(size, dtype)
    return wavelet, torch.randn(2, *wavelet.shape, dtype=dtype, generator=torch_generator("wavelet", *size))


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_pywavelets(size):
    wavelet, image = image_on_grid(size)
    ours = wavelet.forward(image).mT.numpy()
    for item, coefficients in zip(image.to(torch.complex128).numpy(), ours, strict=True):
        theirs = pywt.wavedec2(item, "db4", mode="periodization", level=wavelet.levels)
        np.testing.assert_allclose(coefficients, pywt.coeffs_to_array(theirs)[0], atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_orthogonal(size):
    wavelet, image = image_on_grid(size, torch.complex128)
    coefficients = wavelet.forward(image)
    other = torch.randn(coefficients.shape, dtype=torch.complex128, generator=torch_generator("other", *size))
    left = torch.vdot(coefficients.flatten(), other.flatten())
    torch.testing.assert_close(wavelet.inverse(coefficients.clone()), image, atol=1e-10, rtol=0)
    torch.testing.assert_close(left, torch.vdot(image.flatten(), wavelet.inverse(other).flatten()))
    assert coefficients.abs().square().sum() == pytest.approx(float(image.abs().square().sum()))


@pytest.mark.parametrize("size", SIZES)
def test_the_grid_is_little_larger_than_the_image(size):
    wavelet = Wavelet(size, torch.complex64)
    assert 1 <= wavelet.levels <= 4
    for n, grid in zip(size, wavelet.shape, strict=True):
        assert n <= grid < max(n + 2**wavelet.levels, 17)
        assert grid % 2**wavelet.levels == 0
        assert grid >> wavelet.levels >= 8


def test_coarse_band_holds_the_mean_and_smooth_images_little_else():
    wavelet = Wavelet((64, 64), torch.complex128)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    smooth = (1 + 0.2j) * torch.cos(2 * torch.pi * (y + x) / 64).to(torch.complex128)[None] + 3
    coefficients = wavelet.forward(smooth)
    coarse = wavelet.coarse(coefficients)
    assert coarse.shape == (1, 8, 8)
    assert float(coarse.mean().real) == pytest.approx(3 * 8)  # each halving of both axes doubles a constant
    share = coarse.abs().square().sum() / coefficients.abs().square().sum()
    assert float(share) > 0.999
