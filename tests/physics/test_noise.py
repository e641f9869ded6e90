import pytest
import torch
from phantoms import correlated, noise, phantom

from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.fourier import fft1c
from rsdmri.physics.noise import NoiseEstimate, combine_estimates, estimate_covariance, whiten, whitening_matrix
from rsdmri.runtime import torch_generator

LINES = masks.draw_mask("random", 64, acceleration=4, center_fraction=0.12, key=("noise test", 0))
FULL = torch.ones(64, dtype=torch.bool)
POINTS = torch.rand(64, 64, generator=torch_generator("points")) < 0.4


def scan(mixing, *, slices=4, level=0.05, seed=0):
    head = phantom(mixing.shape[0], seed=seed)
    return head.kspace + level * noise(mixing, (slices, 64, 64), key=seed)


def whitened_error(estimate, truth):
    """Root mean square deviation of the truly whitened covariance from the identity, per coil."""
    whitening = whitening_matrix(estimate.covariance)
    deviation = whitening @ truth @ whitening.mH - torch.eye(len(truth))
    return float(torch.linalg.matrix_norm(deviation)) / len(truth) ** 0.5


@pytest.mark.parametrize("mask", [FULL, LINES], ids=["full", "lines"])
@pytest.mark.parametrize("level", [0.02, 0.3])
def test_covariance_is_recovered_beside_the_object(mask, level):
    mixing = correlated(6)
    estimate = estimate_covariance(scan(mixing, level=level), mask)
    assert estimate.source == "readout background"
    assert estimate.covariance.dtype == torch.complex128
    truth = level**2 * mixing @ mixing.mH
    expected = (len(truth) / estimate.samples) ** 0.5  # of a sample covariance
    assert whitened_error(estimate, truth) < 1.6 * expected
    assert estimate.relative_error == pytest.approx(estimate.samples**-0.5)
    average = (estimate.covariance.diagonal() / truth.diagonal()).real.mean()
    assert abs(float(average) - 1) < 4 * estimate.relative_error


def test_points_use_the_edges_of_kspace():
    mixing = correlated(6)
    estimate = estimate_covariance(scan(mixing, level=0.5), POINTS)
    assert estimate.source == "k-space edges"
    assert whitened_error(estimate, 0.25 * mixing @ mixing.mH) < 0.3


def test_a_mask_of_whole_lines_is_the_same_as_points_or_lines():
    kspace = scan(correlated(4), slices=1)
    by_lines, by_points = (estimate_covariance(kspace, mask) for mask in (LINES, LINES.expand(64, 64)))
    assert torch.equal(by_lines.covariance, by_points.covariance)


@pytest.mark.parametrize("mask", [LINES, POINTS], ids=["lines", "points"])
def test_whitened_noise_of_another_draw_has_unit_covariance(mask):
    mixing = correlated(6)
    estimate = estimate_covariance(scan(mixing, level=0.5, slices=8), mask)
    other = whiten(0.5 * noise(mixing, (64, 64), key="another"), whitening_matrix(estimate.covariance)).flatten(1)
    covariance = (other @ other.mH / other.shape[1]).to(torch.complex128)
    assert float(torch.linalg.matrix_norm(covariance - torch.eye(6))) / 6**0.5 < 0.2


@pytest.mark.parametrize("mask", [LINES, POINTS], ids=["lines", "points"])
def test_unacquired_samples_are_never_read(mask):
    kspace = scan(correlated(4))
    clean = estimate_covariance(kspace, mask)
    poisoned = estimate_covariance(torch.where(mask, kspace, torch.nan), mask)
    assert torch.equal(clean.covariance, poisoned.covariance)
    assert (clean.samples, clean.source) == (poisoned.samples, poisoned.source)


def test_a_readout_filter_at_the_edge_of_the_field_of_view_does_not_pull_the_estimate_down():
    mixing = correlated(4)
    kspace = scan(mixing, slices=8)
    rows = torch.ones(64)
    rows[:3], rows[-3:] = 0.05, 0.05
    filtered = fft1c(rows[:, None] * fft1c(kspace, -2).flip(-2).roll(1, -2), -2)  # the inverse, by a second transform
    estimate = estimate_covariance(filtered, FULL)
    ratio = (estimate.covariance.diagonal() / (0.05**2 * mixing @ mixing.mH).diagonal()).real.mean()
    assert 0.5 < float(ratio) < 1.1


def test_a_partial_echo_filled_with_zeros_counts_what_was_acquired():
    mixing = correlated(4)
    kspace = scan(mixing, slices=8)
    kspace[..., :16, :] = 0
    estimate = estimate_covariance(kspace, FULL)
    ratio = (estimate.covariance.diagonal() / (0.05**2 * mixing @ mixing.mH).diagonal()).real.mean()
    assert float(ratio) == pytest.approx(1, abs=0.15)


def test_lines_of_zeros_inside_the_mask_are_not_taken_for_noise():
    mixing = correlated(4)
    kspace = scan(mixing)
    kspace[..., :10] = 0
    truth = 0.05**2 * mixing @ mixing.mH
    estimate = estimate_covariance(kspace, FULL)
    assert whitened_error(estimate, truth) < 0.2


def test_few_samples_of_many_coils_are_positive_definite():
    mixing = correlated(16)
    kspace = phantom(16).kspace[None] + 0.05 * noise(mixing, (1, 64, 64))
    mask = masks.draw_mask("random", 64, acceleration=8, center_fraction=0.06, key=(1,))
    values = torch.linalg.eigvalsh(estimate_covariance(kspace, mask).covariance)
    assert float(values[0]) > 0
    estimate_covariance(kspace[..., :1, :], mask)


@pytest.mark.parametrize("mask", [FULL, LINES, POINTS], ids=["full", "lines", "points"])
def test_dead_coils_and_silent_scans_stay_finite(mask):
    kspace = scan(correlated(4))
    kspace[:, 2] = 0
    estimate = estimate_covariance(kspace, mask)
    whitening = whitening_matrix(estimate.covariance)
    assert bool(torch.isfinite(whitening.abs()).all())
    assert bool((whiten(kspace, whitening)[:, 2].abs() < 1e-3 * kspace.abs().max()).all())

    silent = torch.zeros(2, 4, 64, 64, dtype=torch.complex64)
    empty = estimate_covariance(silent, mask)
    assert torch.equal(empty.covariance, torch.eye(4, dtype=torch.complex128))
    assert (empty.samples, empty.source) == (0, "none, the scan is empty")
    assert empty.relative_error == float("inf")


@pytest.mark.parametrize("mask", [FULL, LINES], ids=["full", "lines"])
def test_noise_free_data_get_a_floor_far_below_the_signal(mask):
    kspace = phantom(6).kspace[None]
    estimate = estimate_covariance(kspace, mask)
    assert (estimate.samples, estimate.source) == (0, "floor, readout background holds no noise")
    peak = kspace.abs().max()
    assert bool((estimate.covariance.diagonal().real.sqrt() < 1e-4 * peak).all())
    whitened = whiten(kspace, whitening_matrix(estimate.covariance))
    assert bool(torch.isfinite(whitened.abs()).all())


def test_rows_filtered_to_zero_are_not_taken_for_noise():
    mixing = correlated(4)
    head = phantom(4)
    images = torch.fft.ifftshift(head.kspace + 0.05 * noise(mixing, (4, 64, 64)), dim=-2)
    rows = torch.fft.ifft(images, dim=-2)
    rows[..., 30:34, :] = 0  # the edge of the field of view: in this layout the centre of the axis is its ends
    kspace = torch.fft.fftshift(torch.fft.fft(rows, dim=-2), dim=-2)
    assert whitened_error(estimate_covariance(kspace, FULL), 0.05**2 * mixing @ mixing.mH) < 0.1


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_covariance_scales_with_the_data(factor):
    kspace = scan(correlated(4))
    first, scaled = estimate_covariance(kspace, LINES), estimate_covariance(kspace * factor, LINES)
    torch.testing.assert_close(scaled.covariance, first.covariance * factor**2, rtol=1e-4, atol=0)


def test_acquired_values_that_are_not_finite_are_refused():
    kspace = scan(correlated(4))
    kspace[:, :, :, 30:34] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        estimate_covariance(kspace, FULL)
    with pytest.raises(InputError, match="no sample was acquired"):
        estimate_covariance(kspace, ~FULL)


@pytest.mark.parametrize(
    ("kspace", "mask", "message"),
    [
        (torch.zeros(4, 64, 64, dtype=torch.complex64), FULL, "kspace"),
        (torch.zeros(1, 4, 64, 64), FULL, "kspace"),
        (torch.zeros(1, 4, 64, 64, dtype=torch.complex64), FULL[:5], "mask"),
        (torch.zeros(1, 4, 64, 64, dtype=torch.complex64), FULL.float(), "mask"),
    ],
)
def test_wrong_shapes_and_types_are_refused(kspace, mask, message):
    with pytest.raises(ValueError, match=message):
        estimate_covariance(kspace, mask)


def test_whitening_is_hermitian_and_follows_the_order_of_coils():
    covariance = (mixing := correlated(5)) @ mixing.mH
    whitening = whitening_matrix(covariance)
    torch.testing.assert_close(whitening, whitening.mH)
    torch.testing.assert_close(whitening @ covariance @ whitening.mH, torch.eye(5, dtype=torch.complex128))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(whitening_matrix(covariance[order][:, order]), whitening[order][:, order])


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.ones(2, 3), "coil, coil"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "Hermitian"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (torch.zeros(2, 2), "positive definite"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance, message):
    with pytest.raises(ValueError, match=message):
        whitening_matrix(covariance)
    with pytest.raises(ValueError, match="whitening"):
        whiten(torch.zeros(3, 4, 4, dtype=torch.complex64), torch.eye(2))


def test_estimates_of_slices_are_averaged_by_their_samples():
    one, two = torch.eye(2, dtype=torch.complex128), 4 * torch.eye(2, dtype=torch.complex128)
    combined = combine_estimates([NoiseEstimate(one, 100, "a"), NoiseEstimate(two, 300, "a")])
    torch.testing.assert_close(combined.covariance, 3.25 * one)
    assert combined.samples == 400
    small = NoiseEstimate(1e-13 * one, 100, "a")
    torch.testing.assert_close(combine_estimates([NoiseEstimate(one, 0, "none"), small]).covariance, 1e-13 * one)
    empty, floor = NoiseEstimate(one, 0, "none, the scan is empty"), NoiseEstimate(1e-10 * one, 0, "floor")
    assert torch.equal(combine_estimates([empty, empty]).covariance, one)
    assert torch.equal(combine_estimates([empty, floor]).covariance, 1e-10 * one)
    with pytest.raises(ValueError, match="at least one"):
        combine_estimates([])
