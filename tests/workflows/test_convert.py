"""Conversion: round trips bit for bit, nothing overwritten or lost in silence, the emulated coil as fastMRI has it."""

import dataclasses
import sys
from types import ModuleType

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from rsdmri import cli
from rsdmri.data.fastmri import read_scan, write_scan
from rsdmri.data.scan import Geometry, Header
from rsdmri.errors import InputError
from rsdmri.physics.fourier import ifft2c, rss
from rsdmri.runtime import numpy_generator
from rsdmri.workflows import convert as module
from rsdmri.workflows.convert import convert
from rsdmri.workflows.reconstruct import load_scan

LINES = np.array([1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1], bool)
HEADER = Header((16, 12, 1), (8, 10, 1), (220.0, 200.0, 5.0), (0, 12))


def draw(*shape):
    parts = numpy_generator("convert", *shape).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def silent(line):
    pass


def same(one, other, *fields):
    for field in fields:
        a, b = getattr(one, field), getattr(other, field)
        assert a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b, field


def padded(kspace):
    kspace = kspace.copy()
    kspace[..., :2] = kspace[..., -1:] = 0
    return kspace


@pytest.fixture(params=["full", "undersampled", "points", "padded", "single", "odd"])
def scan(request, tmp_path):
    path, kspace = tmp_path / "scan.h5", draw(3, 4, 16, 12)
    match request.param:
        case "full":
            write_scan(path, kspace, target=np.abs(draw(3, 8, 10)), header=HEADER, attrs={"acquisition": "AXT2"})
        case "undersampled":
            write_scan(path, np.where(LINES, kspace, 0), mask=LINES, header=HEADER)
        case "points":
            points = numpy_generator("points").random((16, 12)) < 0.5
            write_scan(path, np.where(points, kspace, 0), mask=points)
        case "padded":
            write_scan(path, padded(kspace), header=dataclasses.replace(HEADER, padding=(2, 11)))
        case "single":
            write_scan(path, kspace[:, 0], emulated=np.abs(draw(3, 16, 12)))
        case "odd":
            write_scan(path, draw(1, 3, 15, 11))
    return path


def test_fastmri_to_fastmri_keeps_everything(scan, tmp_path):
    convert(scan, tmp_path / "b.h5", say=silent)
    one, other = read_scan(scan), read_scan(tmp_path / "b.h5")
    same(
        one,
        other,
        "kspace",
        "mask",
        "absent",
        "crop",
        "prospective",
        "acquisition",
        "target",
        "target_source",
        "header",
    )


def test_fastmri_to_cfl_and_back(scan, tmp_path):
    said = []
    convert(scan, tmp_path / "b.cfl", say=said.append)
    convert(tmp_path / "b.cfl", tmp_path / "c.h5", say=silent)
    one, other = read_scan(scan), read_scan(tmp_path / "c.h5")
    same(one, other, "kspace", "mask", "absent", "prospective")
    assert ("lost: reference image" in said) == (one.target is not None)
    assert ("lost: name of the acquisition" in said) == (one.acquisition != "unknown")
    assert ("lost: image size, smaller than k-space" in said) == (one.crop != one.kspace.shape[-2:])
    assert any("header" in line for line in said) == (one.header is not None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.cfl", "b.hdr", "c.h5", "scan.h5"]


def test_fastmri_to_ismrmrd_and_back(scan, tmp_path):
    pytest.importorskip("rsdmri.data.ismrmrd", reason="this version does not read ISMRMRD")
    one = read_scan(scan)
    if one.mask.shape[0] > 1:
        with pytest.raises(InputError, match="ISMRMRD cannot hold"):
            convert(scan, tmp_path / "b.mrd", say=silent)
        assert not (tmp_path / "b.mrd").exists()
        return
    convert(scan, tmp_path / "b.mrd", say=silent)
    convert(tmp_path / "b.mrd", tmp_path / "c.h5", say=silent)
    same(one, read_scan(tmp_path / "c.h5"), "kspace", "mask", "absent", "prospective", "crop")


def test_arrays_to_fastmri(tmp_path):
    kspace = draw(2, 3, 16, 12)
    scipy.io.savemat(tmp_path / "a.mat", {"other": kspace, "k": np.where(LINES, kspace, 0).transpose(2, 3, 1, 0)})
    reading = {"variable": "k", "axes": "y x coil slice"}
    convert(tmp_path / "a.mat", tmp_path / "b.h5", reading=reading, say=silent)
    with h5py.File(tmp_path / "b.h5") as file:
        assert set(file) == {"kspace", "mask"}
        np.testing.assert_array_equal(file["kspace"], np.where(LINES, kspace, 0))
        np.testing.assert_array_equal(file["mask"], LINES)


def test_partial_fourier_stays_absent_where_the_header_does_not_say(tmp_path, monkeypatch):
    """Of a scan from a scanner whose record knows its geometry but whose header has no limits."""
    write_scan(tmp_path / "a.h5", padded(draw(2, 3, 16, 12)))
    place = Geometry((1.5, 2.0), 4.0, (0, 1, 0), (1, 0, 0), ((0, 0, 0), (0, 0, 4)))
    header = Header((32, 12, 1), (16, 10, 1))
    scan = dataclasses.replace(read_scan(tmp_path / "a.h5"), geometry=place, header=header, crop=(16, 10))
    monkeypatch.setattr(module, "load_scan", lambda path, **_: scan)
    said = []
    convert(tmp_path / "a.h5", tmp_path / "b.h5", say=said.append)
    back = read_scan(tmp_path / "b.h5")
    same(scan, back, "kspace", "mask", "absent", "prospective", "crop")
    assert back.header.fov_mm == (24.0, 20.0, 4.0)
    assert "lost: position and orientation of the slices" in said


def test_ismrmrd_is_written_beside_and_renamed(tmp_path, monkeypatch):
    written = []

    def write_ismrmrd(path, scan):
        written.append((path.name, scan.name))
        path.write_bytes(b"x")

    stand_in = ModuleType("rsdmri.data.ismrmrd")
    stand_in.write_ismrmrd = write_ismrmrd
    monkeypatch.setitem(sys.modules, "rsdmri.data.ismrmrd", stand_in)
    monkeypatch.setattr("rsdmri.data.ismrmrd", stand_in, raising=False)
    write_scan(tmp_path / "a.h5", draw(1, 2, 8, 8))
    for name in ("b.mrd", "b.ismrmrd.h5"):
        convert(tmp_path / "a.h5", tmp_path / name, say=silent)
        assert (tmp_path / name).read_bytes() == b"x"
    assert all(name.startswith(".tmp-") for name, _ in written)
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_is_overwritten_without_being_told(tmp_path):
    write_scan(tmp_path / "a.h5", draw(1, 2, 8, 8))
    (tmp_path / "folder.h5").mkdir()
    for name in ("b.h5", "c.hdr"):
        (tmp_path / name).write_text("mine")
    for out, message in (
        ("b.h5", "b.h5: is there already; .*--force"),
        ("c.cfl", "c.hdr: is there already"),
        ("a.h5", "is the scan itself"),
        ("folder.h5", "is a folder"),
        ("none/b.h5", "no such folder"),
        ("b.nii", "the ending says the format"),
    ):
        with pytest.raises(InputError, match=message):
            convert(tmp_path / "a.h5", tmp_path / out, say=silent)
    assert (tmp_path / "b.h5").read_text() == (tmp_path / "c.hdr").read_text() == "mine"
    with pytest.raises(InputError, match="scan itself"):
        convert(tmp_path / "a.h5", tmp_path / "a.h5", force=True, say=silent)
    convert(tmp_path / "a.h5", tmp_path / "b.h5", force=True, say=silent)
    assert read_scan(tmp_path / "b.h5").kspace.shape == (1, 2, 8, 8)


def test_a_bad_scan_leaves_nothing(tmp_path):
    (tmp_path / "a.h5").write_text("no scan")
    with pytest.raises(InputError, match=r"a\.h5: is not an HDF5 file"):
        convert(tmp_path / "a.h5", tmp_path / "b.cfl", say=silent)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_personal_data_stay_behind(tmp_path):
    planted = ("DOE^JOHN", "19600101", "MRN0042")
    xml = (
        "<ismrmrdHeader><subjectInformation><patientName>DOE^JOHN</patientName><patientID>MRN0042</patientID>"
        "<patientBirthdate>19600101</patientBirthdate></subjectInformation><encoding><encodedSpace><matrixSize>"
        "<x>16</x><y>12</y><z>1</z></matrixSize></encodedSpace></encoding></ismrmrdHeader>"
    )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["ismrmrd_header"], file["comment"] = draw(2, 3, 16, 12), np.bytes_(xml), planted[0]
        file.attrs.update(patient_id=planted[2], acquisition=planted[0], birth=planted[1])
    scipy.io.savemat(tmp_path / "a.mat", {"k": draw(16, 12, 3), "patient": list(planted)})
    said = []
    for source in ("a.h5", "a.mat"):
        for out in ("b.h5", "b.cfl"):
            convert(tmp_path / source, tmp_path / out, force=True, say=said.append)
            written = b"".join(
                (tmp_path / name).read_bytes() for name in ("b.h5", "b.cfl", "b.hdr") if (tmp_path / name).exists()
            )
            assert not any(secret.encode() in written for secret in planted)
    assert not any(secret in " ".join(said) for secret in planted)


# Emulated single coil


def test_the_emulated_coil_has_fastmris_layout(tmp_path, simulated):
    source = sorted(simulated.glob("*.h5"))[0]
    convert(source, tmp_path / "esc.h5", emulate_single_coil=True, say=silent)
    many, one = read_scan(source), read_scan(tmp_path / "esc.h5")
    with h5py.File(tmp_path / "esc.h5") as file:
        assert {"kspace", "reconstruction_esc", "reconstruction_rss"} <= set(file)
        assert file["kspace"].shape == (2, 32, 32)
        combined = rss(ifft2c(torch.from_numpy(many.kspace))).numpy()
        top, left = ((n - m) // 2 for n, m in zip(combined.shape[1:], many.crop, strict=True))
        combined = combined[:, top : top + many.crop[0], left : left + many.crop[1]]
        np.testing.assert_allclose(file["reconstruction_rss"], combined, rtol=1e-4, atol=1e-7)
    assert one.target_source == "reconstruction_esc"
    image = ifft2c(torch.from_numpy(one.kspace[:, 0])).abs().numpy()
    np.testing.assert_allclose(
        image[:, top : top + one.crop[0], left : left + one.crop[1]], one.target, rtol=1e-4, atol=1e-7
    )
    same(many, one, "mask", "absent", "crop", "prospective", "acquisition")
    # one linear combination of the coils, the same for every slice, near the root sum of squares
    coils = many.kspace.transpose(0, 2, 3, 1).reshape(-1, 4)
    weights = np.linalg.lstsq(coils, one.kspace.ravel(), rcond=None)[0]
    assert np.abs(coils @ weights - one.kspace.ravel()).max() < 1e-5 * np.abs(one.kspace).max()
    bright = combined > 0.3 * combined.max()
    assert np.median(np.abs(one.target - combined)[bright] / combined[bright]) < 0.35


def test_the_noise_of_the_emulated_coil(tmp_path, monkeypatch):
    write_scan(tmp_path / "a.h5", draw(2, 3, 16, 12))
    mixing = draw(3, 3).astype(np.complex128)
    scan = dataclasses.replace(load_scan(tmp_path / "a.h5"), noise_cov=mixing @ mixing.conj().T)
    monkeypatch.setattr(module, "load_scan", lambda path, **_: scan)
    emulated = convert(tmp_path / "a.h5", tmp_path / "b.cfl", emulate_single_coil=True, say=silent)
    coils, combined = scan.kspace.transpose(0, 2, 3, 1).reshape(-1, 3), emulated.kspace.ravel()
    weights = np.linalg.lstsq(coils, combined, rcond=None)[0]
    expected = np.linalg.norm(weights @ mixing) ** 2
    np.testing.assert_allclose(emulated.noise_cov, [[expected]], rtol=1e-4)


def test_the_emulated_coil_needs_many_coils_and_all_samples(tmp_path):
    write_scan(tmp_path / "one.h5", draw(1, 8, 12))
    write_scan(tmp_path / "few.h5", np.where(LINES, draw(1, 2, 8, 12), 0), mask=LINES)
    for name, message in (("one", "one coil already"), ("few", "fully sampled")):
        with pytest.raises(InputError, match=message):
            convert(tmp_path / f"{name}.h5", tmp_path / "b.h5", emulate_single_coil=True, say=silent)
    assert not (tmp_path / "b.h5").exists()


# The command


def test_the_command(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "a.npz", k=draw(2, 16, 12, 3), maps=draw(2, 16, 12, 3))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rsdmri", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    out = tmp_path / "b.h5"
    code, _, said = call("convert", tmp_path / "a.npz", out)
    assert code == 2
    assert said.count("\n") == 1
    assert "--variable NAME" in said
    choice = ("--variable", "k", "--axes", "frame y x coil", "--frame", 1)
    code, said, _ = call("convert", tmp_path / "a.npz", out, *choice, "--emulate-singlecoil")
    assert code == 0
    assert "fastMRI HDF5, 1 slices, 1 coils, 16 x 12" in said
    code, said, _ = call("inspect", tmp_path / "a.npz", *choice)
    assert code == 0
    assert "1 slices, 3 coils, 16 readout samples x 12 phase encodes" in said
    code, _, _ = call(
        "reconstruct", tmp_path / "a.npz", "--method", "zero-filled", "--out", tmp_path / "recon", *choice
    )
    assert code == 0
    assert (tmp_path / "recon" / "a.h5").is_file()
