"""Reading fastMRI-style files: layouts, the three states of sampling, headers, NaN policy, round trips."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsdmri import RESEARCH_ONLY
from rsdmri.data.fastmri import read_acquired, read_scan, scan_shape, write_reconstruction, write_scan
from rsdmri.data.fastmri_header import format_header, parse_header
from rsdmri.data.scan import Header
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

SHARED = Path(os.environ.get("RSDMRI_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "kspace"


def draw(*shape):
    parts = numpy_generator("fastmri", shape).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def put(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def same_sampling(path):
    """The scan, after checking that `scan_shape` says the same without loading it."""
    scan, shape = read_scan(path), scan_shape(path)
    for field in ("mask", "absent"):
        assert np.array_equal(getattr(scan, field), getattr(shape, field))
    for field in ("name", "crop", "prospective", "acquisition", "header"):
        assert getattr(scan, field) == getattr(shape, field)
    assert scan.kspace.shape == (shape.slices, shape.coils, shape.y, shape.x)
    assert set(shape.warnings) <= set(scan.warnings)
    return scan


# Layouts


@pytest.mark.parametrize("width", [49, 57, 67])
@pytest.mark.parametrize("height", [40, 63])
def test_round_trip_with_header_and_target(tmp_path, height, width):
    kspace, target = draw(3, 4, height, width), np.abs(draw(3, 32, 32))
    geometry = Header((height, width, 1), (32, 32, 1), (210.5, 220.25, 4.5), (2, width - 1))
    kspace[..., :2] = kspace[..., -1:] = 0
    path = tmp_path / "file 1.h5"
    write_scan(path, kspace, target=target, header=geometry, attrs={"acquisition": "AXT2"})
    scan = same_sampling(path)
    assert np.array_equal(scan.kspace, kspace)
    assert np.array_equal(scan.target, target)
    assert (scan.name, scan.acquisition, scan.target_source) == ("file_1", "AXT2", "reconstruction_rss")
    assert scan.header == geometry
    assert scan.crop == (32, 32)
    assert np.flatnonzero(scan.absent).tolist() == [0, 1, width - 1]
    assert np.array_equal(scan.mask, ~scan.absent[None])
    assert not scan.prospective
    assert scan.warnings == ()
    assert "fully sampled" in repr(scan)
    assert len(repr(scan)) < 120


def test_layouts_give_the_same_scan(tmp_path):
    kspace = draw(2, 3, 6, 7)
    pairs = np.stack([kspace.real, kspace.imag], -1)
    for number, stored in enumerate((kspace, kspace.astype("c16"), kspace.astype(">c8"), pairs, pairs.astype("f8"))):
        scan = same_sampling(put(tmp_path / f"{number}.h5", kspace=stored))
        assert np.array_equal(scan.kspace, kspace)
        assert scan.kspace.dtype == np.complex64


def test_single_coil_layouts_have_one_coil(tmp_path):
    kspace, esc = draw(2, 6, 7), np.abs(draw(2, 4, 4))
    for stored in (kspace, np.stack([kspace.real, kspace.imag], -1)):
        path = put(tmp_path / "s.h5", kspace=stored, reconstruction_esc=esc, reconstruction_rss=2 * esc)
        scan = same_sampling(path)
        assert np.array_equal(scan.kspace, kspace[:, None])
        assert scan.target_source == "reconstruction_esc"
        assert np.array_equal(scan.target, esc)
        assert np.array_equal(read_acquired(path, 1, np.ones(7, bool)), kspace[1][None])


def test_compressed_files_and_chosen_slices(tmp_path):
    kspace, target = draw(5, 2, 6, 8), np.abs(draw(5, 6, 8))
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=kspace, chunks=(1, 1, 3, 4), compression="gzip", fletcher32=True)
        file["reconstruction_rss"] = target
    scan = read_scan(path, slices=slice(1, 5, 2))
    assert np.array_equal(scan.kspace, kspace[1:5:2])
    assert np.array_equal(scan.target, target[1:5:2])
    with pytest.raises(InputError, match="none of its 5 slices"):
        read_scan(path, slices=slice(7, 9))


def test_a_file_without_header_says_so_and_keeps_its_size(tmp_path):
    scan = same_sampling(put(tmp_path / "s.h5", kspace=draw(1, 2, 6, 9)))
    assert scan.crop == (6, 9)
    assert scan.header is None
    assert scan.target is None
    assert any("ismrmrd_header" in warning for warning in scan.warnings)


# The three states


@pytest.mark.parametrize("shape", [(10,), (1, 10)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_a_mask_makes_the_scan_undersampled(tmp_path, shape, dtype):
    mask = np.array([1, 0, 0, 1, 1, 1, 0, 1, 0, 1], bool)
    kspace = np.where(mask, draw(2, 3, 4, 10), 0)
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace, mask=mask.reshape(shape).astype(dtype)))
    assert np.array_equal(scan.mask, mask[None])
    assert scan.prospective
    assert not scan.absent.any()
    assert np.array_equal(scan.kspace, kspace)


def test_two_dimensional_masks(tmp_path):
    mask = numpy_generator("2d").random((8, 10)) < 0.4
    kspace = np.where(mask, draw(1, 3, 8, 10), 0)
    for arrays in ({"mask": mask}, {}):
        scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace, **arrays))
        assert np.array_equal(np.broadcast_to(scan.mask, (8, 10)), mask)
        assert scan.prospective


def test_without_a_mask_zeros_in_all_slices_and_coils_are_skipped(tmp_path):
    mask = np.array([1, 0, 0, 1, 1, 1, 0, 1, 0, 1], bool)
    kspace = np.where(mask, draw(3, 2, 4, 10), 0)
    kspace[0, :, :, 3] = kspace[:, 1] = 0  # one slice's or coil's zeros say nothing
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace))
    assert np.array_equal(scan.mask, mask[None])
    assert scan.prospective
    assert any("fewer acquired lines" in warning and warning.endswith(": 0") for warning in scan.warnings)


def test_a_dead_first_coil_does_not_hide_the_rest(tmp_path):
    kspace = draw(2, 3, 4, 6)
    kspace[:, 0] = 0
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace))
    assert scan.mask.all()
    assert scan.mask.shape == (1, 6)


def test_a_few_scattered_zeros_are_measurements(tmp_path):
    kspace = draw(1, 1, 32, 32)
    kspace[0, 0, 5, 7] = kspace[0, 0, 20, 3] = 0
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace))
    assert scan.mask.all()
    assert not scan.prospective


def test_empty_outer_lines_are_absent_when_the_rest_is_complete(tmp_path):
    kspace = draw(2, 2, 4, 12)
    kspace[..., :2] = kspace[..., 11:] = 0
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace))
    assert np.flatnonzero(scan.absent).tolist() == [0, 1, 11]
    assert np.array_equal(scan.mask[0], ~scan.absent)
    assert not scan.prospective
    assert any("3 outer phase-encode lines" in warning for warning in scan.warnings)
    kspace[..., :8] = 0  # two thirds empty is no padding
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace))
    assert not scan.absent.any()
    assert scan.prospective


def test_lines_that_the_mask_claims_and_that_are_empty(tmp_path):
    mask = np.array([1, 0, 1, 1, 1, 0, 1, 1, 0, 1], bool)
    kspace = np.where(mask, draw(2, 2, 4, 10), 0)
    kspace[..., 0] = kspace[..., 4] = 0
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace, mask=mask))
    assert np.flatnonzero(scan.mask[0]).tolist() == [2, 3, 6, 7, 9]
    assert np.flatnonzero(scan.absent).tolist() == [0]
    assert scan.prospective
    assert any("4 positions" in warning for warning in scan.warnings)


def test_header_padding_is_absent_whatever_it_holds(tmp_path):
    geometry = format_header(Header((4, 10, 1), (4, 4, 1), None, (3, 9)))
    kspace = draw(2, 2, 4, 10)
    kspace[..., :3] = kspace[..., 9:] = 0
    for filling in (0, np.nan):
        kspace[..., :3] = kspace[..., 9:] = filling
        scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace, ismrmrd_header=np.bytes_(geometry)))
        assert np.flatnonzero(~scan.absent).tolist() == list(range(3, 9))
        assert np.array_equal(scan.mask[0], ~scan.absent)
        assert not scan.prospective
        assert not scan.kspace[..., scan.absent].any()


def test_header_padding_that_holds_data_is_ignored(tmp_path):
    geometry = np.bytes_(format_header(Header((4, 10, 1), (4, 4, 1), None, (3, 9))))
    scan = same_sampling(put(tmp_path / "s.h5", kspace=draw(2, 2, 4, 10), ismrmrd_header=geometry))
    assert not scan.absent.any()
    assert any("padding ignored" in warning for warning in scan.warnings)


def test_blank_slices_are_reported(tmp_path):
    kspace = draw(4, 2, 5, 6)
    kspace[1] = kspace[3] = 0
    scan = same_sampling(put(tmp_path / "s.h5", kspace=kspace))
    assert scan.mask.all()
    assert "slices without any signal: 1, 3" in scan.warnings


# NaN and data where nothing was acquired


def test_nan_where_the_mask_says_skipped_is_never_read(tmp_path):
    mask = np.arange(10) % 3 == 0
    clean = np.where(mask, draw(2, 2, 6, 10), 0)
    poisoned = np.where(mask, clean, np.complex64(complex(np.nan, np.inf)))
    scan = same_sampling(put(tmp_path / "s.h5", kspace=poisoned, mask=mask))
    assert np.array_equal(scan.kspace, clean)
    assert not np.signbit(scan.kspace.real[..., ~mask]).any()


def test_negative_zero_is_no_measurement_and_becomes_plain_zero(tmp_path):
    mask = np.arange(10) % 3 == 0
    kspace = draw(1, 2, 6, 10) * mask  # multiplication leaves -0.0
    assert np.signbit(kspace.real[..., ~mask]).any()
    scan = read_scan(put(tmp_path / "s.h5", kspace=kspace, mask=mask))
    assert not np.signbit(scan.kspace.real[..., ~mask]).any()


def test_finite_data_outside_the_mask_are_refused_unless_allowed(tmp_path):
    mask = np.arange(10) % 2 == 0
    kspace = draw(1, 2, 6, 10)
    path = put(tmp_path / "s.h5", kspace=kspace, mask=mask)
    with pytest.raises(InputError, match=r"60 samples .* delete the data set 'mask'"):
        read_scan(path)
    allowed = read_scan(path, allow_unmasked=True)
    assert np.array_equal(allowed.kspace, np.where(mask, kspace, 0))


def test_training_reads_the_same_from_a_poisoned_file(tmp_path):
    kspace, mask = draw(3, 2, 8, 12), numpy_generator("mask").random(12) < 0.5
    header = Header((8, 12, 1), (8, 8, 1), None, (0, 12))
    write_scan(tmp_path / "clean.h5", kspace, target=np.abs(kspace[:, 0]), header=header, attrs={"max": 1.0})
    poisoned = np.where(mask, kspace, np.nan)
    write_scan(
        tmp_path / "poisoned.h5", poisoned, target=np.full((3, 8, 12), np.nan), header=header, attrs={"max": np.nan}
    )
    one, other = scan_shape(tmp_path / "clean.h5"), scan_shape(tmp_path / "poisoned.h5")
    for field in one.__dataclass_fields__:
        if field != "name":
            assert np.array_equal(getattr(one, field), getattr(other, field)), field
    for index in range(3):
        a = read_acquired(tmp_path / "clean.h5", index, mask)
        b = read_acquired(tmp_path / "poisoned.h5", index, mask[None])
        assert a.tobytes() == b.tobytes()
        assert np.array_equal(a, np.where(mask, kspace[index], 0))


def test_read_acquired_refuses_what_it_cannot_use(tmp_path):
    kspace = draw(2, 2, 6, 10)
    kspace[1, 0, 0, 3] = np.nan
    path = put(tmp_path / "s.h5", kspace=kspace)
    two_d = np.ones((6, 10), bool)
    two_d[0, 3] = False
    assert np.array_equal(read_acquired(path, 1, two_d), np.where(two_d, kspace[1], 0))
    with pytest.raises(InputError, match="1 acquired samples of slice 1 are NaN"):
        read_acquired(path, 1, np.ones(10, bool))
    for index in (-1, 2):
        with pytest.raises(InputError, match="slices 0 to 1"):
            read_acquired(path, index, two_d)
    for mask in (np.ones(9, bool), np.ones((10, 6), bool), np.ones(10)):
        with pytest.raises(InputError, match="does not fit"):
            read_acquired(path, 0, mask)


# Targets and crops


def test_targets_that_cannot_serve_are_ignored_with_a_warning(tmp_path):
    kspace = draw(2, 2, 6, 10)
    nan = np.full((2, 6, 10), np.nan)
    for target, reason in ((np.ones((3, 6, 10)), "not real"), (np.ones((2, 6)), "not real"), (nan, "NaN")):
        scan = read_scan(put(tmp_path / "s.h5", kspace=kspace, reconstruction_rss=target))
        assert scan.target is None
        assert any(reason in warning for warning in scan.warnings)
    skipped = np.where(np.arange(10) % 2, kspace, 0)
    scan = read_scan(put(tmp_path / "s.h5", kspace=skipped, reconstruction_rss=np.ones((2, 6, 10))))
    assert scan.target is None
    assert any("no reference" in warning for warning in scan.warnings)


@pytest.mark.parametrize(
    ("recon", "expected"),
    [((20, 14), (20, 14)), ((10, 10), (10, 10)), ((20, 20), (14, 14)), ((30, 30), (14, 14)), ((50, 10), (24, 10))],
)
def test_crop_comes_from_the_header_and_fits(tmp_path, recon, expected):
    geometry = np.bytes_(format_header(Header((24, 14, 1), (*recon, 1), None, None)))
    scan = same_sampling(put(tmp_path / "s.h5", kspace=draw(1, 2, 24, 14), ismrmrd_header=geometry))
    assert scan.crop == expected
    assert (recon == expected) == (not any("exceeds" in warning for warning in scan.warnings))


def test_flair_quirk_takes_the_height_where_the_image_is_too_low(tmp_path):
    geometry = np.bytes_(format_header(Header((12, 40, 1), (20, 20, 1), None, None)))
    assert read_scan(put(tmp_path / "s.h5", kspace=draw(1, 2, 12, 40), ismrmrd_header=geometry)).crop == (12, 12)


def test_a_knee_test_file_of_one_coil(tmp_path):
    """As fastMRI's challenge files are: a mask of lines, no image, padding that the mask may claim."""
    mask = numpy_generator("knee").random(372) < 0.25
    mask[170:202] = True
    mask[:2] = True
    kspace = np.where(mask, draw(2, 64, 372), 0)
    kspace[..., :2] = 0
    header = np.bytes_(format_header(Header((64, 372, 1), (32, 320, 1), (280.0, 162.8, 4.5), (2, 372))))
    with h5py.File(put(tmp_path / "file1000022.h5", kspace=kspace, mask=mask, ismrmrd_header=header), "a") as file:
        file.attrs.update(acquisition="CORPD_FBK", acceleration=4, num_low_frequency=32, patient_id="0a1b")
    scan = same_sampling(tmp_path / "file1000022.h5")
    assert (scan.kspace.shape, scan.crop, scan.acquisition) == ((2, 1, 64, 372), (32, 320), "CORPD_FBK")
    assert (scan.prospective, scan.target) == (True, None)
    np.testing.assert_array_equal(scan.mask[0], mask & (np.arange(372) >= 2))
    assert np.flatnonzero(scan.absent).tolist() == [0, 1]


def test_flair_of_203_lines(tmp_path):
    """fastMRI crops to 203 x 203 where the header asks for 320 x 320 of 203 phase encodes."""
    header = np.bytes_(format_header(Header((640, 203, 1), (320, 320, 1), None, (0, 203))))
    path = put(tmp_path / "file_brain_AXFLAIR_203.h5", kspace=draw(1, 1, 640, 203), ismrmrd_header=header)
    assert same_sampling(path).crop == (203, 203)


def test_a_brain_scan_without_readout_oversampling(tmp_path):
    """GE: as many readout samples as the image has rows, and an image that is not square."""
    header = np.bytes_(format_header(Header((48, 46, 1), (48, 40, 1), (220.0, 183.0, 5.0), (3, 43))))
    kspace = draw(2, 4, 48, 46)
    kspace[..., :3] = kspace[..., 43:] = 0
    target = np.abs(draw(2, 48, 40))
    path = put(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header, reconstruction_rss=target)
    scan = same_sampling(path)
    assert (scan.crop, scan.prospective, scan.warnings) == ((48, 40), False, ())
    assert int(scan.absent.sum()) == 6
    np.testing.assert_array_equal(scan.target, target)


# Headers


def fastmri_header(**replace):
    values = {"encoded": 368, "center": 161, "maximum": 322, "recon": 320, "fov": 220.5} | replace
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xs="x"><!-- a comment -->'
        "<studyInformation><studyTime>12:00</studyTime></studyInformation><unknownElement><x>1</x></unknownElement>"
        "<encoding><encodedSpace><matrixSize><x>640</x><y>{encoded}</y><z>1</z></matrixSize></encodedSpace>"
        "<reconSpace><matrixSize><x>320</x><y>{recon}</y><z>1</z></matrixSize>"
        "<fieldOfView_mm><x>220.5</x><y>{fov}</y><z>5</z></fieldOfView_mm></reconSpace>"
        "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum>"
        "<center>{center}</center></kspace_encoding_step_1></encodingLimits></encoding>"
        "<encoding><encodedSpace><matrixSize><x>7</x></matrixSize></encodedSpace></encoding></ismrmrdHeader>"
    ).format(**values)


def test_a_scanner_header_gives_fastmri_padding():
    header, warnings = parse_header(fastmri_header().encode())
    assert header == Header((640, 368, 1), (320, 320, 1), (220.5, 220.5, 5.0), (23, 346))  # 368 // 2 - 161; + 322 + 1
    assert warnings == ()


@pytest.mark.parametrize("bad", ["", "-4", "0", "3.5", "1e3", "nan", "9" * 30, "\u0663\u0662\u0660x", "ten"])
def test_bad_numbers_fall_back_with_a_warning(bad):
    header, warnings = parse_header(fastmri_header(recon=bad).encode())
    assert header.recon is None
    assert header.padding == (23, 346)
    assert len(warnings) == 1
    assert "reconSpace" in warnings[0]


def test_incomplete_limits_give_no_padding():
    header, warnings = parse_header(fastmri_header(center="").encode())
    assert header.padding is None
    assert any("incomplete" in warning for warning in warnings)


@pytest.mark.parametrize(
    "text", [b"", b"<a", b"\xff\xfe\x00", b"<a/>", b'<?xml version="1.0" encoding="klingon"?><a/>']
)
def test_headers_without_content_fall_back(text):
    header, warnings = parse_header(text)
    assert header == Header()
    assert len(warnings) == 1


def test_padding_outside_the_matrix_or_of_another_width_is_ignored(tmp_path):
    for replace in ({"center": 400}, {"maximum": 5000}, {"encoded": 400}):
        text = np.bytes_(fastmri_header(**replace))
        scan = read_scan(put(tmp_path / "s.h5", kspace=draw(1, 1, 8, 368), ismrmrd_header=text))
        assert not scan.absent.any()
        assert any("padding ignored" in warning for warning in scan.warnings)


def test_headers_of_other_types_fall_back(tmp_path):
    for stored in (np.ones(3), np.float32(1), np.array([b"a", b"b"])):
        scan = read_scan(put(tmp_path / "s.h5", kspace=draw(1, 1, 4, 4), ismrmrd_header=stored))
        assert scan.header is None
        assert any("ismrmrd_header" in warning for warning in scan.warnings)
    variable = put(tmp_path / "s.h5", kspace=draw(1, 1, 8, 368), ismrmrd_header=fastmri_header())
    assert read_scan(variable).header is not None


# Writing


def test_reconstructions_have_the_submission_form(tmp_path):
    volume, std = np.abs(draw(2, 5, 6)).astype(np.float64), np.ones((2, 5, 6))
    path = tmp_path / "file1000.h5"
    write_reconstruction(path, volume, std=std, attrs={"method": "sense", "seed": 0})
    with h5py.File(path) as file:
        assert set(file) == {"reconstruction", "std"}
        assert file["reconstruction"].dtype == np.float32
        np.testing.assert_allclose(file["reconstruction"], volume, rtol=1e-6)
        assert file.attrs["method"] == "sense"
        assert RESEARCH_ONLY in file.attrs.values()
    assert [item.name for item in tmp_path.iterdir()] == ["file1000.h5"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "r.h5"
    write_reconstruction(path, np.ones((1, 2, 2)))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_reconstruction(path, np.zeros((1, 2, 2)), attrs={"bad": object()})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["r.h5"]


@pytest.mark.parametrize(("volume", "std"), [(np.ones((2, 2)), None), (np.ones((1, 2, 2)) * 1j, None)])
def test_reconstructions_of_another_kind_are_refused(tmp_path, volume, std):
    with pytest.raises(ValueError, match="slice, h, w"):
        write_reconstruction(tmp_path / "r.h5", volume, std=std)
    with pytest.raises(ValueError, match="std"):
        write_reconstruction(tmp_path / "r.h5", np.ones((1, 2, 2)), std=np.ones((2, 2, 2)))


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_scan(tmp_path / name, draw(1, 2, 4, 5), mask=np.ones(5, bool), header=Header((4, 5, 1)))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


# Real scans


@pytest.mark.skipif(not SHARED.is_dir(), reason="real scans are not here (set RSDMRI_SHARED_DATA)")
def test_real_scans_are_read():
    scans = [same_sampling(path) for path in sorted(SHARED.glob("*.h5"))]
    assert scans
    for scan in scans:
        assert scan.prospective == ("undersampled" in scan.name)
        assert (scan.target is None) == scan.prospective
        assert not scan.absent.any()
    for scan in (scan for scan in scans if scan.prospective):
        assert scan.mask.shape == scan.kspace.shape[-2:]
