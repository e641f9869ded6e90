"""Reconstructions in every format: named, placed, replaced and cleaned of what is personal."""

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from placed import MARKS, brightest, oblique, position, read_series, source_file, volume

from rsdmri import RESEARCH_ONLY
from rsdmri.data.fastmri import read_scan
from rsdmri.data.ismrmrd import write_ismrmrd
from rsdmri.data.scan import Header, Scan
from rsdmri.errors import InputError
from rsdmri.physics.fourier import fft2c
from rsdmri.workflows import export as module
from rsdmri.workflows import reconstruct_files as workflow
from rsdmri.workflows.export import FORMATS, chosen_formats, complex_volume, destinations, export
from rsdmri.workflows.reconstruct import load_scan, reconstruct
from rsdmri.workflows.reconstruct_files import reconstruct_files

SECRETS = ("DOE^", "DOE_", "DOEJ", "JOHN", "19600101", "778899")


def quiet(line):
    pass


@pytest.fixture
def scan_file(simulated):
    return min(simulated.glob("*.h5"))


def placed_scan(size=(9, 8), matrix=(16, 12), **known) -> Scan:
    """`volume` in the middle of a larger field of view, one coil, fully sampled, in an oblique place."""
    images = np.zeros((3, *matrix), np.float32)
    top, left = ((n - m) // 2 for n, m in zip(matrix, size, strict=True))
    images[:, top : top + size[0], left : left + size[1]] = volume(size)
    noise = np.random.default_rng(0).normal(size=(2, *images.shape)) * 1e-3
    kspace = fft2c(torch.from_numpy(images + noise[0] + 1j * noise[1])).numpy()[:, None].astype(np.complex64)
    given = {"name": "scan", "mask": np.ones((1, matrix[1]), bool), "absent": np.zeros(matrix[1], bool), "crop": size,
             "prospective": False, "geometry": oblique(turn=matrix[0]), "acquisition": "AXT2"}  # fmt: skip
    return Scan(kspace=kspace, **(given | known))


def written(result, folder, *formats, stem="scan", **options):
    (destination,) = destinations([stem], folder, formats)
    folder.mkdir(exist_ok=True)
    return export(result, destination, picture=lambda result: b"\x89PNG", **options)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [(9, 8), (10, 7), (11, 8)])  # 9 of 16 puts the centre one pixel further
def test_an_asymmetric_phantom_keeps_its_sides(size, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, the independent reader, is not installed")
    scan = placed_scan(size)
    matrix = scan.kspace.shape[-2:]
    top, left = ((n - m) // 2 for n, m in zip(matrix, size, strict=True))
    paths = written(reconstruct(scan, method="zero-filled"), tmp_path, "nifti", "dicom")
    for image in (sitk.ReadImage(str(paths["nifti"])), read_series(paths["dicom"] / "magnitude")):
        found = sorted(brightest(image).items())
        for (value, place), (index, wanted) in zip(found, sorted(MARKS.items(), key=lambda item: item[1]), strict=True):
            in_full = (index[0], index[1] + top, index[2] + left)
            np.testing.assert_allclose(place, position(scan.geometry, in_full, matrix), atol=2e-3)
            assert value / found[-1][0] == pytest.approx(wanted / 9, rel=2e-3)


@pytest.mark.parametrize("keep_oversampling", [True, False])
def test_an_asymmetric_phantom_keeps_its_sides_from_raw_data_on(keep_oversampling, tmp_path):
    """ISMRMRD -> reconstruct -> DICOM and NIfTI, found where an independent reader says."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, the independent reader, is not installed")
    size = (9, 8)
    phantom = placed_scan(size)
    matrix = phantom.kspace.shape[-2:]
    top, left = ((n - m) // 2 for n, m in zip(matrix, size, strict=True))
    wanted = {value: position(phantom.geometry, (k, i + top, j + left), matrix) for (k, i, j), value in MARKS.items()}
    write_ismrmrd(tmp_path / "raw.mrd", phantom)
    scan = load_scan(tmp_path / "raw.mrd", keep_oversampling=keep_oversampling)
    assert scan.kspace.shape[-2] == (16 if keep_oversampling else 9)
    paths = written(reconstruct(scan, method="zero-filled"), tmp_path / "out", "nifti", "dicom")
    for image in (sitk.ReadImage(str(paths["nifti"])), read_series(paths["dicom"] / "magnitude")):
        for (_, place), (_, where) in zip(sorted(brightest(image).items()), sorted(wanted.items()), strict=True):
            np.testing.assert_allclose(place, where, atol=2e-3)


def test_an_unknown_place_is_said_in_every_form(tmp_path):
    header = Header((16, 12, 1), (9, 8, 1), (18.0, 8.0, 5.0))
    result = reconstruct(placed_scan(geometry=None, header=header), method="zero-filled")
    paths = written(result, tmp_path, "nifti", "dicom")
    sidecar = json.loads(paths["nifti sidecar"].read_text(encoding="utf-8"))
    assert (sidecar["OrientationKnown"], sidecar["SpacingKnown"]) == (False, True)
    data = (paths["dicom"] / "magnitude" / "0001.dcm").read_bytes()
    assert b"orientation and position are not known" in data
    assert b"2.0\\1.0" in data  # pixel spacing (y, x) in mm
    if importlib.util.find_spec("highdicom") is not None:
        with pytest.raises(InputError, match="does not say where its slices lie"):
            written(result, tmp_path / "maps", "h5", "parametric-map")
        assert not list((tmp_path / "maps").iterdir())


def test_names_and_contents_of_a_folder(finished_run, scan_file, tmp_path):
    rows = reconstruct_files(
        [scan_file], tmp_path / "out", prior=finished_run, acceleration=2, samples=2, say=quiet,
        formats=["h5,nifti", "dicom", "png"],
    )  # fmt: skip
    label = "sub-" + "".join(c for c in scan_file.stem if c.isalnum())
    found = names(tmp_path / "out")
    assert {name.split("_rec-")[0] for name in found if name.startswith("sub-")} == {f"{label}/anat/{label}"}
    assert sum("_rec-rsd_desc-mean_" in name for name in found) == 2
    assert sum("_rec-rsd_desc-std_" in name for name in found) == 2
    series = [f"{scan_file.stem}_dicom/{kind}/000{k}.dcm" for kind in ("mean", "std") for k in (1, 2)]
    assert set(series) | {scan_file.name, f"{scan_file.stem}.png", "dataset_description.json"} <= set(found)
    assert len(found) == 11
    assert rows[0]["path"] == tmp_path / "out" / scan_file.name
    with h5py.File(rows[0]["path"]) as file:
        source = file.attrs["source_sha256"]
        assert file.attrs["note"] == RESEARCH_ONLY
    sidecar = json.loads(rows[0]["paths"]["nifti std sidecar"].read_text(encoding="utf-8"))
    assert sidecar["Sources"] == [f"urn:sha256:{source}"]
    assert "standard deviation" in sidecar["Description"]
    for name in found:
        data = (tmp_path / "out" / name).read_bytes()
        data = gzip.decompress(data) if name.endswith(".gz") else data
        assert RESEARCH_ONLY.encode() in data, name


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("recon.nii.gz", ["recon.json", "recon.nii.gz"]),
        ("recon.nii", ["recon.json", "recon.nii"]),
        ("recon.h5", ["recon.h5"]),
        ("recon.dcm", ["recon.dcm/magnitude/0001.dcm", "recon.dcm/magnitude/0002.dcm"]),
        ("recon.png", ["recon.png"]),
    ],
)
def test_a_file_name_says_the_format(out, expected, scan_file, tmp_path):
    reconstruct_files([scan_file], tmp_path / "new" / out, method="sense", say=quiet)
    assert names(tmp_path / "new") == expected


def test_formats():
    assert chosen_formats(None, "recon") == ("h5", "png")
    assert chosen_formats(["NIfTI, dicom", "dicom", "h5"], "recon") == ("nifti", "dicom", "h5")
    assert chosen_formats(["nifti,h5"], "a.nii.gz") == ("nifti", "h5")
    with pytest.raises(InputError, match=r"--format jpeg: expected some of h5, nifti"):
        chosen_formats(["h5,jpeg"], "recon")
    with pytest.raises(InputError, match=r"a\.dcm is a dicom file, --format asks for h5"):
        chosen_formats(["h5"], "a.dcm")
    with pytest.raises(InputError, match="one file for 2 scans"):
        reconstruct_files(["a.h5", "b.h5"], "recon.nii.gz", method="sense")
    with pytest.raises(InputError, match="would both be written to sub-ab"):
        reconstruct_files(["a-b.h5", "ab.h5"], "recon", method="sense", formats=["nifti"])


def test_results_are_replaced_only_by_force(scan_file, tmp_path, monkeypatch):
    options = {"formats": ["h5,nifti,dicom"], "say": quiet}
    reconstruct_files([scan_file], tmp_path, method="sense", **options)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    monkeypatch.setattr(workflow, "reconstruct", None)  # refused before any work
    assert reconstruct_files([scan_file], tmp_path, method="sense", formats=["h5"], say=quiet)[0]["skipped"]
    for formats in FORMATS[1:3]:
        with pytest.raises(InputError, match=r"exists; --force replaces it"):
            reconstruct_files([scan_file], tmp_path, method="sense", formats=[formats], say=quiet)
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    reconstruct_files([scan_file], tmp_path, method="sense", acceleration=2, force=True, **options)
    after = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] == after[name]] == ["dataset_description.json"]


def test_force_never_removes_the_files_of_others(scan_file, tmp_path):
    folder = tmp_path / "mine.dcm"
    folder.mkdir()
    (folder / "IM0001.dcm").write_text("somebody's")
    with pytest.raises(InputError, match="folder with other files"):
        reconstruct_files([scan_file], folder, method="sense", force=True, say=quiet)
    (tmp_path / "elsewhere").mkdir()
    label = "sub-" + "".join(c for c in scan_file.stem if c.isalnum())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / label).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(InputError, match="a link there leads out of"):
        reconstruct_files([scan_file], tmp_path / "out", method="sense", formats=["nifti"], force=True, say=quiet)
    assert names(tmp_path) == ["mine.dcm/IM0001.dcm"]


def test_all_formats_or_none(scan_file, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_nifti", full)
    with pytest.raises(InputError, match="No space left on device"):
        reconstruct_files([scan_file], tmp_path / "out", method="sense", formats=["h5,dicom,nifti"], say=quiet)
    assert not (tmp_path / "out").exists()


def test_the_complex_volume_has_the_magnitude_of_the_volume():
    result = reconstruct(placed_scan(), method="zero-filled")
    result = replace(result, complex_images=result.complex_images * np.complex64(np.exp(0.7j)))
    image = complex_volume(result)
    np.testing.assert_allclose(np.abs(image), result.volume, rtol=1e-5)
    assert np.angle(image[0, 2, 1]) == pytest.approx(0.7, abs=0.01)


def test_cfl(tmp_path):
    result = reconstruct(placed_scan(), method="zero-filled")
    paths = written(result, tmp_path, "cfl", stem="scan.1")
    assert names(tmp_path) == ["scan.1.cfl", "scan.1.hdr"]
    text = paths["cfl header"].read_text(encoding="ascii")
    assert text.splitlines()[1].split() == ["9", "8", *["1"] * 11, "3", "1", "1"]
    assert RESEARCH_ONLY in text
    stored = np.fromfile(paths["cfl"], "<c8").reshape((9, 8, 3), order="F")
    assert np.array_equal(stored, complex_volume(result).transpose(1, 2, 0))


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed; Debian package bart")
def test_bart_reads_the_cfl(tmp_path):
    written(reconstruct(placed_scan(), method="zero-filled"), tmp_path, "cfl")
    done = subprocess.run(["bart", "show", "-m", "scan"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "9\t8\t1" in done.stdout


def test_nothing_personal_reaches_any_output(simulated, scan_file, finished_run, tmp_path, capsys, monkeypatch):
    from rsdmri.cli import main

    secret = tmp_path / "DOE^JOHN" / "DOE_JOHN_19600101_MRN778899.h5"
    secret.parent.mkdir()
    secret.write_bytes(scan_file.read_bytes())
    with h5py.File(secret, "r+") as file:
        file.attrs["acquisition"] = "T2 DOE^JOHN 19600101"
        file.attrs["patient_id"] = "MRN778899"
    assert "DOE" in read_scan(secret).acquisition or read_scan(secret).acquisition == "unknown"
    out = tmp_path / "out"
    source = secret.with_name("DOE.dcm")
    source_file(source)
    extra = ",parametric-map" if importlib.util.find_spec("highdicom") else ""
    result = reconstruct(replace(read_scan(secret), geometry=oblique(2)), prior=finished_run, samples=2)
    assert written(result, out, f"h5,nifti,dicom{extra}", stem="placed", source=source)
    command = ["rsdmri", "reconstruct", str(secret), "--prior", str(finished_run), "--out", str(out), "--samples", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--format", "h5,nifti,dicom,png", "--dicom-source", str(source)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0, capsys.readouterr().err
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        if path.suffix == ".png":
            with Image.open(path) as image:
                data += repr(image.info).encode()
        for word in SECRETS:
            assert word.encode() not in data, (path, word)
            assert "".join(f"{c}\0" for c in word).encode() not in data
