"""ISMRMRD files of known content come back as the exact k-space grid, and no others come back at all."""

import numpy as np
import pytest
from mrd_files import AXES, header, line, lines, write

from rsdmri.data import ismrmrd as reader
from rsdmri.data.ismrmrd import read_ismrmrd, write_ismrmrd
from rsdmri.data.scan import Geometry, Header, Scan
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

COILS = 3


def draw(*shape, key="ismrmrd"):
    generator = numpy_generator(key, *shape)
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)


def image_of(kspace, axes=(-2, -1)):
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)


def kspace_of(image, axes=(-2, -1)):
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(image, axes), axes=axes, norm="ortho"), axes).astype("c8")


@pytest.mark.parametrize(("y", "x"), [(16, 12), (15, 11)])
def test_slices_out_of_order_and_interleaved(tmp_path, y, x):
    kspace = draw(4, COILS, y, x)
    readouts = [one for index in (2, 0, 3, 1) for one in lines(kspace[index], slice=index)]
    order = numpy_generator("order", y).permutation(len(readouts))
    path = write(tmp_path / "a.h5", header((y, x, 1)), [readouts[i] for i in order])
    scan = read_ismrmrd(path)
    np.testing.assert_array_equal(scan.kspace, kspace)
    assert scan.mask.shape == (1, x)
    assert scan.mask.all()
    assert not scan.absent.any()
    assert not scan.prospective
    assert scan.crop == (y, x)
    assert scan.header == Header((y, x, 1), (y, x, 1), (2.0 * y, 3.0 * x, 4.0), (0, x))
    assert scan.warnings == ("where the slices lie is not known: the readouts have no directions",)
    np.testing.assert_array_equal(read_ismrmrd(path, slices=slice(1, 3)).kspace, kspace[1:3])


def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch):
    kspace = draw(2, COILS, 16, 12)
    readouts = [one for index in range(2) for one in lines(kspace[index], slice=index)]
    readouts.insert(5, line(draw(COILS, 16), flags=["IS_DUMMYSCAN_DATA"]))  # a hole in the run of imaging lines
    path = write(tmp_path / "a.h5", header((16, 12, 1)), readouts)
    for size in (1, 3 * 8 * COILS * 16, 1 << 20):
        monkeypatch.setattr(reader, "_BLOCK_BYTES", size)
        np.testing.assert_array_equal(read_ismrmrd(path).kspace, kspace)


def test_memory_does_not_grow_with_every_read(tmp_path):
    """HDF5 leaks samples that a read of the heads alone does not ask for: the file's size at every read."""
    resource = pytest.importorskip("resource", reason="measures memory")
    kspace = np.ones((COILS, 512, 256), np.complex64)
    path = write(tmp_path / "a.h5", header((512, 256, 1)), lines(kspace))
    assert path.stat().st_size > 3_000_000
    peak = []
    for _ in range(12):
        read_ismrmrd(path)
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert peak[-1] - peak[3] < 8  # MB in eight reads; 25 leaked


def test_readouts_that_are_no_imaging_are_left_out_by_name(tmp_path):
    kspace = draw(COILS, 16, 12)
    junk = draw(COILS, 16, key="junk")
    readouts = [
        *[line(junk, 3, flags=["IS_NAVIGATION_DATA"])] * 2,
        *[line(junk, 4, flags=["IS_DUMMYSCAN_DATA"])] * 3,
        line(junk, 5, flags=["IS_PHASECORR_DATA", "IS_REVERSE"]),
        line(junk, 5, flags=["IS_RTFEEDBACK_DATA"]),
        line(junk, 5, flags=["IS_HPFEEDBACK_DATA"]),
        line(junk, 6, flags=["IS_SURFACECOILCORRECTIONSCAN_DATA"]),
        line(junk, 6, flags=["IS_PHASE_STABILIZATION"]),
        line(junk, 6, flags=["IS_PHASE_STABILIZATION_REFERENCE"]),
        *[line(junk[:, :8], 6, flags=["IS_PARALLEL_CALIBRATION"])] * 4,
        line(junk[:, :5], 7, encoding_space_ref=1),
        *lines(kspace, range(6)),
        *lines(kspace, range(6, 8), flags=["IS_PARALLEL_CALIBRATION_AND_IMAGING"]),
        *lines(kspace, range(8, 12), flags=["IS_PARALLEL_CALIBRATION", "IS_PARALLEL_CALIBRATION_AND_IMAGING"]),
    ]
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), readouts))
    np.testing.assert_array_equal(scan.kspace[0], kspace)
    assert scan.warnings[0] == (
        "readouts left out, by their flags: 3 dummy, 2 navigator, 1 phase-correction, 1 HP feedback, 1 RT feedback, "
        "1 surface-coil-correction, 1 phase-stabilisation reference, 1 phase-stabilisation, 4 calibration-only, "
        "1 other encoding spaces'"
    )


def coloured(count, key):
    """Noise (coil, count) and its covariance."""
    root = draw(COILS, COILS, key="root").astype(complex)
    return root @ draw(COILS, count, key=key) / np.sqrt(2), root @ root.conj().T


@pytest.mark.parametrize(("dwell", "bandwidth"), [((5.0, 5.0), None), ((2.5, 10.0), 0.8)])
def test_noise_becomes_the_covariance_of_a_sample(tmp_path, dwell, bandwidth):
    count = 64 * 256
    noise, covariance = coloured(count, "noise")
    factor = dwell[0] / dwell[1] / (bandwidth or 1.0)
    name = "relativeReceiverNoiseBandwidth"
    system = f"<{name}>{bandwidth}</{name}>" if bandwidth else ""
    readouts = [
        line(part, flags=["IS_NOISE_MEASUREMENT"], sample_time_us=dwell[0]) for part in np.split(noise, 64, axis=1)
    ]
    data = np.sqrt(factor) * coloured(24 * 32, "imaging")[0].reshape(COILS, 24, 32)
    readouts += lines(data, sample_time_us=dwell[1])
    before = f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((24, 32, 1), before=before), readouts))
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)).real / count)
    assert (np.abs(scan.noise_cov / factor - covariance) < 4 * spread).all()
    root = np.linalg.inv(np.linalg.cholesky(scan.noise_cov))
    white = root @ scan.kspace[0].reshape(COILS, -1)
    assert np.abs(white @ white.conj().T / white.shape[1] - np.eye(COILS)).max() < 4 / np.sqrt(24 * 32)


def test_noise_of_other_coils_or_unknown_dwell_is_told(tmp_path):
    kspace = draw(COILS, 16, 12)
    few = line(draw(2, 64), flags=["IS_NOISE_MEASUREMENT"])
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), [few, *lines(kspace)]))
    assert scan.noise_cov is None
    assert scan.warnings[0] == "noise measurement of other coils than the scan's 3; ignored"
    known = line(draw(COILS, 64), flags=["IS_NOISE_MEASUREMENT"], sample_time_us=5.0)
    scan = read_ismrmrd(write(tmp_path / "b.h5", header((16, 12, 1)), [known, *lines(kspace)]))
    assert "dwell times are not known" in scan.warnings[0]
    assert scan.noise_cov.shape == (COILS, COILS)


@pytest.mark.parametrize(("measured", "kept"), [(32, 16), (30, 15), (31, 16), (32, 15)])
def test_oversampling_is_cut_off_in_image_space(tmp_path, measured, kept):
    image = draw(COILS, measured, 12)
    path = write(tmp_path / "a.h5", header((measured, 12, 1), (kept, 12, 1)), lines(kspace_of(image)))
    scan = read_ismrmrd(path)
    first = measured // 2 - kept // 2
    np.testing.assert_allclose(image_of(scan.kspace[0]), image[:, first : first + kept], atol=2e-5)
    assert scan.crop == (kept, 12)
    assert scan.header.encoded == (kept, 12, 1)
    assert any("no whole oversampling" in words for words in scan.warnings) == (measured % kept != 0)
    whole = read_ismrmrd(path, keep_oversampling=True)
    np.testing.assert_array_equal(whole.kspace[0], kspace_of(image))
    assert whole.crop == (kept, 12)


def test_an_interpolated_matrix_is_not_followed(tmp_path):
    kspace = draw(COILS, 32, 12)
    text = header((32, 12, 1), (64, 24, 1), (32.0, 36.0, 4.0), encoded_fov=(64.0, 36.0, 4.0))
    scan = read_ismrmrd(write(tmp_path / "a.h5", text, lines(kspace)))
    assert scan.kspace.shape == (1, COILS, 16, 12)
    assert scan.header.recon == (16, 12, 1)
    assert scan.header.fov_mm == (32.0, 36.0, 4.0)
    assert [w for w in scan.warnings if "using 16" in w]
    assert [w for w in scan.warnings if "using 12" in w]


@pytest.mark.parametrize(("low", "high"), [(4, 16), (0, 12), (3, 15)])
@pytest.mark.parametrize("with_limits", [True, False])
def test_partial_fourier_keeps_the_centre(tmp_path, low, high, with_limits):
    kspace = draw(COILS, 8, 16)
    kspace[..., :low] = kspace[..., high:] = 0
    text = header((8, 16, 1), center=8 - low, maximum=high - low - 1)
    offset = low if with_limits else 0
    if not with_limits:
        start, end = text.index("<kspace_encoding_step_1>"), text.index("</encodingLimits>")
        text = text[:start] + text[end:]
    scan = read_ismrmrd(write(tmp_path / "a.h5", text, lines(kspace, range(low, high), offset)))
    np.testing.assert_array_equal(scan.kspace[0], kspace)
    expected = (np.arange(16) >= low) & (np.arange(16) < high)
    np.testing.assert_array_equal(scan.mask[0], expected)
    np.testing.assert_array_equal(scan.absent, ~expected)
    assert not scan.prospective
    assert scan.header.padding == (low, high)


@pytest.mark.parametrize("discard", [0, 2])
def test_asymmetric_echo(tmp_path, discard):
    kspace = draw(COILS, 16, 12)
    kspace[:, :5] = 0
    junk = draw(COILS, discard, 12, key="junk")
    echo = np.concatenate([junk, kspace[:, 5:], junk], axis=1)
    readouts = lines(echo, center=3 + discard, discard_pre=discard, discard_post=discard)
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), readouts))
    np.testing.assert_array_equal(scan.kspace[0], kspace)
    np.testing.assert_array_equal(scan.mask, np.repeat(np.arange(16)[:, None] >= 5, 12, axis=1))
    assert scan.prospective
    assert "asymmetric echo: 11 of 16 readout samples acquired" in scan.warnings


@pytest.mark.parametrize(("measured", "kept", "first"), [(32, 16, 10), (30, 15, 11)])
def test_asymmetric_echo_with_oversampling(tmp_path, measured, kept, first):
    edge = measured // 2 - kept // 2
    image = np.zeros((COILS, measured, 12), complex)
    image[:, edge + 4 : edge + kept - 4] = draw(COILS, kept - 8, 12)
    kspace = kspace_of(image)
    text = header((measured, 12, 1), (kept, 12, 1))
    path = write(tmp_path / "a.h5", text, lines(kspace[:, first:], center=measured // 2 - first))
    scan = read_ismrmrd(path)
    np.testing.assert_array_equal(scan.mask[:, 0], np.arange(kept) >= 5)  # 2 i (+ 1) >= first
    full = kspace_of(image[:, edge : edge + kept])
    error = np.abs(scan.kspace[0] - full)[:, 8:]  # away from the end, where the cut echo rings
    assert error.mean() < 0.2 * np.abs(full[:, 8:]).mean()
    assert (scan.kspace[0][:, :5] == 0).all()


def test_averages_are_weighted_by_how_often_a_line_was_measured(tmp_path):
    parts = draw(4, COILS, 16, 12)
    readouts = [one for index in range(2) for one in lines(parts[index], average=index)]
    readouts += [one for index in (2, 3) for one in lines(parts[index], range(4, 8), average=index)]
    noise, covariance = coloured(4096, "noise")
    readouts.append(line(noise, flags=["IS_NOISE_MEASUREMENT"], sample_time_us=4.0))
    for one in readouts:
        one.sample_time_us = 4.0
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), readouts))
    expected = parts[:2].mean(0)
    expected[..., 4:8] = parts[..., 4:8].mean(0)
    np.testing.assert_allclose(scan.kspace[0], expected, atol=1e-6)
    share = (8 / 2 + 4 / 4) / 12
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)).real / noise.shape[1])
    assert (np.abs(scan.noise_cov / share - covariance) < 4 * spread).all()
    assert any("averaged 2 to 4 times" in words for words in scan.warnings)


@pytest.mark.parametrize("name", ["contrast", "repetition", "set", "phase"])
def test_one_of_several_is_chosen_and_the_others_are_named(tmp_path, name):
    kspace = draw(3, COILS, 16, 12)
    readouts = [one for index in range(3) for one in lines(kspace[index], **{name: index})]
    path = write(tmp_path / "a.h5", header((16, 12, 1)), readouts)
    for index in range(3):
        scan = read_ismrmrd(path, **{name: index})
        np.testing.assert_array_equal(scan.kspace[0], kspace[index])
        assert scan.warnings[0] == f"{name} {index} read, of 0, 1, 2; choose another with {name}="
    with pytest.raises(InputError, match=f"no {name} 3; it holds 0, 1, 2"):
        read_ismrmrd(path, **{name: 3})


def test_skipped_lines_are_what_was_not_acquired(tmp_path):
    kspace = draw(2, COILS, 16, 24)
    columns = sorted({*range(1, 24, 2), *range(9, 15)})
    readouts = []
    for index in range(2):
        for column in columns:
            flags = ["IS_PARALLEL_CALIBRATION_AND_IMAGING"] if 9 <= column < 15 else []
            readouts.append(line(kspace[index][:, :, column], column, flags=flags, slice=index))
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 24, 1)), readouts))
    assert np.flatnonzero(scan.mask[0]).tolist() == columns
    assert scan.prospective
    assert not scan.absent.any()
    np.testing.assert_array_equal(scan.kspace, np.where(scan.mask, kspace, 0))


def test_lines_stored_as_zeros_were_not_acquired(tmp_path):
    kspace = draw(COILS, 16, 12)
    kspace[..., 1::2] = 0
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), lines(kspace)))
    assert scan.mask[0].tolist() == [True, False] * 6
    assert scan.prospective


def test_an_interrupted_slice_is_left_out_by_name(tmp_path):
    kspace = draw(3, COILS, 16, 12)
    readouts = [*lines(kspace[0], slice=0), *lines(kspace[1], range(5), slice=1), *lines(kspace[2], slice=2)]
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), readouts))
    np.testing.assert_array_equal(scan.kspace, kspace[[0, 2]])
    assert "slices left out, with fewer acquired lines than the others: 1" in scan.warnings


@pytest.mark.parametrize(("depth", "kept"), [(6, 6), (7, 7), (8, 6), (7, 4), (8, 5)])
def test_full_partitions_become_slices(tmp_path, depth, kept):
    volume = draw(depth, COILS, 16, 12)
    kspace = kspace_of(volume, (0,))
    columns = list(range(0, 12, 2))
    readouts = [one for z in range(depth) for one in lines(kspace[z], columns, kspace_encode_step_2=z)]
    path = write(tmp_path / "a.h5", header((16, 12, depth), (16, 12, kept)), readouts)
    scan = read_ismrmrd(path)
    first = depth // 2 - kept // 2
    expected = np.where(np.isin(np.arange(12), columns), volume[first : first + kept], 0)
    np.testing.assert_allclose(scan.kspace, expected, atol=2e-6)
    assert scan.prospective


def test_undersampled_partitions_are_refused_with_the_cure(tmp_path):
    kspace = draw(6, COILS, 16, 12)
    skipped = [one for z in (0, 2, 3, 4) for one in lines(kspace[z], kspace_encode_step_2=z)]
    with pytest.raises(InputError, match=r"undersampled \(4 of 6 measured, the same lines.*rsdmri\.physics\.volume"):
        read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 6)), skipped))
    corner = [one for z in range(6) for one in lines(kspace[z], range(z == 0, 12), kspace_encode_step_2=z)]
    with pytest.raises(InputError, match=r"6 of 6 measured, different lines"):
        read_ismrmrd(write(tmp_path / "b.h5", header((16, 12, 6)), corner))


OBLIQUE = np.linalg.qr(numpy_generator("axes").standard_normal((3, 3)))[0]


def measure(points, values, axes, spacing, size, centre, sign):
    """Samples (1, y, x) of point sources by their Fourier sum, k along the first two of ``axes`` (rows)."""
    k = [(np.arange(n) - n // 2) / (n * side) for n, side in zip(size, spacing, strict=True)]
    ky, kx = np.meshgrid(*k, indexing="ij")
    total = np.zeros(size, complex)
    for point, value in zip(points, values, strict=True):
        a, b = axes[:2] @ (np.asarray(point) - centre)
        total += value * np.exp(sign * 2j * np.pi * (ky * a + kx * b))
    return (total / np.sqrt(total.size))[None]


@pytest.mark.parametrize("vendor", ["", "SIEMENS"])
@pytest.mark.parametrize(("measured", "kept", "x"), [(16, 16, 12), (15, 15, 11), (32, 16, 13)])
def test_an_asymmetric_object_lies_where_the_geometry_says(tmp_path, measured, kept, x, vendor):
    """Two unequal points of each oblique slice are found at the pixels that the geometry gives their positions."""
    spacing, centres = (2.0, 3.0), [np.array([5.0, -20.0, 33.0]) + 7 * k * OBLIQUE[2] for k in range(2)]
    pixels = {(3, 1): 1.0, (-5, 4): 0.6, (1, -2): 0.3}
    readouts = []
    for index, centre in enumerate(centres):
        points = [centre + i * spacing[0] * OBLIQUE[0] + j * spacing[1] * OBLIQUE[1] for i, j in pixels]
        samples = measure(
            points, pixels.values(), OBLIQUE, spacing, (measured, x), centre, 1 if vendor == "SIEMENS" else -1
        )
        coordinates = dict(zip(AXES, OBLIQUE, strict=True), position=centre)
        readouts += lines(samples, slice=index, coordinates=coordinates)
    text = header(
        (measured, x, 1),
        (kept, x, 1),
        (2.0 * kept, 3.0 * x, 5.0),
        before=f"<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>",
    )
    scan = read_ismrmrd(write(tmp_path / "a.h5", text, readouts))
    geometry = scan.geometry
    assert geometry.spacing_mm == pytest.approx(spacing)
    assert geometry.thickness_mm == 5.0
    image = np.abs(image_of(scan.kspace[:, 0]))
    h, w = scan.crop
    for index, centre in enumerate(centres):
        np.testing.assert_allclose(geometry.centres[index], centre, atol=1e-5)
        brightest = np.argsort(image[index].ravel())[::-1][:3]
        for flat, (i, j) in zip(brightest, pixels, strict=True):
            row, column = divmod(int(flat), w)
            found = (
                np.array(geometry.centres[index])
                + (row - h // 2) * geometry.spacing_mm[0] * np.array(geometry.y_direction)
                + (column - w // 2) * geometry.spacing_mm[1] * np.array(geometry.x_direction)
            )
            truth = centre + i * spacing[0] * OBLIQUE[0] + j * spacing[1] * OBLIQUE[1]
            np.testing.assert_allclose(found, truth, atol=1e-4)
    assert any("Siemens" in words for words in scan.warnings) == bool(vendor)


@pytest.mark.parametrize(("depth", "kept"), [(6, 6), (7, 7), (8, 6), (8, 5)])
def test_a_point_of_a_slab_lies_where_the_geometry_says(tmp_path, depth, kept):
    centre, plane = np.array([1.0, 2.0, 3.0]), 2
    point = centre + plane * 4.0 * OBLIQUE[2] + 2.0 * OBLIQUE[0]
    flat = measure([point], [1.0], OBLIQUE, (2.0, 3.0), (8, 6), centre, -1)
    coordinates = dict(zip(AXES, OBLIQUE, strict=True), position=centre)
    readouts = []
    for z in range(depth):
        phase = np.exp(-2j * np.pi * (z - depth // 2) * plane / depth)
        readouts += lines(flat * phase, kspace_encode_step_2=z, coordinates=coordinates)
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((8, 6, depth), (8, 6, kept)), readouts))
    image = np.abs(image_of(scan.kspace[:, 0]))
    z, row, column = np.unravel_index(int(np.argmax(image)), image.shape)
    geometry = scan.geometry
    found = np.array(geometry.centres[z]) + (row - 4) * 2.0 * np.array(geometry.y_direction)
    assert column == 3
    assert geometry.thickness_mm == pytest.approx(4.0)
    np.testing.assert_allclose(found, point, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one, k: one.read_dir.__setitem__(slice(None), (1, 1, 0)), "not orthonormal"),
        (lambda one, k: one.position.__setitem__(0, np.nan), "different positions"),
        (lambda one, k: one.position.__setitem__(0, np.inf), "not finite"),
        (lambda one, k: one.position.__setitem__(0, k), "different positions"),
        (lambda one, k: one.phase_dir.__setitem__(slice(None), (0, np.cos(k), np.sin(k))), "phase_dir changes"),
    ],
)
def test_positions_that_cannot_be_used_leave_the_geometry_unknown(tmp_path, change, words):
    readouts = lines(draw(COILS, 16, 12), coordinates=AXES)
    for index, one in enumerate(readouts):
        change(one, index)
    scan = read_ismrmrd(write(tmp_path / "a.h5", header((16, 12, 1)), readouts))
    assert scan.geometry is None
    assert any(words in one for one in scan.warnings)


def test_what_the_header_says_of_the_sequence(tmp_path):
    sequence = (
        "<sequenceParameters><TR>500</TR><TE>3.5</TE><TE>7</TE><flipAngle_deg>15</flipAngle_deg></sequenceParameters>"
    )
    field = "<systemFieldStrength_T>2.9</systemFieldStrength_T>"
    before = f"<acquisitionSystemInformation>{field}</acquisitionSystemInformation>"
    text = header((16, 12, 1), extra=sequence, before=before)
    known = read_ismrmrd(write(tmp_path / "a.h5", text, lines(draw(COILS, 16, 12)))).header
    assert (known.field_strength_t, known.echo_times_ms, known.repetition_times_ms) == (2.9, (3.5, 7.0), (500.0,))
    assert (known.flip_angles_deg, known.inversion_times_ms) == ((15.0,), None)


def test_without_a_header_the_readouts_tell_their_grid(tmp_path):
    kspace = draw(COILS, 16, 12)
    scan = read_ismrmrd(write(tmp_path / "a.h5", None, lines(kspace)))
    np.testing.assert_array_equal(scan.kspace[0], kspace)
    assert any("no header" in words for words in scan.warnings)
    unset = read_ismrmrd(write(tmp_path / "b.h5", header((16, 12, 1)), lines(kspace, center=0)))
    np.testing.assert_array_equal(unset.kspace[0], kspace)
    assert any("name no centre sample" in words for words in unset.warnings)


def refused(name):
    """Header and readouts of a scan that is refused, and the words of the refusal."""
    kspace, text = draw(COILS, 16, 12), header((16, 12, 1))
    readouts = lines(kspace)
    match name:
        case "spiral":
            return header((16, 12, 1), trajectory="spiral"), readouts, r"is spiral, not Cartesian.*noncartesian"
        case "secret trajectory":
            return header((16, 12, 1), trajectory="DOE^JOHN"), readouts, r"is other, not Cartesian"
        case "epi":
            return header((16, 12, 1), trajectory="epi"), readouts, r"EPI scan.*ghost correction"
        case "reverse":
            return text, lines(kspace, flags=["IS_REVERSE"]), r"12 of 12 imaging readouts run backwards"
        case "samples differ":
            return text, [*readouts, line(kspace[:, :8, 0], 3)], r"differ, with 8, 16 samples"
        case "coils differ":
            return text, [*readouts, line(kspace[:2, :, 0], 3)], r"differ, with 2, 3 coils"
        case "centres differ":
            return text, [*readouts, line(kspace[:, :, 0], 3, center=5)], r"differ, with 5, 8 as centre sample"
        case "not a number":
            kspace[1, 2, 3] = np.nan
            return text, lines(kspace), r"1 acquired samples are NaN"
        case "beyond the matrix":
            return header((16, 10, 1)), readouts, r"kspace_encode_step_1 0 to 11 with its centre at 5 does not fit"
        case "centre of nothing":
            return header((16, 12, 1), center=40), readouts, r"with its centre at 40 does not fit"
        case "too long":
            return header((12, 12, 1)), readouts, r"do not fit the encoded matrix of 12"
        case "all discarded":
            return text, lines(kspace, discard_pre=9, discard_post=9), r"discard 9 \+ 9 of 16"
        case "only noise":
            return text, lines(kspace, flags=["IS_NOISE_MEASUREMENT"]), r"none of its 12 readouts is imaging"
        case "only zeros":
            return text, lines(0 * kspace), r"holds only zeros"
        case "a pattern per slice":
            return (
                text,
                [*lines(kspace, range(0, 8), slice=0), *lines(kspace, range(4, 12), slice=1)],
                r"sampled at different lines.*slices=slice\(k, k \+ 1\)",
            )
        case "large matrix":
            return header((60000, 12, 1)), readouts, r"more than a scan has"
        case "grid of nothing":
            return header((4096, 4096, 64)), [line(draw(60, 16), 0)], r"not a plausible scan"
    raise ValueError(name)


REFUSED = (
    *("spiral", "secret trajectory", "epi", "reverse", "samples differ", "coils differ", "centres differ"),
    *("not a number", "beyond the matrix", "centre of nothing", "too long", "all discarded", "only noise"),
    *("only zeros", "a pattern per slice", "large matrix", "grid of nothing"),
)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_with_a_cure(tmp_path, name):
    text, readouts, words = refused(name)
    path = write(tmp_path / "a.h5", text, readouts)
    with pytest.raises(InputError, match=words) as caught:
        read_ismrmrd(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "DOE" not in str(caught.value)


def scan_of(points=False, **fields):
    kspace = draw(2, COILS, 16, 12)
    mask = np.zeros((1, 12), bool)
    mask[0, 2::2] = mask[0, 5:8] = True
    if points:
        mask = np.random.RandomState(0).random_sample((16, 12)) < 0.5
    absent = ~mask.any(0) & (np.arange(12) < 2)
    return Scan("a", np.where(mask, kspace, 0).astype("c8"), mask, absent, (14, 12), True, **fields)


def test_round_trip(tmp_path):
    root = draw(COILS, COILS).astype(complex)
    axes = [tuple(axis) for axis in OBLIQUE]
    scan = scan_of(
        noise_cov=root @ root.conj().T,
        geometry=Geometry((1.5, 2.0), 3.0, axes[0], axes[1], ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))),
        header=Header(field_strength_t=2.9, echo_times_ms=(3.5, 7.0), repetition_times_ms=(500.0,)),
    )
    write_ismrmrd(tmp_path / "a.h5", scan)
    again = read_ismrmrd(tmp_path / "a.h5", keep_oversampling=True)
    np.testing.assert_array_equal(again.kspace, scan.kspace)
    np.testing.assert_array_equal(again.mask, scan.mask)
    np.testing.assert_array_equal(again.absent, scan.absent)
    assert (again.crop, again.prospective) == (scan.crop, scan.prospective)
    np.testing.assert_allclose(again.noise_cov, scan.noise_cov, rtol=1e-5, atol=1e-6)
    for name in ("spacing_mm", "thickness_mm", "y_direction", "x_direction", "centres"):
        np.testing.assert_allclose(getattr(again.geometry, name), getattr(scan.geometry, name), atol=1e-6)
    assert again.header == Header((16, 12, 1), (14, 12, 1), (21.0, 24.0, 3.0), (2, 12), 2.9, (3.5, 7.0), (500.0,))
    write_ismrmrd(tmp_path / "b.h5", again)
    assert read_ismrmrd(tmp_path / "b.h5", keep_oversampling=True).header == again.header


def test_the_ismrmrd_package_reads_what_is_written(tmp_path):
    import ismrmrd

    scan = scan_of()
    write_ismrmrd(tmp_path / "a.h5", scan)
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset", mode="r") as file:
        known = ismrmrd.xsd.CreateFromDocument(file.read_xml_header())
        assert known.encoding[0].encodedSpace.matrixSize.y == 12
        limits = known.encoding[0].encodingLimits.kspace_encoding_step_1
        assert (limits.minimum, limits.center, limits.maximum) == (0, 4, 9)
        found = [file.read_acquisition(index) for index in range(file.number_of_acquisitions())]
    columns = np.flatnonzero(scan.mask[0])
    assert len(found) == 2 * len(columns)
    for one in found:
        column = one.idx.kspace_encode_step_1 + 2
        np.testing.assert_array_equal(one.data, scan.kspace[one.idx.slice, :, :, column])
    assert found[0].isFlagSet(ismrmrd.ACQ_FIRST_IN_SLICE)
    assert found[-1].isFlagSet(ismrmrd.ACQ_LAST_IN_MEASUREMENT)


def test_an_asymmetric_echo_is_written_as_one(tmp_path):
    kspace = draw(1, COILS, 16, 12)
    kspace[:, :, :5] = 0
    mask = np.repeat(np.arange(16)[:, None] >= 5, 12, axis=1)
    write_ismrmrd(tmp_path / "a.h5", Scan("a", kspace, mask, np.zeros(12, bool), (16, 12), True))
    again = read_ismrmrd(tmp_path / "a.h5")
    np.testing.assert_array_equal(again.kspace, kspace)
    np.testing.assert_array_equal(again.mask, mask)


def test_readouts_with_holes_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="have holes"):
        write_ismrmrd(tmp_path / "a.h5", scan_of(points=True))
    assert not (tmp_path / "a.h5").exists()
