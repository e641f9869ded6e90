import numpy as np
import pytest
import pywt
import torch
from contract import OperatorContract, randn

from rsdmri.physics.wavelet import Wavelet

SIZES = [(64, 64), (128, 96), (33, 47), (18, 200), (7, 9), (1, 1), (230, 180)]
NAMES = ("db1", "db2", "db3", "db4", "sym4")


class TestWavelet(OperatorContract):
    def build(self, size):
        return Wavelet(size, torch.complex128)


def image_on_grid(size, dtype=torch.complex128, name="db2"):
    wavelet = Wavelet(size, dtype, name=name)
    return wavelet, randn(2, *wavelet.shape, dtype=dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_pywavelets(size, name):
    wavelet, image = image_on_grid(size, name=name)
    for item, coefficients in zip(image.numpy(), wavelet.forward(image).numpy(), strict=True):
        theirs = pywt.wavedec2(item, name, mode="periodization", level=wavelet.levels)
        np.testing.assert_allclose(coefficients, pywt.coeffs_to_array(theirs)[0], atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_unitary(size, name):
    wavelet, image = image_on_grid(size, name=name)
    torch.testing.assert_close(wavelet.adjoint(wavelet.forward(image)), image, atol=1e-10, rtol=0)
    torch.testing.assert_close(wavelet.forward(wavelet.adjoint(image)), image, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_grid_is_little_larger_than_the_image(size):
    wavelet = Wavelet(size, torch.complex64)
    assert 1 <= wavelet.levels <= 4
    for n, grid in zip(size, wavelet.shape, strict=True):
        assert n <= grid < max(n + 2**wavelet.levels, 17)
        assert grid % 2**wavelet.levels == 0
        assert grid >> wavelet.levels >= 8


def test_coarse_band_holds_the_mean_and_smooth_images_little_else():
    wavelet = Wavelet((64, 64), torch.complex128, name="db4")
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    smooth = (1 + 0.2j) * torch.cos(2 * torch.pi * (y + x) / 64).to(torch.complex128)[None] + 3
    coefficients = wavelet.forward(smooth)
    coarse = coefficients[:, :8, :8]
    assert float(coarse.mean().real) == pytest.approx(3 * 8)  # each halving of both axes doubles a constant
    share = coarse.abs().square().sum() / coefficients.abs().square().sum()
    assert float(share) > 0.999


@pytest.mark.parametrize("size", [(64, 48), (33, 47), (160, 112)])
@pytest.mark.parametrize("shift", [(0, 0), (3, 1), (-2, 20)])
def test_shrinking_equals_thresholds_of_pywavelets(size, shift):
    wavelet, image = image_on_grid(size)
    thresholds = torch.tensor([0.4, 1.1], dtype=torch.float64)
    found = wavelet.shrink(image, thresholds[:, None, None], shift)
    for item, ours, threshold in zip(image.numpy(), found.numpy(), thresholds.tolist(), strict=True):
        moved = np.roll(item, shift, (0, 1))
        coarse, *details = pywt.wavedec2(moved, "db2", mode="periodization", level=wavelet.levels)
        kept = [tuple(pywt.threshold(band, threshold, "soft") for band in level) for level in details]
        expected = np.roll(pywt.waverec2([coarse, *kept], "db2", mode="periodization"), (-shift[0], -shift[1]), (0, 1))
        np.testing.assert_allclose(ours, expected, atol=1e-10)


def test_shrinking_by_nothing_and_by_everything():
    wavelet, image = image_on_grid((48, 40))
    before = image.clone()
    image[0] = 0
    torch.testing.assert_close(wavelet.shrink(image, 0.0), image, atol=1e-10, rtol=0)
    flat = wavelet.forward(wavelet.shrink(image, 1e9))
    coarse = slice(None, wavelet.shape[0] >> wavelet.levels), slice(None, wavelet.shape[1] >> wavelet.levels)
    torch.testing.assert_close(flat[:, *coarse], wavelet.forward(image)[:, *coarse], atol=1e-10, rtol=0)
    flat[:, *coarse] = 0
    assert float(flat.abs().max()) < 1e-10
    assert torch.equal(image[1], before[1])


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_shrinking_follows_the_scale(factor):
    wavelet, image = image_on_grid((64, 48), torch.complex64)
    scaled = wavelet.shrink(factor * image, 0.5 * factor)
    torch.testing.assert_close(scaled / factor, wavelet.shrink(image, 0.5), rtol=1e-5, atol=1e-5)


def test_an_item_is_the_same_beside_a_broken_one():
    wavelet, image = image_on_grid((48, 40))
    alone = wavelet.shrink(image[:1], 0.5)
    image[1] = torch.nan
    torch.testing.assert_close(wavelet.shrink(image, 0.5)[:1], alone, rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="orthogonal wavelet"):
        Wavelet((32, 32), torch.complex64, name="bior2.2")
    with pytest.raises(ValueError, match="orthogonal wavelet"):
        Wavelet((32, 32), torch.complex64, name="db10")
    with pytest.raises(ValueError, match="complex64"):
        Wavelet((32, 32), torch.complex64).forward(randn(32, 32))
    with pytest.raises(ValueError, match="expected shape"):
        Wavelet((32, 32), torch.complex128).shrink(randn(32, 30), 0.1)
