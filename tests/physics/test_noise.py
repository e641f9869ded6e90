import pytest
import torch
from phantoms import correlated, noise, phantom

from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.fourier import fft1c
from rsdmri.physics.noise import (
    NoiseEstimate,
    combine_estimates,
    covariance_from_edges,
    covariance_from_noise_scan,
    estimate_covariance,
    noise_level,
    whiten,
    whitening_matrix,
)
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


def test_noise_alone_stays_below_its_limit():
    mixing = correlated(6)
    estimate = NoiseEstimate(mixing @ mixing.mH, 1000, "known")
    power = noise(mixing, (4, 64, 64), key=3).abs().square().sum(1)
    above = float((power > estimate.rss_limit**2).double().mean())
    assert 1e-4 < above < 0.02
    assert estimate.rss_limit**2 == pytest.approx(float(power.mean() + 3 * power.std()), rel=0.03)


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


@pytest.mark.parametrize("mask", [FULL, LINES], ids=["full", "lines"])
def test_choosing_rows_does_not_bias_the_level(mask):
    """Mean of 16 scans with much noise, where rows were once chosen by the samples that are then used (2 % high)."""
    truth = 0.5 * float((correlated(6) @ correlated(6).mH).diagonal().real.mean()) ** 0.5
    estimates = [estimate_covariance(scan(correlated(6), slices=1, level=0.5, seed=k), mask) for k in range(16)]
    ratios = torch.tensor([estimate.sigma / truth for estimate in estimates])
    assert abs(float(ratios.mean()) - 1) < 0.006 + 3 * estimates[0].sigma_error / 4
    assert float(ratios.std()) == pytest.approx(estimates[0].sigma_error, rel=0.5)


def test_interval_of_the_standard_deviation_holds_the_truth_19_times_in_20():
    mixing = correlated(4)
    truth = float((mixing @ mixing.mH).diagonal().real.mean()) ** 0.5
    estimates = [covariance_from_noise_scan(noise(mixing, (10, 20), key=("interval", k))) for k in range(300)]
    hits = sum(low <= truth <= high for low, high in (estimate.interval for estimate in estimates))
    assert 270 < hits < 299  # 285 ± 4
    spread = torch.tensor([estimate.sigma for estimate in estimates]).std() / truth
    assert float(spread) == pytest.approx(estimates[0].sigma_error, rel=0.15)


def test_degrees_of_freedom_are_those_of_independent_and_of_identical_coils():
    assert NoiseEstimate(torch.eye(8), 100, "a").degrees_of_freedom == pytest.approx(1600)
    assert NoiseEstimate(torch.ones(8, 8), 100, "a").degrees_of_freedom == pytest.approx(200)
    floor = NoiseEstimate(torch.eye(2), 0, "floor")
    assert (floor.interval, floor.sigma_error) == ((0, float("inf")), float("inf"))


def test_one_line_says_level_interval_source_and_doubt():
    text = str(estimate_covariance(scan(correlated(6)), FULL))
    assert "\n" not in text
    assert "from readout background" in text
    assert "95 %" in text
    assert "may hold signal" not in text
    assert str(NoiseEstimate(torch.eye(2), 0, "given with the scan")) == (
        "noise 1 per sample and coil, from given with the scan"
    )


def test_bright_edges_of_kspace_are_said_to_hold_signal():
    bright, faint = (covariance_from_edges(scan(correlated(6), level=level), FULL) for level in (0.01, 1.0))
    assert bright.suspicious
    assert "may hold signal" in str(bright)
    assert not faint.suspicious
    assert bright.sigma > 1.3 * 0.01 * float((correlated(6) @ correlated(6).mH).diagonal().real.mean()) ** 0.5


def test_a_noise_scan_gives_its_covariance():
    mixing = correlated(6)
    samples = noise(mixing, (128, 64))
    estimate = covariance_from_noise_scan(samples)
    assert (estimate.source, estimate.samples) == ("noise scan", 8192)
    assert whitened_error(estimate, mixing @ mixing.mH) < 1.6 * (6 / 8192) ** 0.5
    flat = samples.flatten(1).to(torch.complex128)
    torch.testing.assert_close(estimate.covariance, flat @ flat.mH / 8192)
    torch.testing.assert_close(covariance_from_noise_scan(samples.flatten(1)).covariance, estimate.covariance)
    batch = samples.view(6, 2, 64, 64).movedim(1, 0)
    torch.testing.assert_close(covariance_from_noise_scan(batch).covariance, estimate.covariance)
    assert not estimate.suspicious
    padded = torch.cat([samples, torch.zeros(6, 32, 64)], dim=1)
    torch.testing.assert_close(covariance_from_noise_scan(padded).covariance, estimate.covariance)


def test_dwell_times_and_receiver_bandwidth_scale_a_noise_scan():
    """White noise of unit density seen by a filter that passes 0.79 of the band, at twice the bandwidth of the scan."""
    samples = noise(correlated(2), (100, 100))
    plain = covariance_from_noise_scan(samples)
    scaled = covariance_from_noise_scan(samples, noise_dwell=5.0, data_dwell=10.0, bandwidth_ratio=0.79)
    torch.testing.assert_close(scaled.covariance, plain.covariance * 0.5 / 0.79)
    ismrmrd_factor = (10.0 / 5.0) * 0.79  # of the whitening matrix, squared
    torch.testing.assert_close(
        whitening_matrix(scaled.covariance), whitening_matrix(plain.covariance) * ismrmrd_factor**0.5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_dwell": 5.0}, "both or none"),
        ({"noise_dwell": 5.0, "data_dwell": 0.0}, "data_dwell 0"),
        ({"bandwidth_ratio": -1.0}, "bandwidth_ratio -1"),
        ({"bandwidth_ratio": float("nan")}, "bandwidth_ratio nan"),
    ],
)
def test_settings_of_a_noise_scan_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        covariance_from_noise_scan(noise(correlated(2), (10, 10)), **settings)


def test_a_noise_scan_with_signal_bursts_or_drift_is_suspicious():
    samples = noise(correlated(6), (64, 64))
    drifting = samples * torch.linspace(0.8, 1.2, 64)[:, None]
    for wrong in (phantom(6).kspace + 0.05 * samples, drifting):
        assert covariance_from_noise_scan(wrong).suspicious
    bursts = samples.clone()
    bursts[:, 10] *= 5
    assert covariance_from_noise_scan(bursts).suspicious


def test_a_noise_scan_that_cannot_do_is_refused():
    samples = noise(correlated(6), (64, 64)).flatten(1)
    with pytest.raises(InputError, match=r"5 samples of 6 coils.*rank 5 of 6.*longer noise scan"):
        covariance_from_noise_scan(samples[:, :5])
    with pytest.raises(InputError, match="0 samples of 6 coils"):
        covariance_from_noise_scan(torch.zeros_like(samples))
    with pytest.raises(InputError, match="NaN"):
        covariance_from_noise_scan(samples * torch.nan)
    for wrong in (samples.real, samples[0]):
        with pytest.raises(ValueError, match="samples: expected complex"):
            covariance_from_noise_scan(wrong)


def test_a_singular_covariance_names_the_coils_and_the_cure():
    samples = noise(correlated(6), (64, 64)).flatten(1)
    twins = samples.clone()
    twins[5] = 2j * samples[3]
    silent = samples.clone()
    silent[2] = 0
    mixed = samples.clone()
    mixed[4] = samples[0] + samples[1]
    for factor in (1e-6, 1, 1e6):
        for wrong, message in (
            (twins, "rank 5 of 6 coils .*identical up to a factor: coils 3 and 5.*drop those coils or compress"),
            (silent, "rank 5 of 6 coils .*silent: coil 2.*longer noise scan"),
            (mixed, "rank 5 of 6 coils .*mixtures of others.*shrink"),
        ):
            with pytest.raises(InputError, match=message):
                whitening_matrix(covariance_from_noise_scan(factor * wrong).covariance)
    gains = torch.logspace(-4, 4, 6)[:, None]
    whitening_matrix(covariance_from_noise_scan(gains * samples).covariance)  # unequal gains are not singular
    with pytest.raises(InputError, match="NaN or infinite"):
        whitening_matrix(torch.eye(3) * torch.nan)


@pytest.mark.parametrize("mask", [FULL, LINES, POINTS], ids=["full", "lines", "points"])
def test_noise_level_after_whitening_is_one(mask):
    mixing = correlated(6)
    scans = noise(mixing, (64, 64), key="prescan")
    whitening = whitening_matrix(covariance_from_noise_scan(scans).covariance)
    levels = [noise_level(whiten(scan(mixing, level=1.0, slices=1, seed=k), whitening), mask) for k in range(8)]
    mean = sum(level.level for level in levels) / 8
    assert mean == pytest.approx(1, abs=0.006 + 3 * levels[0].error / 8**0.5)
    assert all(level.fits for level in levels)
    assert "as expected" in str(levels[0])


def test_a_wrong_noise_scan_is_caught():
    mixing = correlated(6)
    samples = noise(mixing, (64, 64), key="prescan")
    kspace = scan(mixing, level=1.0)
    order = [1, 0, 2, 5, 4, 3]
    for wrong in (2 * samples, 0.9 * samples, samples[order] * torch.linspace(0.5, 2, 6)[:, None, None]):
        level = noise_level(whiten(kspace, whitening_matrix(covariance_from_noise_scan(wrong).covariance)), FULL)
        assert not level.fits
        assert "does not belong to this scan" in str(level)
    white = whiten(kspace, torch.eye(6))
    assert noise_level(2 * white, FULL).level == pytest.approx(2 * noise_level(white, FULL).level)


def test_noise_level_hardly_feels_spikes():
    kspace = noise(torch.eye(4, dtype=torch.complex128), (2, 64, 64))
    clean = noise_level(kspace, POINTS).level
    spikes = torch.rand(64, 64, generator=torch_generator("spikes")) < 0.02
    spiked = noise_level(torch.where(spikes, 100, kspace), POINTS).level
    assert spiked == pytest.approx(clean, rel=0.03)
    with pytest.raises(InputError, match="no noise"):
        noise_level(torch.zeros_like(kspace), POINTS)
