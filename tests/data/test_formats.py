"""A file is what its content says, whatever its name; what is no scan is refused in one line."""

import os
import struct
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import scipy.io
from test_arrays import matlab73

from rsdmri.data.bart import write_cfl
from rsdmri.data.fastmri import write_scan
from rsdmri.data.formats import Format, detect_format, read_any
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator
from rsdmri.workflows.inspect_scan import inspect_scan
from rsdmri.workflows.reconstruct import load_scan, reconstruct

TWIX = Path(os.environ.get("RSDMRI_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "twix"
CANARY = "CANARY19600101"


def draw(*shape):
    parts = numpy_generator("formats", *shape).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


KSPACE = draw(2, 3, 12, 10)


def fastmri(path):
    write_scan(path, KSPACE)
    return Format.fastmri


def ismrmrd(path):
    with h5py.File(path, "w") as file:
        file["dataset/data"], file["dataset/xml"] = np.ones(3), "<a/>"
    return Format.ismrmrd


def cmrxrecon(path):
    matlab73(path, kspace_full=KSPACE.transpose(2, 3, 1, 0))
    return Format.cmrxrecon


def skm_tea(path):
    with h5py.File(path, "w") as file:
        file["kspace"], file["target"] = draw(2, 12, 10, 2, 3), np.ones(3)
    return Format.skm_tea


def npy(path):
    with open(path, "wb") as file:
        np.save(file, KSPACE)
    return Format.arrays


def npz(path):
    with open(path, "wb") as file:
        np.savez(file, k=KSPACE)
    return Format.arrays


def mat5(path):
    scipy.io.savemat(path, {"k": KSPACE.transpose(2, 3, 1, 0)}, appendmat=False)
    return Format.arrays


def mat73(path):
    matlab73(path, k=KSPACE.transpose(2, 3, 1, 0))
    return Format.arrays


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["raw"] = KSPACE
    return Format.arrays


def twix_vd(path):
    head = struct.pack("<2I", 0, 1) + bytes(8) + struct.pack("<Q", 10240)
    path.write_bytes(head.ljust(10240, b"\0") + struct.pack("<2I", 9000, 6) + b"Config\0" + bytes(64))
    return Format.twix


def twix_vb(path):
    path.write_bytes(struct.pack("<2I", 70000, 5) + b"Config\0" + bytes(500))
    return Format.twix


KINDS = [fastmri, ismrmrd, cmrxrecon, skm_tea, npy, npz, mat5, mat73, hdf5, twix_vd, twix_vb]
OURS = [fastmri, cmrxrecon, npy, npz, mat5, mat73, hdf5]


@pytest.mark.parametrize("ending", ["", ".h5", ".mat", ".npy", ".dat", ".txt", ".cfl"])
@pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
def test_the_content_says_what_a_file_is(tmp_path, build, ending):
    expected = build(tmp_path / f"a{ending}")
    assert detect_format(tmp_path / f"a{ending}") == expected


@pytest.mark.parametrize("build", OURS, ids=lambda build: build.__name__)
def test_every_format_gives_the_same_scan(tmp_path, build):
    build(tmp_path / "scan.dat")
    scan = read_any(tmp_path / "scan.dat")
    assert scan.kspace.tobytes() == KSPACE.tobytes()
    assert scan.name == "scan"


def test_bart_pairs_by_header(tmp_path):
    write_cfl(tmp_path / "a.cfl", KSPACE)
    for name in ("a", "a.cfl", "a.hdr"):
        assert detect_format(tmp_path / name) == Format.bart
        assert read_any(tmp_path / name).kspace.tobytes() == KSPACE.tobytes()
    (tmp_path / "a.cfl").unlink()
    with pytest.raises(InputError, match=r"'a.cfl' is missing"):
        read_any(tmp_path / "a")
    (tmp_path / "b.cfl").write_bytes(bytes(80))
    with pytest.raises(InputError, match=r"'b.hdr' is missing"):
        read_any(tmp_path / "b.cfl")
    (tmp_path / "b.hdr").write_text("no header")
    with pytest.raises(InputError, match="hdr needs '# Dimensions'"):
        read_any(tmp_path / "b.cfl")


@pytest.mark.parametrize(
    ("build", "module", "name"), [(ismrmrd, "ismrmrd", "read_ismrmrd"), (twix_vd, "twix", "read_twix")]
)
def test_readers_of_scanner_files_are_called(tmp_path, monkeypatch, build, module, name):
    build(tmp_path / "a.bin")
    stand_in = ModuleType(f"rsdmri.data.{module}")
    setattr(stand_in, name, lambda path, *, keep_oversampling: ("read", path))
    monkeypatch.setitem(sys.modules, f"rsdmri.data.{module}", stand_in)
    monkeypatch.setattr(f"rsdmri.data.{module}", stand_in, raising=False)
    assert read_any(tmp_path / "a.bin") == ("read", tmp_path / "a.bin")


@pytest.mark.parametrize("path", sorted(TWIX.glob("*.dat")) or [None])
def test_real_twix_files_are_known(path):
    if path is None:
        pytest.skip("no twix files here (set RSDMRI_SHARED_DATA)")
    assert detect_format(path) == Format.twix


def test_options_choose(tmp_path):
    kspace = draw(2, 12, 10, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["k"] = draw(2, 3, 12, 10), kspace
    assert not np.array_equal(read_any(tmp_path / "a.h5").kspace, kspace)
    scan = load_scan(tmp_path / "a.h5", variable="k", axes="frame y x coil", frame=1)
    np.testing.assert_array_equal(scan.kspace[0], kspace[1].transpose(2, 0, 1))
    with pytest.raises(InputError, match="--frame 1: is not for fastMRI HDF5"):
        read_any(tmp_path / "a.h5", frame=1)
    write_cfl(tmp_path / "c.cfl", KSPACE)
    with pytest.raises(InputError, match=r"c\.cfl: BART cfl says itself what it holds"):
        read_any(tmp_path / "c.cfl", axes="coil y x")
    skm_tea(tmp_path / "b.h5")
    assert read_any(tmp_path / "b.h5", frame=1).kspace.shape == (2, 3, 12, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (CANARY.encode() * 90, "is not an HDF5 file .*nor a BART pair, NumPy, MATLAB or Siemens twix file; convert"),
        (b"GIF89a" + bytes(500), "is not an HDF5 file"),
        (struct.pack("<2IQQ", 0, 1, 0, 1 << 40) + bytes(600), "is not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "damaged|is not an HDF5 file"),
        (b"\x93NUMPY" + bytes(20), "damaged"),
        (b"PK\x03\x04" + bytes(200), "damaged"),
        (b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + bytes(7), "cut short or damaged"),
        (b"x", "is not an HDF5 file"),
    ],
)
def test_what_is_no_scan_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "scan.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        read_any(path)
    said = str(refusal.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert CANARY not in said


@pytest.mark.parametrize("path", ["a\0.h5", "x" * 5000, "x" * 5000 + ".cfl"])
def test_strange_paths_are_refused(path):
    with pytest.raises(InputError):
        read_any(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(InputError, match="a pipe or a device"):
        read_any(tmp_path / "pipe.h5")


def test_links_out_of_the_file_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "victim.h5", "w") as file:
        file["dataset/data"], file["kspace"], file["maps"] = KSPACE, draw(2, 3, 4, 2, 3), KSPACE
    for name in ("dataset", "kspace", "raw"):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file[name] = h5py.ExternalLink(str(tmp_path / "victim.h5"), name)
        with pytest.raises(InputError, match=r"external link|no complex array"):
            read_any(tmp_path / "a.h5")


def test_workflows_take_every_format(tmp_path):
    write_cfl(tmp_path / "scan.cfl", draw(1, 4, 32, 32))
    np.save(tmp_path / "other.npy", draw(4, 32, 32))
    assert reconstruct(tmp_path / "scan.cfl", method="zero-filled").volume.shape == (1, 32, 32)
    rows = inspect_scan(tmp_path / "other.npy", axes="coil x y")
    assert ("scan", "other") in rows
    assert not any(name == "warning" and "axes" in value for name, value in rows)
