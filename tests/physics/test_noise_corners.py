import pytest
import torch
from phantoms import correlated, noise, phantom

from rsdmri.errors import InputError
from rsdmri.physics.fourier import fft2c
from rsdmri.physics.noise_corners import covariance_from_corners

MIXING = correlated(6)
TRUTH = MIXING @ MIXING.mH
LEVEL = float(TRUTH.diagonal().real.mean()) ** 0.5


def scan(size=(64, 64), *, slices=8, level=0.2, key=0):
    return phantom(6, size).kspace + level * noise(MIXING, (slices, *size), key=key)


@pytest.mark.parametrize("size", [(64, 64), (57, 66), (96, 40)], ids=str)
def test_covariance_is_recovered(size):
    estimate = covariance_from_corners(scan(size, level=0.2))
    assert estimate.source == "image corners"
    assert estimate.sigma == pytest.approx(0.2 * LEVEL, rel=4 * estimate.sigma_error)
    deviation = torch.linalg.matrix_norm(estimate.covariance - 0.04 * TRUTH) / torch.linalg.matrix_norm(0.04 * TRUTH)
    assert float(deviation) < 3 * (6 / estimate.samples) ** 0.5
    assert not estimate.suspicious


def test_one_slice_is_a_volume_of_one():
    one = scan(slices=1)
    assert torch.equal(covariance_from_corners(one).covariance, covariance_from_corners(one[0]).covariance)


def test_level_is_right_on_average_and_its_error_too():
    estimates = [covariance_from_corners(scan(slices=2, key=k)) for k in range(24)]
    ratios = torch.tensor([estimate.sigma / (0.2 * LEVEL) for estimate in estimates])
    assert abs(float(ratios.mean()) - 1) < 0.004 + 3 * estimates[0].sigma_error / 24**0.5
    assert float(ratios.std()) == pytest.approx(estimates[0].sigma_error, rel=0.5)


def test_corners_that_the_object_reaches_are_left_out():
    image = torch.zeros(6, 64, 64, dtype=torch.complex64)
    image[:, 40:, 40:] = 3
    image[:, :5, 50:] = 3
    kspace = fft2c(image) + 0.2 * noise(MIXING, (8, 64, 64))
    estimate = covariance_from_corners(kspace)
    assert estimate.sigma == pytest.approx(0.2 * LEVEL, rel=4 * estimate.sigma_error)
    assert estimate.samples == 2 * 8 * 8 * 8
    assert not estimate.suspicious


def test_an_object_in_all_corners_is_said_to_be_there():
    kspace = fft2c(torch.ones(6, 64, 64, dtype=torch.complex64)) + 0.2 * noise(MIXING, (8, 64, 64))
    estimate = covariance_from_corners(kspace)
    assert estimate.suspicious
    assert "may hold signal" in str(estimate)


@pytest.mark.parametrize("kind", ["zeros", "one side", "Hann"])
def test_windows_and_zeros_do_not_pull_the_estimate_down(kind):
    kspace = scan(slices=16)
    window = torch.zeros(64)
    if kind == "zeros":
        window[16:48] = 1
        kspace = kspace * window * window[:, None]
    elif kind == "one side":
        window[16:] = 1
        kspace = kspace * window
    else:
        window = torch.hann_window(65)[:64]
        kspace = kspace * window * window[:, None]
    estimate = covariance_from_corners(kspace)
    assert estimate.source == "image corners of windowed k-space"
    ratio = estimate.sigma / (0.2 * LEVEL)
    assert (0.7 if kind == "Hann" else 0.92) < ratio < 1.04  # 0.37 and 0.5 without the correction


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_and_dead_coils(factor):
    kspace = scan()
    first, second = covariance_from_corners(kspace), covariance_from_corners(factor * kspace)
    torch.testing.assert_close(second.covariance, first.covariance * factor**2, rtol=1e-4, atol=0)
    kspace[:, 2] = 0
    assert float(torch.linalg.eigvalsh(covariance_from_corners(kspace).covariance)[0]) > 0
    assert covariance_from_corners(torch.zeros_like(kspace)).source == "none, the scan is empty"


def test_what_does_not_fit_is_refused():
    kspace = scan(slices=1)
    lines = torch.arange(64) % 2 == 0
    for mask in (lines, lines[:, None], lines[:, None] | lines):
        with pytest.raises(InputError, match=r"between acquired ones are missing.*estimate_covariance"):
            covariance_from_corners(torch.where(mask, kspace, 0))
    with pytest.raises(InputError, match="NaN or infinite"):
        covariance_from_corners(kspace * torch.nan)
    with pytest.raises(InputError, match="too small"):
        covariance_from_corners(kspace[..., :20, :20])
    with pytest.raises(ValueError, match="kspace: expected complex"):
        covariance_from_corners(kspace.real)
