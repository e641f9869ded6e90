"""Volumes that scans are simulated from: what is read, what is refused, where slices lie, folders of scans of them."""

import csv
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from rsdmri.cli import app
from rsdmri.data.magnitudes import Magnitudes, draw_slices, read_magnitudes
from rsdmri.data.simulate_files import find_volumes, write_simulated
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

VOXEL = (2.0, 2.5, 3.0)


def head() -> np.ndarray:
    """An ellipsoid (x, y, z) with a bright front and a dark left half."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (72, 76, 50)), indexing="ij")
    values = np.where((x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 0.9) ** 2 < 1, 100.0, 0)
    values[y > 0] *= 2
    return values * np.where(x < 0, 0.5, 1)


def written(path: Path, values: np.ndarray, affine: np.ndarray | None = None, kind: type = np.float32) -> Path:
    nibabel.save(nibabel.Nifti1Image(values.astype(kind), np.diag([*VOXEL, 1]) if affine is None else affine), path)
    return path


def test_a_volume_is_turned_to_its_axes_and_scaled(tmp_path):
    values = head()
    found = read_magnitudes(written(tmp_path / "a.nii.gz", values))
    np.testing.assert_allclose(found.voxel_mm, VOXEL)
    top = np.percentile(values[values > 0], 99.5)
    np.testing.assert_allclose(found.values, np.clip((values / top - 0.04) / 0.96, 0, None), rtol=1e-5)
    turned = np.zeros((4, 4))
    turned[0, 1], turned[1, 2], turned[2, 0], turned[3, 3] = -2, 2.5, 3, 1  # voxels run up, left, front
    stored = values[::-1].transpose(2, 0, 1)
    again = read_magnitudes(written(tmp_path / "b.nii", stored, turned))
    np.testing.assert_allclose(again.values, found.values)
    np.testing.assert_allclose(again.voxel_mm, VOXEL)
    frames = read_magnitudes(written(tmp_path / "c.nii", np.stack([values, 0 * values], -1)))
    np.testing.assert_allclose(frames.values, found.values)


BAD = {
    "zeros": (np.zeros((9, 9, 9)), np.float32, "nothing but zeros"),
    "nan": (np.full((9, 9, 9), np.nan), np.float32, "NaN or infinite"),
    "flat": (np.ones((9, 9)), np.float32, r"an image of shape \(9, 9.*at least 8 voxels"),
    "thin": (np.ones((9, 9, 2)), np.float32, "at least 8 voxels"),
    "complex": (np.ones((9, 9, 9)), np.complex64, "voxels of type complex64"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_magnitude_volume_is_refused(name, tmp_path):
    values, kind, message = BAD[name]
    with pytest.raises(InputError, match=rf"bad\.nii.*{message}"):
        read_magnitudes(written(tmp_path / "bad.nii", values, kind=kind))


def test_damaged_and_odd_files_are_refused_in_one_line(tmp_path):
    whole = written(tmp_path / "whole.nii.gz", numpy_generator("n").uniform(size=(40, 40, 40))).read_bytes()
    cases = {"text.nii": b"hello", "empty.nii": b"", "cut.nii.gz": whole[: len(whole) // 2]}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: not a NIfTI volume that can be read") as caught:
            read_magnitudes(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_magnitudes(tmp_path / "none.nii")
    with pytest.raises(InputError, match=r"voxels of 2 x 2\.5 x 100 mm"):
        read_magnitudes(written(tmp_path / "tall.nii", head(), np.diag([2, 2.5, 100, 1])))
    huge = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4))
    huge.header["dim"][1:4] = 30_000
    (tmp_path / "huge.nii").write_bytes(huge.header.binaryblock + bytes(4))
    with pytest.raises(InputError, match=r"huge\.nii: 2\.7e\+13 voxels, more than is read"):
        read_magnitudes(tmp_path / "huge.nii")


class Still(np.random.Generator):
    """Draws the middle of every law, and keeps the contrast."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def normal(self, loc=0.0, scale=1.0, size=None):
        return np.zeros(size) if size else 0.0

    def uniform(self, low=0.0, high=1.0, size=None):
        return low if (low, high) == (0.0, 1.0) else (low + high) / 2


def test_slices_lie_where_they_should():
    """Without chance: the field of view 1.35 times the object, the bright front above, unless a slice is off it."""
    values = head() / 200
    drawn = draw_slices(Magnitudes(values, np.array(VOXEL)), Still(), slices=3, size=54)
    inside = np.flatnonzero(values.any((0, 2)))
    assert drawn.fov_mm == pytest.approx(1.35 * (inside[-1] - inside[0]) * 2.5)
    up = np.flatnonzero(values.any((0, 1))) * 3.0
    span = up[-1] - 18 - max(up[0] + (up[-1] - up[0]) / 3, up[-1] - 105)
    np.testing.assert_allclose(np.diff(drawn.heights), span / 2)
    assert drawn.heights.sum() == pytest.approx(0)
    for image in drawn.magnitude:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert abs(rows[0] + rows[-1] - 53) <= 2
        assert abs(columns[0] + columns[-1] - 53) <= 2
        assert np.allclose(image[20, [22, 31]], [0.5, 1])
        assert np.allclose(image[33, [22, 31]], [0.25, 0.5])
    widest = [image.any(0).sum() for image in drawn.magnitude]
    assert widest[0] > widest[-1] > 10


def test_draws_differ_in_place_and_contrast():
    volume = Magnitudes(head() / 200, np.array(VOXEL))
    drawn = [draw_slices(volume, numpy_generator("draws", i), slices=2, size=32) for i in range(12)]
    again = draw_slices(volume, numpy_generator("draws", 3), slices=2, size=32)
    np.testing.assert_array_equal(again.magnitude, drawn[3].magnitude)
    assert len({one.fov_mm for one in drawn}) == 12
    brightest = [float(np.median(one.magnitude[one.magnitude > 0.9 * one.magnitude.max()])) for one in drawn]
    assert np.ptp(brightest) > 0.1
    assert all(np.isfinite(one.magnitude).all() and one.magnitude.min() >= 0 for one in drawn)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """Two volumes of one subject, and one each of two others."""
    folder = tmp_path_factory.mktemp("volumes")
    for name in ("sub-01/sub-01_T1w", "sub-01/sub-01_T2w", "sub-02/sub-02_T1w", "other/someone"):
        (folder / name).parent.mkdir(exist_ok=True)
        written(folder / f"{name}.nii.gz", head())
    return folder


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_scans_of_volumes_with_masks_of_their_own(volumes, tmp_path):
    how = ["--scans", "8", "--slices", "2", "--size", "32", "--coils", "3", "--volumes", str(volumes)]
    asked = ["simulate", str(tmp_path), *how, "-R", "2", "-R", "4"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "manifest.tsv")
    by_subject = {}
    for row in rows:
        by_subject.setdefault(row["subject"], set()).add(row["split"])
    assert len(by_subject) == 3
    assert sorted(map(sorted, by_subject.values())) == [["test"], ["train"], ["val"]]
    assert "sub-0" not in (tmp_path / "manifest.tsv").read_text()
    assert "someone" not in (tmp_path / "manifest.tsv").read_text()
    shares = []
    for row in rows:
        with h5py.File(tmp_path / row["path"]) as file:
            mask, kspace = file["mask"][()].astype(bool), file["kspace"][()]
            assert not kspace[..., ~mask].any()
            assert np.abs(kspace[..., mask]).min() > 0
            assert "reconstruction_rss" not in file
            assert not {"max", "norm"} & file.attrs.keys()
            shares.append(mask.mean())
    assert sum(share > 0.36 for share in shares) == 4  # about 1/2 and 1/4, each of every two scans once
    before = [(tmp_path / row["path"]).stat().st_mtime_ns for row in rows]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert [(tmp_path / row["path"]).stat().st_mtime_ns for row in rows] == before


def test_fully_sampled_scans_of_volumes_keep_their_target(volumes, tmp_path):
    manifest = write_simulated(tmp_path, scans=1, slices=1, size=32, coils=2, volumes=find_volumes(volumes))
    with h5py.File(tmp_path / rows_of(manifest)[0]["path"]) as file:
        assert file["reconstruction_rss"].shape == (1, 32, 32)
        assert "mask" not in file
        assert file.attrs["rsdmri_contrast"] == "volume"


def test_what_cannot_be_simulated_is_refused(volumes, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_volumes(tmp_path / "none")
    with pytest.raises(InputError, match=r"no \.nii or \.nii\.gz in it"):
        find_volumes(tmp_path)
    with pytest.raises(InputError, match="--contrast T1w: is of packaged heads, volumes"):
        write_simulated(tmp_path, volumes=find_volumes(volumes), contrast="T1w")
    with pytest.raises(InputError, match=r"--margin 0\.02: is of packaged heads"):
        write_simulated(tmp_path, volumes=find_volumes(volumes), margin=0.02)
    with pytest.raises(InputError, match=r"acceleration 0\.5"):
        write_simulated(tmp_path, accelerations=[0.5])
    with pytest.raises(InputError, match="--sampling spirals: must be one of lines, points"):
        write_simulated(tmp_path, accelerations=[4.0], sampling="spirals")
    with pytest.raises(InputError, match="fully sampled scans have no mask; give --acceleration"):
        write_simulated(tmp_path, sampling="points")


def test_scans_sampled_by_points(tmp_path):
    asked = ["simulate", str(tmp_path), "--scans", "4", "--slices", "2", "--size", "48", "--coils", "3"]
    asked += ["--sampling", "points", "--phase-fov", "0.75"]
    result = CliRunner().invoke(app, [*asked, "-R", "4", "-R", "8"])
    assert result.exit_code == 0, result.output
    found = []
    for row in rows_of(tmp_path / "manifest.tsv"):
        with h5py.File(tmp_path / row["path"]) as file:
            mask, kspace = file["mask"][()].astype(bool), file["kspace"][()]
        assert (row["matrix"], mask.shape) == ("48x36", (48, 36))
        assert mask[22:26, 16:20].all()
        assert not kspace[..., ~mask].any()
        assert np.abs(kspace[..., mask]).min() > 0
        assert not mask.all(0).any()
        found.append(mask)
    assert sorted(round(1 / mask.mean()) for mask in found) == [4, 4, 8, 8]
    assert not np.array_equal(found[0], found[2])
