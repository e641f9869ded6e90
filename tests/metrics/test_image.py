"""fastMRI's numbers: against its formulas written out by hand, scikit-image directly, and closed forms."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from rsdmri.errors import InputError
from rsdmri.metrics.image import complex_nrmse, evaluate_volume, nmse, nrmse, psnr, ssim
from rsdmri.runtime import numpy_generator


def volumes(shape=(3, 40, 36), dtype=np.float32, scale=1.0):
    rng = numpy_generator("image-metrics", shape)
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = np.exp(-3 * (x**2 + y**2))[None] * np.linspace(0.4, 1, shape[0])[:, None, None]
    target = body + 0.05 * rng.random(shape)
    return (scale * target).astype(dtype), (scale * (target + 0.05 * rng.standard_normal(shape))).astype(dtype)


def windowed_ssim(t, r, peak):
    """SSIM of one slice, window by window, in float64: Wang et al. 2004 with a 7x7 uniform window."""
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = []
    for i in range(t.shape[0] - 6):
        for j in range(t.shape[1] - 6):
            a, b = t[i : i + 7, j : j + 7].ravel(), r[i : i + 7, j : j + 7].ravel()
            cov = np.cov(a, b)
            numerator = (2 * a.mean() * b.mean() + c1) * (2 * cov[0, 1] + c2)
            values.append(numerator / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return np.mean(values)


def reference(target, reconstruction):
    """fastMRI's evaluate.py in float64, written from its paper."""
    side = target.shape[-1]

    def crop(v):
        top, left = (v.shape[-2] - side) // 2, (v.shape[-1] - side) // 2
        return v[:, top : top + side, left : left + side].astype(np.float64)

    t, r = crop(target), crop(reconstruction)
    error = ((t - r) ** 2).sum()
    return {
        "nmse": error / (t**2).sum(),
        "nrmse": np.sqrt(error / (t**2).sum()),
        "psnr": 20 * np.log10(t.max()) - 10 * np.log10(error / t.size),
        "ssim": np.mean([windowed_ssim(a, b, t.max()) for a, b in zip(t, r, strict=True)]),
    }


@pytest.mark.parametrize("shape", [(3, 40, 36), (1, 33, 31), (2, 41, 40)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_formulas_written_out(shape, dtype):
    target, reconstruction = volumes(shape, dtype)
    expected = reference(target, reconstruction)
    got = evaluate_volume(target, reconstruction)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6, rel=1e-6), name


def test_equals_scikit_image_bit_for_bit():
    target, reconstruction = volumes()
    peak = target.max()
    slices = [structural_similarity(a, b, data_range=peak) for a, b in zip(target, reconstruction, strict=True)]
    assert ssim(target, reconstruction) == float(sum(slices) / len(slices))
    assert psnr(target, reconstruction) == pytest.approx(
        peak_signal_noise_ratio(target, reconstruction, data_range=peak), rel=1e-7
    )
    assert nmse(target, reconstruction) == float(
        np.linalg.norm(target - reconstruction) ** 2 / np.linalg.norm(target) ** 2
    )


def test_data_range_is_of_the_volume_not_of_the_slice():
    target, reconstruction = volumes()
    per_slice = np.mean(
        [structural_similarity(a, b, data_range=a.max()) for a, b in zip(target, reconstruction, strict=True)]
    )
    assert abs(ssim(target, reconstruction) - per_slice) > 1e-3
    assert psnr(target, reconstruction, data_range=2 * float(target.max())) == pytest.approx(
        psnr(target, reconstruction) + 20 * np.log10(2), abs=1e-5
    )


def test_closed_forms():
    target, _ = volumes(dtype=np.float64)
    assert nmse(target, 0 * target) == pytest.approx(1)
    assert nmse(target, 0.9 * target) == pytest.approx(0.01)
    assert nrmse(target, 1.25 * target) == pytest.approx(0.25)
    assert psnr(target, target + 0.1 * target.max()) == pytest.approx(20)
    assert ssim(target, target) == pytest.approx(1, abs=1e-12)
    assert psnr(target, target) == float("inf")


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e20])
def test_a_common_scale_changes_nothing(scale):
    plain = evaluate_volume(*volumes())
    scaled = evaluate_volume(*volumes(scale=scale))
    for name, value in plain.items():
        assert scaled[name] == pytest.approx(value, rel=1e-5), name


def test_both_are_cropped_to_the_width_of_the_target():
    target, reconstruction = volumes((2, 36, 36))
    rim = np.full((2, 50, 46), 7, dtype=np.float32)
    wide = rim.copy()
    wide[:, 7:43, 5:41] = reconstruction
    tall = rim[:, :, :36].copy()
    tall[:, 7:43] = target
    assert evaluate_volume(tall, wide) == evaluate_volume(target, reconstruction)


def test_target_flatter_than_wide_keeps_its_height():
    target, reconstruction = volumes((2, 30, 36))
    got = evaluate_volume(target, reconstruction)
    assert got["nmse"] == nmse(target, reconstruction)
    assert got["ssim"] == ssim(target, reconstruction)


def test_integer_magnitudes_do_not_wrap():
    target = np.full((1, 8, 8), 10, dtype=np.uint8)
    assert nmse(target, target + np.uint8(1)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("target", "reconstruction", "message"),
    [
        (np.ones((8, 8)), np.ones((8, 8)), "expected a volume"),
        (np.ones((1, 8, 8)), np.ones((2, 8, 8)), "2 slices"),
        (np.ones((1, 8, 8)), np.ones((1, 6, 8)), "do not cover the 8x8 crop"),
        (np.ones((1, 8, 8)), np.full((1, 8, 8), np.nan), "64 values are NaN"),
        (np.ones((1, 8, 8)), np.ones((1, 8, 8), dtype=complex), "take the magnitude"),
        (np.zeros((1, 8, 8)), np.ones((1, 8, 8)), "zero everywhere"),
        (-np.ones((1, 8, 8)), np.ones((1, 8, 8)), "not positive"),
        (np.ones((0, 8, 8)), np.ones((0, 8, 8)), "empty volume"),
        (np.ones((1, 6, 6)), np.ones((1, 6, 6)), "7x7 window"),
    ],
)
def test_what_cannot_be_scored_is_refused(target, reconstruction, message):
    with pytest.raises(InputError, match=message):
        evaluate_volume(target, reconstruction)


def test_functions_refuse_unequal_shapes():
    with pytest.raises(InputError, match="differs from the target's"):
        nmse(np.ones((1, 8, 8)), np.ones((1, 8, 9)))


def test_complex_error_leaves_one_phase_of_each_slice_open():
    rng = numpy_generator("complex")
    target = rng.standard_normal((2, 5, 6)) + 1j * rng.standard_normal((2, 5, 6))
    turned = target * np.exp(1j * np.array([0.4, -2.5]))[:, None, None]
    assert complex_nrmse(target, turned) == pytest.approx(0, abs=1e-12)
    assert complex_nrmse(target, 1.25 * turned) == pytest.approx(0.25)
    other = target + 0.3 * (rng.standard_normal((2, 5, 6)) + 1j * rng.standard_normal((2, 5, 6)))
    phases = np.linspace(0, 2 * np.pi, 20001)
    least = [
        min(np.linalg.norm(t) ** 2 + np.linalg.norm(r) ** 2 - 2 * np.real(np.exp(-1j * phases) * np.vdot(r, t)))
        for t, r in zip(target, other, strict=True)
    ]
    assert complex_nrmse(target, other) == pytest.approx(np.sqrt(sum(least)) / np.linalg.norm(target), rel=1e-6)
    with pytest.raises(InputError, match="expected complex"):
        complex_nrmse(target, np.abs(target))
    with pytest.raises(InputError, match="zero everywhere"):
        complex_nrmse(0 * target, target)
