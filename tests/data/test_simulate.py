"""Simulated scans: the measurement model holds, the noise is what it says, heads look like heads, nothing is random."""

import csv
import hashlib

import h5py
import numpy as np
import pytest
from scipy import ndimage

from rsdmri.data import anatomy
from rsdmri.data.fastmri import read_scan
from rsdmri.data.simulate import CONTRASTS, simulate_scan
from rsdmri.data.simulate_files import write_simulated
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator


def fft2c(array):
    """Independent reference in complex128."""
    shifted = np.fft.ifftshift(array.astype(np.complex128), axes=(-2, -1))
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))


@pytest.mark.parametrize("size", [48, 57])
def test_noise_free_kspace_is_the_transform_of_maps_times_image(size):
    scan = simulate_scan(3, slices=2, size=size, coils=5, noise=0.0)
    expected = fft2c(scan.maps * scan.image[:, None])
    assert np.linalg.norm(scan.kspace - expected) < 1e-6 * np.linalg.norm(expected)


def test_noise_has_the_stated_covariance_and_level():
    noise = 0.05
    scan = simulate_scan(1, slices=4, size=64, coils=4, noise=noise)
    rest = scan.kspace - fft2c(scan.maps * scan.image[:, None])
    samples = np.moveaxis(rest, 1, 0).reshape(4, -1)
    n = samples.shape[1]
    measured = samples @ samples.conj().T / n
    level = np.trace(scan.noise_covariance).real / 4
    assert level == pytest.approx((noise * scan.scale) ** 2, rel=1e-6)
    whitening = np.linalg.inv(np.linalg.cholesky(scan.noise_covariance))
    white = whitening @ measured @ whitening.conj().T
    assert np.abs(white - np.eye(4)).max() < 5 / np.sqrt(n)  # five standard deviations of a sample covariance
    assert np.abs(np.mean(samples**2, axis=1)).max() < 10 * level / np.sqrt(n)  # circular
    off_diagonal = np.abs(scan.noise_covariance - np.diag(np.diag(scan.noise_covariance))).max()
    assert off_diagonal > 0.05 * level


def test_image_scale_is_the_99th_percentile_and_differs_between_scans():
    scans = [simulate_scan(subject, slices=2, size=32, coils=2) for subject in range(4)]
    for scan in scans:
        assert np.percentile(np.abs(scan.image), 99) == pytest.approx(scan.scale, rel=1e-4)
        assert 1e-6 <= scan.scale <= 1e-3
    assert len({scan.scale for scan in scans}) == 4


def test_target_is_the_rss_of_the_noisy_coil_images():
    scan = simulate_scan(2, slices=2, size=33, coils=3, noise=0.1)
    shifted = np.fft.ifftshift(scan.kspace.astype(np.complex128), axes=(-2, -1))
    images = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))
    np.testing.assert_allclose(scan.target, np.sqrt((np.abs(images) ** 2).sum(1)), rtol=1e-5)
    assert scan.target.dtype == np.float32


def test_maps_are_normalised_smooth_and_differ():
    scan = simulate_scan(5, slices=2, size=64, coils=6)
    np.testing.assert_allclose((np.abs(scan.maps) ** 2).sum(1), 1, atol=1e-5)
    inside = np.s_[:, :, 10:54, 10:54]
    assert np.abs(np.diff(scan.maps, axis=-1)[inside]).max() < 0.15
    assert np.abs(np.diff(scan.maps, axis=-2)[inside]).max() < 0.15
    flat = scan.maps.transpose(1, 0, 2, 3).reshape(6, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(flat @ flat.conj().T - np.eye(6)).max() < 0.9
    assert np.linalg.svd(flat, compute_uv=False)[-1] > 0.1


def test_object_phase_varies_smoothly():
    scan = simulate_scan(0, slices=1, size=64)
    bright = np.abs(scan.image[0]) > 0.2 * scan.scale
    step = np.angle(scan.image[0, :, 1:] * scan.image[0, :, :-1].conj())[bright[:, 1:] & bright[:, :-1]]
    assert np.abs(step).max() < 0.5
    assert np.std(np.angle(scan.image[0])[bright]) > 0.1


def test_heads_leave_background_on_every_side_and_stand_upright():
    widest, lengths = [], []
    for subject in range(12):
        scan = simulate_scan(subject, slices=3, size=64, coils=1, noise=0.0)
        head = (np.abs(scan.image) > 0.02 * scan.scale).any(0)
        rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
        for first, last in ((rows[0], rows[-1]), (columns[0], columns[-1])):
            assert first >= 2
            assert last <= 61
        assert 0.2 < head.mean() < 0.7
        lengths.append(len(rows) / len(columns))
        widths = head.sum(1)
        widest.append(np.average(np.arange(64), weights=widths.astype(float) ** 8) - rows.mean())
    assert min(lengths) > 1.0  # heads are longer from front to back than wide: rows are anterior-posterior
    assert np.mean(widest) > 0.5  # and wider behind the middle than before it: row 0 is anterior


def test_contrasts_order_the_tissues_as_scanners_do():
    means = {}
    for contrast in CONTRASTS:
        values = []
        for subject in range(6):
            key = ("simulate", 0, subject)
            head = anatomy.draw_head(numpy_generator(*key, "head"), slices=2, size=64)
            fractions = np.stack([rendered.fractions for rendered in head.slices], 1)
            fractions = fractions.reshape(*fractions.shape[:2], 64, 4, 64, 4).mean((3, 5))
            image = np.abs(simulate_scan(subject, slices=2, size=64, noise=0, contrast=contrast).image)
            values.append([image[fractions[tissue] > 0.9].mean() / image.max() for tissue in range(3)])
        means[contrast] = np.mean(values, 0)
    white, grey, fluid = means["T1w"]
    assert white > 1.1 * grey
    assert grey > 1.1 * fluid
    white, grey, fluid = means["T2w"]
    assert fluid > 1.2 * grey
    assert grey > 1.1 * white
    white, grey, _ = means["PDw"]
    assert grey > 1.05 * white
    white, grey, fluid = means["FLAIR"]
    assert grey > 1.05 * white
    assert fluid < 0.3 * white


def test_mixed_holds_each_contrast_once_in_four_subjects():
    for block in range(3):
        found = {simulate_scan(4 * block + i, slices=1, size=16, coils=1).contrast for i in range(4)}
        assert found == set(CONTRASTS)


def test_same_key_same_scan_other_key_other_scan():
    first, again = (simulate_scan(7, slices=2, size=32, coils=3, seed=1) for _ in range(2))
    assert np.array_equal(first.kspace, again.kspace)
    assert np.array_equal(first.maps, again.maps)
    for other in (simulate_scan(8, slices=2, size=32, coils=3, seed=1), simulate_scan(7, slices=2, size=32, coils=3)):
        a, b = (np.abs(scan.image) / scan.scale for scan in (first, other))
        assert np.linalg.norm(a - b) > 0.1 * np.linalg.norm(a)


def test_a_gradient_echo_turns_water_by_a_smooth_phase_and_fat_by_another_angle():
    how = {"slices": 2, "size": 128, "coils": 1, "noise": 0.0, "contrast": "T1w"}
    spin, gradient = (simulate_scan(1, echo=echo, **how) for echo in ("spin", "gradient"))
    unit = [scan.image / scan.scale for scan in (spin, gradient)]
    brain, tissue = np.abs(unit[0][:, 50:78, 50:78]), np.abs(unit[0]) > 0.05
    level = np.median(np.abs(unit[1][:, 50:78, 50:78]) / brain)  # of what 1 is
    np.testing.assert_allclose(np.abs(unit[1][:, 50:78, 50:78]), level * brain, rtol=1e-4)
    turn = np.angle(unit[1] / np.where(tissue, unit[0], 1)) * tissue
    assert np.ptp(np.unwrap(turn[0, 40:88, 64])) > 0.3
    steps = np.where(tissue[:, 1:] & tissue[:, :-1], np.abs(np.diff(np.exp(1j * turn), axis=1)), 0)
    assert steps[:, 50:77, 50:78].max() < 0.3 < 0.8 < steps.max()  # the brain's, and that to its rim of fat
    ring = np.abs(np.abs(unit[1]) - level * np.abs(unit[0])) > 0.05  # where water and fat share a pixel
    assert 0 < ring.mean() < 0.1


def test_mixed_echoes_are_of_both_kinds():
    alike = [
        np.array_equal(*(simulate_scan(i, slices=1, size=16, coils=1, echo=echo).image for echo in ("spin", "mixed")))
        for i in range(16)
    ]
    assert 4 <= sum(alike) <= 12


@pytest.mark.parametrize(("size", "columns"), [(32, 26), (33, 26)])
def test_a_narrow_field_of_view_is_the_middle_of_the_wide_one(size, columns):
    wide = simulate_scan(3, slices=2, size=size, coils=3, noise=0.0)
    narrow = simulate_scan(3, slices=2, size=size, coils=3, noise=0.0, phase_fov=0.8)
    assert narrow.kspace.shape == (2, 3, size, columns)
    left = size // 2 - columns // 2
    assert np.array_equal(narrow.image, wide.image[..., left : left + columns])
    assert np.array_equal(narrow.maps, wide.maps[..., left : left + columns])
    np.testing.assert_allclose(narrow.target, wide.target[..., left : left + columns], atol=1e-5 * wide.scale)
    scan = narrow.as_scan("narrow")
    assert (scan.mask.shape, scan.crop) == ((1, columns), (size, columns))


def test_a_smaller_margin_lets_heads_fill_more_of_the_field_of_view():
    def rows(scan):
        return (np.abs(scan.image).max((0, 2)) > 0.1 * scan.scale).sum()

    for subject in range(3):
        wide, tight = (simulate_scan(subject, slices=1, size=64, coils=1, margin=margin) for margin in (0.075, 0.0))
        assert wide.fov_mm * (1 - 2 * 0.11) < tight.fov_mm < 0.98 * wide.fov_mm
        assert rows(wide) < rows(tight)
        assert np.array_equal(wide.image, simulate_scan(subject, slices=1, size=64, coils=1).image)


def test_noise_does_not_change_the_anatomy():
    quiet, loud = (simulate_scan(7, slices=1, size=32, coils=2, noise=noise) for noise in (0.0, 0.3))
    assert np.array_equal(quiet.image, loud.image)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("slices", 0),
        ("size", 8),
        ("size", 4096),
        ("coils", 0),
        ("noise", -1.0),
        ("noise", np.nan),
        ("contrast", "CT"),
        ("echo", "stimulated"),
        ("phase_fov", 0.3),
        ("margin", -0.01),
        ("margin", 0.2),
    ],
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(InputError, match=f"--{setting.replace('_', '-')}"):
        simulate_scan(0, **{setting: value})


def test_atlas_sampling_is_trilinear():
    atlas = anatomy.load_atlas()
    points = numpy_generator("points").uniform(20, 150, (3, 9, 11)).astype(np.float32)
    sampled = anatomy._sample(atlas, points)
    for channel in range(4):
        expected = ndimage.map_coordinates(atlas[..., channel].astype(np.float64), points, order=1)
        np.testing.assert_allclose(sampled[channel], expected, atol=0.02)


def test_tissue_fractions_are_a_partition_of_the_head():
    head = anatomy.draw_head(numpy_generator("partition"), slices=3, size=32)
    for rendered in head.slices:
        total = rendered.fractions.sum(0)
        assert rendered.fractions.min() >= -1e-6
        assert total.max() <= 1 + 1e-5
        assert total[0].max() == 0
        assert total[len(total) // 2, len(total) // 2] == pytest.approx(1, abs=1e-5)
        assert rendered.detail.min() > 0.3
        assert rendered.detail.max() < 2
    assert np.all(np.diff(head.heights) > 0)


def test_smooth_field_has_zero_mean_unit_variance_and_does_not_depend_on_the_grid():
    t = np.linspace(0, 1, 50)
    fields = np.stack([anatomy.smooth_field(numpy_generator("field", i), (t, t), 6) for i in range(200)])
    assert abs(fields.mean()) < 0.05
    assert fields.var() == pytest.approx(1, rel=0.1)
    coarse = anatomy.smooth_field(numpy_generator("field", 0), (t[::7], t[3:4]), 6)
    np.testing.assert_allclose(coarse, fields[0][::7, 3:4], atol=1e-5)


def test_written_scans_read_back_and_are_split_by_subject(tmp_path):
    steps = []
    manifest = write_simulated(
        tmp_path / "set", scans=10, slices=2, size=16, coils=2, seed=3, progress=lambda done, total: steps.append(done)
    )
    with open(manifest, newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert steps == list(range(1, 11))
    assert [row["split"] for row in rows] == ["train"] * 8 + ["val", "test"]
    assert len({row["subject"] for row in rows}) == 10
    truth = simulate_scan(4, slices=2, size=16, coils=2, seed=3)
    path = manifest.parent / rows[4]["path"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == rows[4]["sha256"]
    scan = read_scan(path)
    assert np.array_equal(scan.kspace, truth.kspace)
    assert np.array_equal(scan.target, truth.target)
    assert scan.header is not None
    assert scan.header.fov_mm[0] == pytest.approx(truth.fov_mm, rel=1e-5)
    assert scan.warnings == ()
    assert rows[4]["contrast"] == truth.contrast
    with h5py.File(path) as file:
        assert file.attrs["max"] == truth.target.max()
        assert {"acquisition", "norm", "patient_id", "note"} <= set(file.attrs)


def test_three_scans_are_enough_for_all_splits_and_two_are_all_for_training(tmp_path):
    for scans, expected in ((3, ["train", "val", "test"]), (2, ["train", "train"])):
        manifest = write_simulated(tmp_path / str(scans), scans=scans, slices=1, size=16, coils=1)
        with open(manifest, newline="") as handle:
            assert [row["split"] for row in csv.DictReader(handle, delimiter="\t")] == expected


def test_an_interrupted_set_goes_on_and_other_settings_start_anew(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    settings = {"scans": 3, "slices": 1, "size": 16, "coils": 2}
    with pytest.raises(KeyboardInterrupt):
        write_simulated(tmp_path, progress=stop, **settings)
    assert not (tmp_path / "manifest.tsv").exists()
    kept = (tmp_path / "sim00000.h5").stat().st_mtime_ns
    (tmp_path / "sim00001.h5").write_bytes(b"half a file")
    first = write_simulated(tmp_path, **settings).read_bytes()
    assert (tmp_path / "sim00000.h5").stat().st_mtime_ns == kept
    whole = write_simulated(tmp_path / "at-once", **settings).read_bytes()
    assert first == whole
    assert write_simulated(tmp_path, **settings, seed=1).read_bytes() != first
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_that_cannot_be_written_and_a_bad_count_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_simulated(tmp_path / "file" / "below", scans=1)
    with pytest.raises(InputError, match="--scans"):
        write_simulated(tmp_path, scans=0)


def test_as_a_scan_it_is_fully_sampled_and_scored_against_the_noise_free_image():
    made = simulate_scan(4, slices=2, size=32, coils=3, noise=0.05)
    scan = made.as_scan("head")
    assert np.array_equal(scan.kspace, made.kspace)
    assert np.array_equal(scan.target, np.abs(made.image))
    assert scan.mask.all()
    assert (scan.maps, scan.noise_cov, scan.prospective) == (None, None, False)
