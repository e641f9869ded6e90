"""Coil maps from users' files: every format gives the same arrays, every bad file is refused in one line."""

import os
import shutil
import subprocess

import h5py
import numpy as np
import pytest

from rsdmri.data.maps import DATASETS, read_maps
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

SHAPE = (3, 2, 8, 10)
ENDINGS = (".npy", ".h5", ".cfl")


def random(shape=SHAPE, key=0):
    rng = numpy_generator("maps", key, *shape)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


MAPS = random()


def write_bart(base, maps, *, sizes=None):
    """Maps (slice, set, coil, y, x) as a BART pair, written by hand: READ = y fastest, then PHS1 = x."""
    slices, sets, coils, height, width = maps.shape
    sizes = sizes or [height, width, 1, coils, sets, *[1] * 8, slices, 1, 1]
    base.with_name(base.name + ".hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + " \n# Command\nx\n")
    path = base.with_name(base.name + ".cfl")
    with open(path, "wb") as file:
        for one in maps:
            for single in one:
                for coil in single:
                    file.write(np.ascontiguousarray(coil.T).tobytes())
    return path


def write(folder, ending, maps, name="maps"):
    path = folder / f"{name}{ending}"
    if ending == ".npy":
        np.save(path, maps)
    elif ending == ".h5":
        with h5py.File(path, "w") as file:
            file[DATASETS[0]] = maps
    else:
        maps = maps[None] if maps.ndim == 3 else maps
        write_bart(folder / name, maps[:, None] if maps.ndim == 4 else maps)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_array_of_every_format(tmp_path, ending):
    found = read_maps(write(tmp_path, ending, MAPS), SHAPE)
    assert found.dtype == np.complex64
    np.testing.assert_array_equal(found, MAPS)
    assert found.flags.writeable
    assert found.flags.c_contiguous


@pytest.mark.parametrize("ending", ENDINGS)
def test_maps_of_one_slice_serve_all(tmp_path, ending):
    found = read_maps(write(tmp_path, ending, MAPS[0]), SHAPE)
    np.testing.assert_array_equal(found, np.stack([MAPS[0]] * 3))
    assert found.flags.writeable


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("slices", [1, 3])
def test_several_sets(tmp_path, ending, slices):
    sets = random((slices, 2, 2, 8, 10))
    found = read_maps(write(tmp_path, ending, sets), SHAPE)
    np.testing.assert_array_equal(found, np.broadcast_to(sets, (3, 2, 2, 8, 10)))


@pytest.mark.parametrize("name", DATASETS)
def test_names_in_hdf5(tmp_path, name):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file[name] = MAPS.astype(np.complex128)
    np.testing.assert_array_equal(read_maps(tmp_path / "a.hdf5", SHAPE), MAPS)


def test_fortran_order_double_precision_and_big_endian_arrays(tmp_path):
    for dtype in ("<c16", ">c8"):
        np.save(tmp_path / "a.npy", np.asfortranarray(MAPS.astype(dtype)))
        np.testing.assert_array_equal(read_maps(str(tmp_path / "a.npy"), SHAPE), MAPS)


def test_a_bart_pair_by_any_of_its_names(tmp_path):
    write(tmp_path, ".cfl", MAPS, "sens.v2")
    for name in ("sens.v2.cfl", "sens.v2.hdr"):
        np.testing.assert_array_equal(read_maps(tmp_path / name, SHAPE), MAPS)
    write(tmp_path, ".cfl", MAPS, "sens")
    np.testing.assert_array_equal(read_maps(tmp_path / "sens", SHAPE), MAPS)


@pytest.mark.external
@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
def test_bart_itself_reads_the_axes_so(tmp_path):
    """BART's own slice of one coil, slice and column is ours."""
    write(tmp_path, ".cfl", MAPS)
    command = ["bart", "slice", "3", "1", "13", "2", "1", "7", str(tmp_path / "maps"), str(tmp_path / "part")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found = np.fromfile(tmp_path / "part.cfl", np.complex64)
    np.testing.assert_array_equal(found, MAPS[2, 1, :, 7])
    whole = subprocess.run(["bart", "show", "-m", str(tmp_path / "maps")], check=True, capture_output=True, timeout=60)
    assert b"8\t10\t1\t2\t1" in whole.stdout


def missing(folder):
    return folder / "none.npy", "no such file"


def missing_hdf5(folder):
    return folder / "none.h5", "no such file"


def other_format(folder):
    (folder / "a.mat").write_bytes(b"x")
    return folder / "a.mat", "coil maps end in"


def a_folder(folder):
    (folder / "a.npy").mkdir()
    return folder / "a.npy", "folder"


def empty(folder):
    (folder / "a.npy").touch()
    return folder / "a.npy", "empty"


def not_numpy(folder):
    (folder / "a.npy").write_bytes(b"CANARY" * 100)
    return folder / "a.npy", "not a .npy file"


def cut_short(folder):
    path = write(folder, ".npy", MAPS)
    os.truncate(path, path.stat().st_size - 8)
    return path, "cut short"


def pickled(folder):
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object))
    return folder / "a.npy", "not plain numbers"


def numpy_bomb(folder):
    path = folder / "a.npy"
    with open(path, "wb") as file:
        header = {"descr": "<c8", "fortran_order": False, "shape": (1 << 40, 2, 8, 10)}
        np.lib.format.write_array_header_1_0(file, header)
    return path, "cut short"


def broken_header(folder):
    path = folder / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': (((((\n" + bytes(64))
    return path, "damaged"


def real(folder):
    return write(folder, ".npy", MAPS.real), "type float32"


def other_size(folder):
    return write(folder, ".npy", MAPS[..., :-1]), r"\(3, 2, 8, 9\) do not fit k-space \(3, 2, 8, 10\)"


def other_coils(folder):
    return write(folder, ".h5", random((3, 4, 8, 10))), r"\(3, 4, 8, 10\) do not fit"


def other_slices(folder):
    return write(folder, ".cfl", MAPS[:2]), r"\(2, 2, 8, 10\) do not fit"


def too_many_sets(folder):
    return write(folder, ".npy", random((3, 3, 2, 8, 10))), "at most 2 sets"


def no_values(folder):
    return write(folder, ".npy", MAPS[:0]), "do not fit|damaged"


def not_a_number(folder):
    maps = MAPS.copy()
    maps[0, 0, :2, 3] = np.nan
    return write(folder, ".npy", maps), "2 of 480 coil map values are NaN"


def too_large_for_float32(folder):
    return write(folder, ".npy", MAPS.astype(np.complex128) * 1e300), "480 of 480"


def zeros(folder):
    return write(folder, ".h5", 0 * MAPS), "zero everywhere"


def other_name(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["csm\x1b[31m"] = MAPS
    return folder / "a.h5", r"no data set 'maps' or .* \(it holds csm\?\[31m\)"


def external_link(folder):
    write(folder, ".h5", MAPS, "victim")
    with h5py.File(folder / "a.h5", "w") as file:
        file["maps"] = h5py.ExternalLink(str(folder / "victim.h5"), "maps")
    return folder / "a.h5", "external link"


def hdf5_bomb(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("maps", (2000, 64, 4096, 4096), "c8", chunks=(1, 1, 64, 64))
    return folder / "a.h5", "not a plausible scan"


def not_hdf5(folder):
    (folder / "a.h5").write_bytes(b"CANARY" * 100)
    return folder / "a.h5", "not an HDF5 file"


def bart_without_header(folder):
    path = write(folder, ".cfl", MAPS)
    path.with_suffix(".hdr").unlink()
    return path, r"'maps.hdr' is missing"


def bart_without_data(folder):
    write(folder, ".cfl", MAPS).unlink()
    return folder / "maps.hdr", r"'maps.cfl' is missing"


def bart_cut_short(folder):
    path = write(folder, ".cfl", MAPS)
    os.truncate(path, 3000)
    return path, r"cut short \(3,000 of 3,840 bytes\)"


def bart_too_long(folder):
    path = write(folder, ".cfl", MAPS)
    with open(path, "ab") as file:
        file.write(bytes(8))
    return path, "3,848 bytes but its header declares 3,840"


def bart_header(text):
    def build(folder):
        path = write(folder, ".cfl", MAPS)
        path.with_suffix(".hdr").write_bytes(text)
        return path, "hdr needs '# Dimensions'|hdr has more than|cut short"

    build.__name__ = "bart_header_" + repr(text[:24])
    return build


def bart_slices_on_phs2(folder):
    path = write_bart(folder / "maps", MAPS[:, None], sizes=[8, 10, 3, 2, *[1] * 12])
    return path, r"axis 2 \(PHS2\) has 3.*bart transpose 2 13"


BAD = [
    *(missing, missing_hdf5, other_format, a_folder, empty, not_numpy, cut_short, pickled, numpy_bomb, broken_header),
    *(
        real,
        other_size,
        other_coils,
        other_slices,
        too_many_sets,
        no_values,
        not_a_number,
        too_large_for_float32,
        zeros,
    ),
    *(other_name, external_link, hdf5_bomb, not_hdf5),
    *(bart_without_header, bart_without_data, bart_cut_short, bart_too_long, bart_slices_on_phs2),
    *map(
        bart_header,
        (
            b"",
            b"8 10 1 2\n",
            b"# Dimensions\n",
            b"# Dimensions\n8 10 -1 2\n",
            b"# Dimensions\n8 10 0 2\n",
            b"# Dimensions\n8 ten 1 2\n",
            b"# Dimensions\n" + b"1 " * 17 + b"\n",
            b"# Dimensions\n" + b"99999999999 " * 16 + b"\n",
            b"# Dimensions\n" + b"9" * 5000 + b"\n",
            b"# Dimensions\n\xff\x00\x1b[31m\n",
            b"#" * 70000,
        ),
    ),
]


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__)
def test_bad_files_are_refused_in_one_line(tmp_path, build):
    path, message = build(tmp_path)
    with pytest.raises(InputError, match=message) as refusal:
        read_maps(path, SHAPE)
    text = str(refusal.value)
    assert text.isprintable()
    assert path.name in text
    assert "CANARY" not in text


@pytest.mark.parametrize("path", ["a\0.npy", "x" * 5000 + ".npy", "x" * 5000 + ".cfl"])
def test_strange_paths_are_refused(path):
    with pytest.raises(InputError):
        read_maps(path, SHAPE)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_files_are_refused(tmp_path):
    path = write(tmp_path, ".npy", MAPS)
    path.chmod(0)
    with pytest.raises(InputError, match="permission"):
        read_maps(path, SHAPE)
