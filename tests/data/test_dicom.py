"""DICOM: valid by an independent checker, in the right place by independent readers, and about nobody."""

import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from placed import MARKS, brightest, oblique, position, read_series, source_file, volume

from rsdmri import RESEARCH_ONLY
from rsdmri.data.dicom import MR_IMAGE, SECONDARY_CAPTURE, write_dicom
from rsdmri.data.parametric_map import write_parametric_maps
from rsdmri.data.scan import Header
from rsdmri.errors import InputError

ATTRS = {"method": "rsd", "acceleration": 4.0, "seed": 3, "mask_sha256": "ab" * 32, "source_sha256": "cd" * 32}
HEADER = Header((18, 8, 1), (9, 8, 1), (11.25, 6.4, 4.0), None, 2.89, (90.0,), (3000.0,), (120.0,), (200.0,))
SIZE = 1e-5  # fastMRI's units


def known(**replace):
    return {"geometry": oblique(), "header": HEADER, "attrs": ATTRS} | replace


def images(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


@pytest.fixture
def folder(tmp_path):
    write_dicom(tmp_path / "scan_dicom", volume(scale=SIZE), volume(scale=SIZE / 30)[:, ::-1], **known())
    return tmp_path / "scan_dicom"


def checked(path):
    """Lines of ``dciodvfy`` that begin with Error, and with Warning."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed; Debian package dicom3tools")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    assert lines
    return [line for line in lines if line.startswith("Error")], [line for line in lines if line.startswith("Warning")]


def test_the_checker_finds_no_error(folder, tmp_path):
    write_dicom(tmp_path / "single", volume()[:1], geometry=oblique(1))
    write_dicom(tmp_path / "zero", 0 * volume(), geometry=oblique())
    write_dicom(tmp_path / "capture", volume(), voxel_mm=(4.0, 1.0, 2.0), attrs=ATTRS)
    write_dicom(tmp_path / "bare", volume())
    for path in tmp_path.rglob("*.dcm"):
        errors, _ = checked(path)
        assert not errors, (path, errors)


def test_the_checker_can_fail(folder):
    dataset = images(folder / "mean")[0]
    del dataset.ScanningSequence
    dataset.save_as(folder / "bad.dcm")
    assert checked(folder / "bad.dcm")[0]


def test_values_come_back_in_the_units_of_the_scan(folder):
    for kind, wanted in (("mean", volume(scale=SIZE)), ("std", volume(scale=SIZE / 30)[:, ::-1])):
        series = images(folder / kind)
        assert [dataset.InstanceNumber for dataset in series] == [1, 2, 3]
        for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "SeriesInstanceUID"):
            assert len({str(dataset.get(name)) for dataset in series}) == 1, name
        assert series[0].WindowWidth >= 1
        for dataset, image in zip(series, wanted, strict=True):
            stored = dataset.pixel_array.astype(float)
            mapping = dataset.RealWorldValueMappingSequence[0]
            step = mapping.RealWorldValueSlope
            np.testing.assert_allclose(stored * step, image, atol=0.51 * step)
            assert step == pytest.approx(wanted.max() / 4095, rel=1e-6)
            shown = stored * float(dataset.RescaleSlope)
            np.testing.assert_allclose(shown, stored * step * 1e8, rtol=1e-9)  # 9e-5 is shown as 9000
            assert dataset.SmallestImagePixelValue == stored.min()
            assert dataset.LargestImagePixelValue == stored.max()


def test_what_an_image_says_of_itself(folder):
    mean, std = images(folder / "mean")[0], images(folder / "std")[0]
    assert mean.SOPClassUID == MR_IMAGE
    assert list(mean.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert (mean.BitsAllocated, mean.BitsStored, mean.HighBit) == (16, 12, 11)
    for part in ("rsdmri", "rsd", "R=4.00", "Not for diagnostic use", RESEARCH_ONLY):
        assert part in mean.DerivationDescription
    assert "standard deviation" in std.DerivationDescription
    assert (mean.PatientIdentityRemoved, mean.BurnedInAnnotation, mean.LossyImageCompression) == ("YES", "NO", "00")
    assert (mean.SeriesNumber, std.SeriesNumber) == (9001, 9002)
    assert mean.SeriesInstanceUID != std.SeriesInstanceUID
    assert mean.StudyInstanceUID == std.StudyInstanceUID
    assert mean.FrameOfReferenceUID == std.FrameOfReferenceUID
    assert (mean.EchoTime, mean.RepetitionTime, mean.InversionTime, mean.FlipAngle) == (90, 3000, 200, 120)
    assert (mean.MagneticFieldStrength, mean.MRAcquisitionType, mean.SpacingBetweenSlices) == (2.89, "2D", 5)
    for name in ("StudyDate", "StudyTime", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        assert not mean[name].value


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (12, 7)])
def test_simpleitk_finds_every_mark_in_its_place(size, left_handed, tmp_path):
    pytest.importorskip("SimpleITK", reason="SimpleITK, the independent reader, is not installed")
    geometry = oblique(turn=size[1], left_handed=left_handed)
    write_dicom(tmp_path / "out", volume(size), geometry=geometry)
    found = brightest(read_series(tmp_path / "out" / "magnitude"))
    for index, value in MARKS.items():
        shown = min(found, key=lambda v: abs(v - 1000 * value))
        assert shown == pytest.approx(1000 * value, rel=1e-3)
        np.testing.assert_allclose(found[shown], position(geometry, index, size), atol=1e-3)


def test_dcm2niix_finds_every_mark_in_its_place(folder, tmp_path):
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed; Debian package dcm2niix")
    import nibabel as nib

    command = ["dcm2niix", "-z", "n", "-f", "out", "-o", tmp_path, folder / "mean"]
    subprocess.run(command, check=True, capture_output=True)
    image = nib.load(tmp_path / "out.nii")
    data = np.asarray(image.dataobj)
    for index, value in MARKS.items():
        place = np.argwhere(np.isclose(data, 1000 * value, rtol=1e-3))
        assert len(place) == 1
        where = (image.affine @ [*place[0], 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(where, position(oblique(), index, (9, 8)), atol=1e-3)


def test_an_unknown_geometry_gives_secondary_capture_that_says_so(tmp_path):
    write_dicom(tmp_path / "out", volume(), voxel_mm=(4.0, 1.5, 0.5), header=HEADER)
    for dataset in images(tmp_path / "out" / "magnitude"):
        assert dataset.SOPClassUID == SECONDARY_CAPTURE
        assert "orientation and position are not known" in dataset.DerivationDescription
        assert list(dataset.PixelSpacing) == [1.5, 0.5]
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            assert name not in dataset
    write_dicom(tmp_path / "bare", volume())
    assert "PixelSpacing" not in images(tmp_path / "bare" / "magnitude")[0]


def uids(folder):
    return [dataset.SOPInstanceUID for path in sorted(folder.iterdir()) for dataset in images(path)]


def test_uids_depend_on_images_and_settings_alone(folder, tmp_path):
    def again(name, **change):
        write_dicom(tmp_path / name, volume(scale=SIZE), volume(scale=SIZE / 30)[:, ::-1], **known(**change))
        return tmp_path / name

    for path in again("same").rglob("*.dcm"):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "same")).read_bytes()
    assert len(set(uids(folder))) == 6
    other = again("seed", attrs={**ATTRS, "seed": 4})
    assert not set(uids(other)) & set(uids(folder))
    timed = again("timed", attrs={**ATTRS, "seconds_per_slice": 2.0})
    assert uids(timed) == uids(folder)
    first, second = images(folder / "mean")[0], images(other / "mean")[0]
    assert (first.StudyInstanceUID, first.PatientID) == (second.StudyInstanceUID, second.PatientID)  # the same scan


def test_of_a_source_only_two_uids_are_taken(tmp_path):
    source = source_file(tmp_path / "source.dcm")
    write_dicom(tmp_path / "out", volume(), **known(source=source))
    for path in (tmp_path / "out").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == ("1.2.3", "1.2.5")
        assert not any(secret in path.read_bytes() for secret in (b"DOE", b"JOHN", b"19600101", b"778899"))


def test_sources_that_cannot_be_used(tmp_path):
    (tmp_path / "text.dcm").write_text("not DICOM")
    with pytest.raises(InputError, match=r"text\.dcm: not a DICOM file"):
        write_dicom(tmp_path / "out", volume(), source=tmp_path / "text.dcm")
    with pytest.raises(InputError, match=r"none\.dcm: cannot be read"):
        write_dicom(tmp_path / "out", volume(), source=tmp_path / "none.dcm")
    bad = source_file(tmp_path / "bad.dcm", StudyInstanceUID="")
    with pytest.raises(InputError, match="no valid StudyInstanceUID"):
        write_dicom(tmp_path / "out", volume(), source=bad)
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_what_was_there(folder, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*.dcm")}
    monkeypatch.setattr("rsdmri.data.dicom._pixels", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_dicom(folder, volume(), geometry=oblique())
    assert {path: path.read_bytes() for path in folder.rglob("*.dcm")} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_wrong_shapes(tmp_path):
    with pytest.raises(ValueError, match="std: expected the shape"):
        write_dicom(tmp_path / "out", volume(), volume()[:2])
    with pytest.raises(ValueError, match="2 slice centres for 3 slices"):
        write_dicom(tmp_path / "out", volume(), geometry=oblique(2))
    with pytest.raises(ValueError, match="magnitude: expected finite"):
        write_dicom(tmp_path / "out", -volume())


def test_parametric_maps_hold_the_numbers_themselves(tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed; it comes with the extra parametric-map")
    mean, std = volume(scale=SIZE), volume(scale=SIZE / 30)
    for name in ("a", "b"):
        write_parametric_maps(tmp_path / name, mean, std, **known())
    for kind, wanted in (("mean", mean), ("std", std)):
        path = tmp_path / "a" / f"{kind}.dcm"
        assert path.read_bytes() == (tmp_path / "b" / f"{kind}.dcm").read_bytes()
        dataset = pydicom.dcmread(path)
        assert RESEARCH_ONLY in dataset.ContentDescription
        places = [
            item.PlanePositionSequence[0].ImagePositionPatient for item in dataset.PerFrameFunctionalGroupsSequence
        ]
        frames = np.frombuffer(dataset.FloatPixelData, "<f4").reshape(3, 9, 8)
        for place, frame in zip(places, frames, strict=True):
            k = min(range(3), key=lambda k: np.linalg.norm(position(oblique(), (k, 0, 0), (9, 8)) - place))
            np.testing.assert_allclose(np.array(place, float), position(oblique(), (k, 0, 0), (9, 8)), atol=1e-4)
            assert np.array_equal(frame, wanted[k])
        assert not checked(path)[0]


def test_parametric_maps_need_a_geometry_and_highdicom(tmp_path, monkeypatch):
    if importlib.util.find_spec("highdicom") is not None:
        with pytest.raises(InputError, match="does not say where its slices lie"):
            write_parametric_maps(tmp_path / "out", volume())
    monkeypatch.setitem(sys.modules, "highdicom.pm", None)
    with pytest.raises(InputError, match=r"rsdmri\[parametric-map\]"):
        write_parametric_maps(tmp_path / "out", volume(), geometry=oblique())
