"""Power by spatial frequency of samples and of undersampled measurements, against complete k-space."""

import numpy as np
import pytest
import torch
from heads import blurred, heads, noisy

from rsdmri.metrics.spectrum import PowerSums, log_power_ratio, power_sums, radial_power
from rsdmri.physics.fourier import fft2c
from rsdmri.runtime import torch_generator

SIZE = (40, 45)


def kspace_of(images):
    return fft2c(torch.from_numpy(images))[:, None]


def full(n):
    return torch.ones(n, 1, SIZE[1], dtype=torch.bool)


def lines(n, key=0):
    """Masks that acquire outer lines less often."""
    frequency = (torch.arange(SIZE[1]) - SIZE[1] // 2).abs() / SIZE[1]
    share = torch.clamp(1.1 - 1.8 * frequency, 0.25, 1)
    return torch.rand(n, 1, SIZE[1], generator=torch_generator("spectrum", key)) < share


def test_white_k_space_has_its_power_in_every_ring():
    g = torch_generator("white")
    y = torch.randn(50, 3, *SIZE, dtype=torch.complex128, generator=g)  # E|y|^2 = 1
    frequency, power = radial_power(power_sums(y, full(50)), bands=10)
    np.testing.assert_allclose(frequency, np.arange(0.025, 0.5, 0.05))
    np.testing.assert_allclose(power, 3, rtol=0.05)


def test_one_wave_lies_in_the_ring_of_its_frequency():
    x = np.exp(2j * np.pi * 9 * np.arange(45) / 45)[None, None] * np.ones((1, 40, 1))
    frequency, power = radial_power(power_sums(kspace_of(x), full(1)), bands=10)
    assert frequency[power > 1e-9].tolist() == pytest.approx([0.225])  # 9 / 45 is the lower end of its ring


def test_sampling_density_and_noise_are_corrected():
    images, sigma = heads(300, SIZE), 0.1
    y, mask = kspace_of(images), lines(300)
    noise = torch.randn(y.shape, dtype=y.dtype, generator=torch_generator("n")) * sigma * 2**0.5
    measured = torch.where(mask[:, None], y + noise, torch.nan)  # what was not acquired is not read
    exact = radial_power(power_sums(y, full(300)))[1]
    found = radial_power(power_sums(measured, mask, sigma))[1]
    np.testing.assert_allclose(found[:8], exact[:8], rtol=0.1)
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.1 * 2 * sigma**2)
    assert radial_power(power_sums(measured, mask))[1][-1] > 2 * exact[-1]  # noise left in
    dense = torch.where(mask[:, None], y, 0).abs().square().mean(0)[0].numpy()
    assert radial_power(PowerSums(dense, np.ones(SIZE)))[1][-1] < 0.7 * exact[-1]  # density left in


def test_noise_levels_of_single_items():
    y = torch.zeros(2, 3, *SIZE, dtype=torch.complex64)
    found = power_sums(y, full(2), torch.tensor([0.1, 0.2]))
    np.testing.assert_allclose(found.power, -2 * 3 * (0.1**2 + 0.2**2), rtol=1e-6)
    np.testing.assert_array_equal(found.count, 2)


def test_sums_of_parts_are_those_of_the_whole():
    y, mask = kspace_of(heads(7, SIZE)), lines(7)
    whole, parts = power_sums(y, mask, 0.1), power_sums(y[:3], mask[:3], 0.1) + power_sums(y[3:], mask[3:], 0.1)
    np.testing.assert_allclose(parts.power, whole.power)
    np.testing.assert_array_equal(parts.count, whole.count)


@pytest.mark.parametrize(("spoil", "strengths", "sign"), [(blurred, (0.4, 0.7, 1), -1), (noisy, (0.05, 0.1, 0.2), 1)])
def test_blur_lowers_and_noise_raises_high_frequencies(spoil, strengths, sign):
    measured = power_sums(kspace_of(heads(200, SIZE)), lines(200))
    images = heads(200, SIZE, seed=1)
    curves = [log_power_ratio(power_sums(kspace_of(images), full(200)), measured)[1]]
    curves += [log_power_ratio(power_sums(kspace_of(spoil(images, s)), full(200)), measured)[1] for s in strengths]
    assert np.abs(curves[0]).max() < 0.1
    high = [curve[-4:].mean() for curve in curves]
    assert np.all(sign * np.diff(high) > 0.05), high
    assert abs(curves[-1][0]) < 0.1


def test_half_the_amplitude_is_a_quarter_of_the_power():
    y = kspace_of(heads(20, SIZE))
    _, ratio = log_power_ratio(power_sums(y / 2, full(20)), power_sums(y, full(20)))
    np.testing.assert_allclose(ratio, np.log10(0.25))


def test_lines_that_were_never_acquired_are_left_out_of_both():
    y = kspace_of(heads(20, SIZE))
    mask = full(20)
    mask[..., 30:] = False
    _, ratio = log_power_ratio(power_sums(y, full(20)), power_sums(y, mask))
    np.testing.assert_allclose(ratio, 0, atol=1e-12)


def test_rings_without_power_or_positions_are_not_numbers():
    sums = power_sums(torch.zeros(1, 1, *SIZE, dtype=torch.complex64), full(1), 0.1)
    assert np.isnan(log_power_ratio(sums, sums)[1]).all()
    frequency, power = radial_power(PowerSums(np.ones((4, 4)), np.ones((4, 4))), bands=16)
    assert len(frequency) == 16
    assert np.isnan(power).any()
    assert np.nanmax(power) == 1


@pytest.mark.parametrize("mask", [torch.ones(2, 1, SIZE[1]), torch.ones(3, 1, SIZE[1]).bool(), torch.ones(2, 9).bool()])
def test_wrong_masks_are_refused(mask):
    with pytest.raises(ValueError, match="bool"):
        power_sums(torch.zeros(2, 1, *SIZE, dtype=torch.complex64), mask)
