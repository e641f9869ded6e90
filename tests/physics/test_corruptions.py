import numpy as np
import pytest
import torch
from contract import OperatorContract, randn

from rsdmri.errors import InputError
from rsdmri.physics.corruptions import Blur, Corruption, Downsampling, Inpainting
from rsdmri.physics.fourier import to_channels
from rsdmri.physics.linop import Identity
from rsdmri.physics.sense import Fourier, Sampling, sense
from rsdmri.runtime import torch_generator

SIZES = ((6, 8), (7, 9), (5, 6))


def images(*shape, key=0):
    """Real images in double precision."""
    return randn(*shape, key=key).real.clone()


class TestBlur(OperatorContract):
    def build(self, size):
        return Blur(0.9, size)


class TestBlurOfChannels(OperatorContract):
    def build(self, size):
        return Blur(2.5, (3, *size))


class TestInpainting(OperatorContract):
    def build(self, size):
        return Inpainting.random(0.6, (3, *size), torch_generator("pixels", size))


class TestBlockMeans(OperatorContract):
    def build(self, size):
        return Downsampling(2, (2 * size[0], 2 * size[1]))


class TestAntialiased(OperatorContract):
    def build(self, size):
        return Downsampling(3, (2, 3 * size[0], 3 * size[1]), sigma=1.5)


class TestBlurThenInpainting(OperatorContract):
    def build(self, size):
        return Inpainting.random(0.6, size, torch_generator("pixels", size)) @ Blur(0.9, size)


def every(size, channels=3):
    shape = (channels, *size)
    yield Blur(1.3, shape)
    yield Inpainting.random(0.5, shape, torch_generator("every", size))
    yield Downsampling(3, (channels, 3 * size[0], 3 * size[1]))
    yield Downsampling(2, (channels, 2 * size[0], 2 * size[1]), sigma=1.0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_real_images_stay_real_and_obey_the_same_laws(size):
    for operator in every(size):
        x, y = images(2, *operator.domain_shape), images(2, *operator.range_shape, key=1)
        measured, back, normal = operator.forward(x), operator.adjoint(y), operator.normal(x)
        assert measured.dtype == back.dtype == normal.dtype == torch.float64
        assert abs((measured * y).sum() - (x * back).sum()) < 1e-10 * x.norm() * y.norm()
        torch.testing.assert_close(normal, operator.adjoint(measured), rtol=1e-10, atol=1e-10)
        same = operator.forward(x.to(torch.complex128))
        torch.testing.assert_close(same.real, measured, rtol=1e-12, atol=1e-12)
        assert float(same.imag.abs().max()) < 1e-12
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(operator.forward(x), x, y)
        torch.testing.assert_close(gradient, back, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_single_precision_keeps_its_type(size):
    for operator in every(size):
        for dtype in (torch.float32, torch.complex64):
            x = (
                randn(*operator.domain_shape, dtype=torch.complex64).to(dtype)
                if dtype.is_complex
                else images(*operator.domain_shape).to(dtype)
            )
            exact = operator.forward(x.to(torch.complex128 if dtype.is_complex else torch.float64))
            assert operator.forward(x).dtype == dtype
            torch.testing.assert_close(operator.forward(x), exact.to(dtype), rtol=1e-5, atol=1e-5)


def test_scale_equivariance():
    for operator in every((6, 8)):
        x = images(*operator.domain_shape)
        for scale in (1e-6, 1e6):
            torch.testing.assert_close(operator.forward(scale * x) / scale, operator.forward(x), rtol=1e-10, atol=1e-12)


def gaussian_matrix(n, sigma):
    """Circulant matrix of the sampled Gaussian, rows of sum 1, by its definition."""
    offset = np.abs(np.arange(n)[:, None] - np.arange(n))
    weights = np.exp(-(np.minimum(offset, n - offset) ** 2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_blur_is_a_circular_convolution_with_a_gaussian(size, sigma):
    expected = np.kron(gaussian_matrix(size[0], sigma), gaussian_matrix(size[1], sigma))
    dense = Blur(sigma, size).to_dense().numpy()
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(dense, dense.T, rtol=0, atol=1e-13)


def test_blur_has_the_width_it_is_given_and_keeps_the_mean():
    point = torch.zeros(65, 64, dtype=torch.float64)
    point[32, 32] = 1
    spread = Blur(3.0, (65, 64)).forward(point)
    offset = torch.arange(65, dtype=torch.float64) - 32
    assert float(spread.sum()) == pytest.approx(1)
    assert float((spread.sum(1) * offset.square()).sum()) == pytest.approx(9, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_blur_needs_a_width(sigma):
    with pytest.raises(InputError, match=r"sigma: expected a positive width .* use Identity"):
        Blur(sigma, (4, 5))


def test_inpainting_is_a_projection_that_reads_only_what_it_keeps():
    mask = torch.rand(6, 7, generator=torch_generator("mask")) < 0.5
    operator, x = Inpainting(mask, (3, 6, 7)), images(3, 6, 7)
    kept = operator.forward(torch.where(mask, x, torch.nan))
    assert torch.equal(kept, torch.where(mask, x, 0))
    assert torch.equal(operator.forward(kept), kept)
    assert torch.equal(operator.normal(x), kept)
    assert torch.equal(operator.adjoint(x), kept)


def test_random_pixels_come_with_their_probability_and_from_the_generator_alone():
    shape = (5, 3, 200, 210)
    draw = [Inpainting.random(0.3, shape, torch_generator("draw", i), mask_shape=(5, 1, 200, 210)) for i in (0, 0, 1)]
    assert torch.equal(draw[0].mask, draw[1].mask)
    assert not torch.equal(draw[0].mask, draw[2].mask)
    share = draw[0].mask.double().mean(dim=(1, 2, 3))
    assert float((share - 0.3).abs().max()) < 5 * (0.3 * 0.7 / (200 * 210)) ** 0.5
    assert not torch.equal(draw[0].mask[0], draw[0].mask[1])
    shared = Inpainting.random(0.3, shape, torch_generator("draw", 0))
    assert shared.mask.shape == (200, 210)
    assert bool(Inpainting.random(1.0, shape, torch_generator("all")).mask.all())


def test_a_further_mask_is_a_subset_with_its_probability():
    first = Inpainting.random(0.5, (3, 300, 301), torch_generator("first"))
    second = first.further(0.8, torch_generator("second"))
    assert bool((first.mask | ~second.mask).all())
    share = float(second.mask.sum() / first.mask.sum())
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / float(first.mask.sum())) ** 0.5
    assert second.domain_shape == first.domain_shape
    x = images(3, 300, 301)
    assert torch.equal(second.forward(first.forward(x)), second.forward(x))


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_probabilities_outside_their_range_are_refused(keep):
    with pytest.raises(InputError, match=r"keep: expected a probability in \(0, 1\]"):
        Inpainting.random(keep, (4, 5), torch_generator(0))
    with pytest.raises(InputError, match="keep: expected"):
        Inpainting(torch.ones(4, 5, dtype=torch.bool), (4, 5)).further(keep, torch_generator(0))


@pytest.mark.parametrize(("factor", "size"), [(1, (5, 4)), (2, (6, 8)), (3, (9, 15)), (4, (12, 4))])
def test_block_means(factor, size):
    x = images(2, *size)
    expected = torch.nn.functional.avg_pool2d(x, factor)
    torch.testing.assert_close(Downsampling(factor, size).forward(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3])
def test_antialiased_values_are_gaussian_means_about_the_centre_of_each_block(factor):
    n, sigma = 6 * factor, 1.2
    operator = Downsampling(factor, (n, n), sigma=sigma)
    torch.testing.assert_close(operator.forward(torch.ones(n, n)), torch.ones(n // factor, n // factor))
    expected = np.zeros((6, n))
    for block in range(6):
        for pixel in range(n):
            distance = abs(pixel - (block * factor + (factor - 1) / 2))
            distance = min(distance, n - distance)
            expected[block, pixel] = np.exp(-(distance**2) / (2 * sigma**2))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(operator.to_dense().numpy(), np.kron(expected, expected), rtol=0, atol=1e-13)


def test_antialiasing_suppresses_what_a_coarse_grid_cannot_hold():
    wave = torch.cos(torch.pi * torch.arange(24, dtype=torch.float64)).expand(24, 24)
    assert float(Downsampling(3, (24, 24), sigma=1.5).forward(wave).abs().max()) < 1e-4
    assert float(Downsampling(3, (24, 24)).forward(wave).abs().max()) == pytest.approx(1 / 3)


def test_sizes_that_a_factor_does_not_divide_are_refused_with_the_cure():
    with pytest.raises(InputError, match="divisor of both sizes of 9 x 10, got 3; crop or pad the image to 9 x 9"):
        Downsampling(3, (2, 9, 10))
    with pytest.raises(InputError, match="factor: expected a divisor"):
        Downsampling(0, (4, 4))
    with pytest.raises(InputError, match="sigma: expected a positive width"):
        Downsampling(2, (4, 4), sigma=0.0)


@pytest.mark.parametrize("shape", [(4,), (3, 0, 4)])
def test_shapes_that_are_no_images_are_refused(shape):
    for build in (lambda: Blur(1.0, shape), lambda: Downsampling(1, shape)):
        with pytest.raises(ValueError, match=r"shape: expected \[\.\.\., y, x\]"):
            build()


@pytest.mark.parametrize("noise_level", [-0.1, float("nan"), float("inf")])
def test_noise_levels_that_are_none_are_refused(noise_level):
    with pytest.raises(InputError, match="noise_level: expected a standard deviation"):
        Corruption(Identity((4, 5)), noise_level)


def test_noise_has_its_level_per_real_value_and_per_complex_sample():
    shape = (3, 100, 100)
    clean = Corruption(Identity(shape), 0.2)
    real = clean.measure(torch.zeros(shape, dtype=torch.float64), torch_generator("real"))
    assert real.dtype == torch.float64
    assert float(real.square().mean()) == pytest.approx(0.04, rel=0.05)
    complex_ = clean.measure(torch.zeros(shape, dtype=torch.complex64), torch_generator("complex"))
    assert complex_.dtype == torch.complex64
    assert float(complex_.abs().square().mean()) == pytest.approx(0.04, rel=0.05)
    assert float(to_channels(complex_).square().mean()) == pytest.approx(0.02, rel=0.05)


def test_a_measurement_is_the_operator_plus_noise_from_the_generator():
    x = images(2, 3, 12, 12)
    for operator in (Blur(1.0, (3, 12, 12)), Downsampling(2, (3, 12, 12))):
        assert torch.equal(Corruption(operator).measure(x, torch_generator(0)), operator.forward(x))
        first, again, other = (Corruption(operator, 0.1).measure(x, torch_generator(key)) for key in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert 0.05 < float((first - operator.forward(x)).std()) < 0.2


def test_what_is_not_sampled_stays_zero_without_noise():
    generator = torch_generator("sampled")
    line, point = torch.rand(8, generator=generator) < 0.5, torch.rand(6, 8, generator=generator) < 0.5
    maps = randn(3, 6, 8)
    lines, points = line.expand(3, 6, 8), point.expand(3, 6, 8)
    batch = torch.stack((line, ~line))[:, None]
    cases = (
        (sense(maps, line), lines),
        (sense(maps, point), points),
        (sense(maps, batch), batch[:, None].expand(2, 3, 6, 8)),
        (Inpainting(point, (3, 6, 8)), points),
        (Sampling(point, (3, 6, 8)) @ Fourier((3, 6, 8)), points),
        (Inpainting(point, (6, 8)) @ Blur(1.0, (6, 8)), point),
    )
    for operator, mask in cases:
        noise = Corruption(operator, 1.0).measure(torch.zeros(operator.domain_shape, dtype=torch.complex128), generator)
        assert torch.equal(noise != 0, mask)
