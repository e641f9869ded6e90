"""K-space from arrays of NumPy, MATLAB and HDF5: one scan from every container, guesses told, bombs refused."""

import contextlib
import os
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import scipy.io

from rsdmri.data.array_files import open_arrays
from rsdmri.data.arrays import read_arrays
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

CANARY = "CANARY19600101"


def draw(*shape):
    parts = numpy_generator("arrays", *shape).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


KSPACE = draw(3, 4, 12, 10)  # slice, coil, y, x
MATLAB = KSPACE.transpose(2, 3, 1, 0)  # y, x, coil, slice


def matlab73(path, *, user_block=True, **arrays):
    """As MATLAB 7.3 writes: axes reversed, complex values as {real, imag}, the class as an attribute."""
    with h5py.File(path, "w", userblock_size=512 if user_block else 0) as file:
        for name, array in arrays.items():
            stored = array.T
            if np.iscomplexobj(array):
                part = array.real.dtype
                pair = np.empty(stored.shape, [("real", part), ("imag", part)])
                pair["real"], pair["imag"] = stored.real, stored.imag
                stored = pair
            file[name] = stored
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    if user_block:
        with open(path, "r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def containers(folder):
    """The same scan in every container: path, and the axes in its own order."""
    np.save(folder / "a.npy", KSPACE)
    np.savez(folder / "a.npz", other=np.ones(3), data=KSPACE)
    np.savez_compressed(folder / "b.npz", data=KSPACE.astype(np.complex128))
    scipy.io.savemat(folder / "a.mat", {"k": MATLAB, "text": CANARY, "s": {"a": 1}, "c": np.array([1, "a"], object)})
    scipy.io.savemat(folder / "b.mat", {"size": np.ones(3), "k": MATLAB.astype("c16")}, do_compression=True)
    matlab73(folder / "c.mat", k=MATLAB, mask=np.ones((12, 10)))
    matlab73(folder / "d.mat", user_block=False, k=MATLAB.astype(np.complex128))
    with h5py.File(folder / "a.h5", "w") as file:
        file["raw"], file["image"] = KSPACE, np.ones((3, 12, 10))
        file.create_group("group")["k"] = KSPACE
    return sorted(folder.iterdir())


def test_every_container_gives_the_same_scan(tmp_path):
    found = containers(tmp_path)
    assert len(found) == 8
    for path in found:
        scan = read_arrays(path)
        assert scan.kspace.tobytes() == KSPACE.tobytes(), path
        assert (scan.name, scan.crop, scan.prospective) == (path.stem, (12, 10), False)
        assert any("axes guessed" in warning and "--axes" in warning for warning in scan.warnings)
        axes = "y x coil slice" if path.suffix == ".mat" else "slice coil y x"
        named = read_arrays(path, axes=axes)
        assert named.kspace.tobytes() == KSPACE.tobytes()
        assert named.warnings == ()


def test_values_of_matlab_files_are_those_of_scipy(tmp_path):
    whole = np.arange(1, 4 * 5 * 3 + 1).reshape(4, 5, 3) * (2 - 1j)  # MATLAB keeps these as bytes
    for compressed in (False, True):
        scipy.io.savemat(tmp_path / "a.mat", {"k": whole, "longer_than_four": draw(4, 5, 3)}, do_compression=compressed)
        loaded = scipy.io.loadmat(tmp_path / "a.mat")
        for name in ("k", "longer_than_four"):
            scan = read_arrays(tmp_path / "a.mat", variable=name, axes="y,x,coil")
            np.testing.assert_array_equal(scan.kspace[0], loaded[name].transpose(2, 0, 1))


def small_matlab(order):
    """A MATLAB file by hand, in either byte order, whose parts are stored as bytes."""

    def element(kind, data):
        return struct.pack(f"{order}2I", kind, len(data)) + data + bytes(-len(data) % 8)

    count = 2 * 3 * 2
    parts = element(6, struct.pack(f"{order}2I", 0x0806, 0)) + element(5, struct.pack(f"{order}3i", 2, 3, 2))
    parts += struct.pack(f"{order}I", 1 << 16 | 1) + b"k\0\0\0"  # a name of one byte lies in its tag
    parts += element(2, bytes(range(1, count + 1))) + element(3, struct.pack(f"{order}{count}h", *range(count)))
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    values = np.arange(1, count + 1) + 1j * np.arange(count)
    return head + element(14, parts), values.reshape(2, 3, 2, order="F")


@pytest.mark.parametrize("order", ["<", ">"])
def test_matlab_files_of_either_byte_order(tmp_path, order):
    raw, values = small_matlab(order)
    (tmp_path / "a.mat").write_bytes(raw)
    np.testing.assert_array_equal(scipy.io.loadmat(tmp_path / "a.mat")["k"], values)
    scan = read_arrays(tmp_path / "a.mat", axes="y x coil")
    np.testing.assert_array_equal(scan.kspace[0], values.transpose(2, 0, 1))


# Axes


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("coil y x", (4, 12, 10)),
        ("y x", (12, 10)),
        ("x y", (10, 12)),
        ("x slice y coil", (10, 3, 12, 4)),
        ("y x coil slice frame", (12, 10, 4, 3, 2)),
        ("frame coil y x", (2, 4, 12, 10)),
    ],
)
def test_named_axes(tmp_path, axes, shape):
    array, names = draw(*shape), axes.split()
    np.save(tmp_path / "a.npy", array)
    scan = read_arrays(tmp_path / "a.npy", variable="a", axes=axes, frame=1 if "frame" in names else None)
    assert scan.warnings == ()
    for s, c, y, x in np.ndindex(*scan.kspace.shape):
        place = {"slice": s, "coil": c, "y": y, "x": x, "frame": 1}
        assert scan.kspace[s, c, y, x] == array[tuple(place[name] for name in names)]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 12, 10), "coil y x"),
        ((12, 10, 4), "y x coil"),
        ((3, 4, 12, 10), "slice coil y x"),
        ((12, 10, 4, 3), "y x coil slice"),
        ((5, 3, 4, 12, 10), "frame slice coil y x"),
        ((12, 10, 4, 3, 5), "y x coil slice frame"),
    ],
)
def test_guesses_take_the_larger_image_and_say_so(tmp_path, shape, axes):
    np.save(tmp_path / "a.npy", draw(*shape))
    guessed, named = read_arrays(tmp_path / "a.npy"), read_arrays(tmp_path / "a.npy", axes=axes)
    assert guessed.kspace.tobytes() == named.kspace.tobytes()
    assert f"axes guessed: {axes} of 'a'" in guessed.warnings[0]
    if "frame" in axes:
        assert "frame 0 of 5 read; the others with --frame 1 to 4" in named.warnings
        other = read_arrays(tmp_path / "a.npy", axes=axes, frame=4)
        assert not np.array_equal(other.kspace, named.kspace)
        assert other.warnings == ()


def test_equal_sizes_follow_the_program_that_wrote(tmp_path):
    array = draw(8, 8, 8)
    np.save(tmp_path / "a.npy", array)
    scipy.io.savemat(tmp_path / "a.mat", {"k": array})
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npy").kspace[0], array)
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.mat").kspace[0], array.transpose(2, 0, 1))


def test_a_guess_takes_the_skipped_lines_for_phase_encodes(tmp_path):
    lines = np.array([1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1], bool)
    array = np.where(lines[:, None], KSPACE, 0)
    np.save(tmp_path / "a.npy", array)
    scan = read_arrays(tmp_path / "a.npy")
    np.testing.assert_array_equal(scan.mask, lines[None])
    np.testing.assert_array_equal(scan.kspace, array.swapaxes(-1, -2))
    assert "slice coil x y" in scan.warnings[0]
    named = read_arrays(tmp_path / "a.npy", axes="slice coil y x")
    np.testing.assert_array_equal(named.kspace, array)


def test_a_partial_echo_is_no_phase_encode(tmp_path):
    np.save(tmp_path / "a.npy", np.where(np.arange(12)[:, None] > 3, KSPACE, 0))
    assert "slice coil y x" in read_arrays(tmp_path / "a.npy").warnings[0]


def test_volumes(tmp_path):
    np.save(tmp_path / "a.npy", draw(2, 6, 5, 8))
    scan = read_arrays(tmp_path / "a.npy", axes="coil y z x")
    assert scan.kspace.shape == (5, 2, 6, 8)
    assert any("partition axis" in warning for warning in scan.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": "y x coil"}, r"--axes names 3 axes, a complex64 3x4x12x10 has 4"),
        ({"axes": "y x coil echo"}, r"unknown axis 'echo'; name them of y, x, z, coil, slice, frame"),
        ({"axes": "y y coil x"}, "name each axis once"),
        ({"axes": "slice coil y z"}, "y and x among them"),
        ({"axes": "slice z y x"}, "exclude each other"),
        ({"variable": "k\x1b"}, r"no array 'k\?'; it holds a complex64 3x4x12x10"),
        ({"frame": 1}, "--frame 1: 'a' has no axis of frames"),
        ({"axes": "slice frame y x", "frame": 4}, "--frame 4: expected frame 0 to 3"),
        ({"axes": "slice frame y x", "frame": -1}, "--frame -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    np.save(tmp_path / "a.npy", KSPACE)
    with pytest.raises(InputError, match=message) as refusal:
        read_arrays(tmp_path / "a.npy", **options)
    assert str(refusal.value).isprintable()


def test_several_or_no_candidates_name_what_there_is(tmp_path):
    np.savez(tmp_path / "a.npz", k=KSPACE, maps=KSPACE, mask=np.ones(10))
    with pytest.raises(InputError, match=r"--variable NAME: k complex64 3x4x12x10; maps .*; mask float64 10"):
        read_arrays(tmp_path / "a.npz")
    assert read_arrays(tmp_path / "a.npz", variable="maps").kspace.tobytes() == KSPACE.tobytes()
    with pytest.raises(InputError, match="mask float64 10 is not complex"):
        read_arrays(tmp_path / "a.npz", variable="mask")
    np.savez(tmp_path / "a.npz", mask=np.ones((3, 4, 5)))
    with pytest.raises(InputError, match=r"no complex array of 3 to 5 axes; it holds mask float64 3x4x5"):
        read_arrays(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", draw(2, 2, 2, 2, 4, 4))
    with pytest.raises(InputError, match="has 6 axes; name them with --axes"):
        read_arrays(tmp_path / "a.npy", variable="a")
    np.save(tmp_path / "a.npy", np.ones((300, 300, 301), np.complex64))
    with pytest.raises(InputError, match=r"300 coils.*axes were guessed, name them with --axes"):
        read_arrays(tmp_path / "a.npy")


# Damaged and hostile files


def npy_bytes(shape, descr="<c8", data=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def zipped(path, raw, kind=zipfile.ZIP_STORED, name="k.npy"):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(name, raw)
    return path


def npy_bomb(path):
    path.write_bytes(npy_bytes((1 << 40, 4, 8, 10)))
    return "cut short"


def npz_bomb(path):
    zipped(path, npy_bytes((1, 4, 8, 10)))
    return "'k.npy' declares 2,560 bytes but holds 0"


def npz_of_zeros(path):
    raw = npy_bytes((1, 1, 3000, 3000), data=bytes(3000 * 3000 * 8))
    zipped(path, raw, zipfile.ZIP_DEFLATED)
    return "not a plausible scan"


def npz_of_objects(path):
    np.savez(path, k=np.array([{"a": CANARY}] * 8, dtype=object).reshape(2, 2, 2))
    return "no complex array of 3 to 5 axes; it holds k object 2x2x2"


def npz_of_one_name_twice(path):
    good, bad = npy_bytes((2, 2, 2), data=bytes(64)), npy_bytes((1 << 20, 1 << 10, 8), data=bytes(64))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("k.npy", good)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("k.npy", bad)
    return "'k.npy' declares"


def npz_cut(path):
    np.savez(path, k=KSPACE)
    os.truncate(path, path.stat().st_size - 30)
    return "damaged"


def npz_with_flipped_bytes(path):
    np.savez(path, k=KSPACE)
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 255
    path.write_bytes(raw)
    return "damaged.*CRC"


def npz_with_a_broken_header(path):
    zipped(path, b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((\n" + bytes(64))
    return "damaged"


def mat(path, **arrays):
    scipy.io.savemat(path, arrays, do_compression=True, appendmat=False)
    return path


def mat_cut(path):
    mat(path, k=MATLAB)
    os.truncate(path, path.stat().st_size - 30)
    return "cut short or damaged"


def mat_with_flipped_bytes(path):
    mat(path, k=MATLAB)
    raw = bytearray(path.read_bytes())
    raw[-500] ^= 255
    path.write_bytes(raw)
    return "'k' is damaged"


def mat_struct(path):
    mat(path, k={"kspace": MATLAB}, c=np.array([MATLAB, 1], object))
    return r"no complex array of 3 to 5 axes; it holds k struct 1x1; c cell 1x2"


def mat_chosen_struct(path):
    mat(path, a={"kspace": MATLAB}, k=MATLAB[..., None, None])
    return r"no complex array of 3 to 5 axes"


def mat_element(shape, real, flags=0x0806, imaginary=None, pack=True):
    def element(kind, data):
        return struct.pack("<2I", kind, len(data)) + data + bytes(-len(data) % 8)

    parts = element(6, struct.pack("<2I", flags, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    parts += element(1, b"kspace") + element(9, real) + element(9, real if imaginary is None else imaginary)
    packed = zlib.compress(element(14, parts), 1)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return head + (struct.pack("<2I", 15, len(packed)) + packed if pack else element(14, parts))


def mat_of_zeros(path):
    path.write_bytes(mat_element((3000, 3000, 4), bytes(8 << 20)))
    return "not a plausible scan"


def mat_of_more_than_declared(path):
    path.write_bytes(mat_element((2, 2, 2), bytes(32 << 20)))
    return "'kspace' is damaged or not the complex array that it declares"


def mat_of_less_than_declared(path):
    path.write_bytes(mat_element((20, 20, 2), bytes(64), pack=False))
    return "not the complex array that it declares"


def mat_of_negative_size(path):
    path.write_bytes(mat_element((2, -2, 2), bytes(64)))
    return "cut short or damaged"


def mat_twice(path):
    raw = mat_element((2, 2, 2), bytes(64))
    path.write_bytes(raw + raw[128:])
    return "holds 'kspace' twice"


def mat_of_nan(path):
    path.write_bytes(mat_element((2, 2, 2), np.full(8, np.nan).tobytes()))
    return "8 acquired samples of slice 0 are NaN|NaN or infinite"


def mat73_linked(path):
    other = path.with_name("victim.h5")
    with h5py.File(other, "w") as file:
        file["k"] = KSPACE
        file[CANARY] = 1
    with h5py.File(path, "w") as file:
        file["k"] = h5py.ExternalLink(str(other), "k")
        file["s"] = h5py.SoftLink("/k")
    return "it holds no arrays"


def mat73_virtual(path):
    other = path.with_name("victim.h5")
    with h5py.File(other, "w") as file:
        file["k"] = KSPACE
    layout = h5py.VirtualLayout(KSPACE.shape, "c8")
    layout[:] = h5py.VirtualSource(str(other), "k", KSPACE.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("k", layout)
    return "virtual"


def mat73_never_written(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("k", (2, 2, 64, 64), "c8", chunks=(1, 1, 64, 64))
    return "never written"


def mat73_bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("k", (2000, 64, 4096, 4096), "c8", chunks=(1, 1, 64, 64))
    return "not a plausible scan"


def mat73_written_in_part(path):
    with h5py.File(path, "w") as file:
        made = file.create_dataset("k", (4, 4, 2048, 2048), "c8", chunks=(1, 1, 64, 64))
        made[0, 0, :64, :64] = 1
    return "declares 536,870,912 bytes but stores 32,768; not a plausible scan"


def mat73_references(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
        file.create_dataset("k", data=np.full((2, 2, 2), file["x"].ref), dtype=h5py.ref_dtype)
    return "no complex array of 3 to 5 axes; it holds k object 2x2x2; x float64 3"


def text(path):
    path.write_text(CANARY * 50)
    return "is not an HDF5 file"


def empty(path):
    path.touch()
    return "empty"


def folder(path):
    path.mkdir()
    return "is a folder"


def missing(path):
    return "no such file"


BAD = [
    *(
        npy_bomb,
        npz_bomb,
        npz_of_one_name_twice,
        npz_of_zeros,
        npz_of_objects,
        npz_cut,
        npz_with_flipped_bytes,
        npz_with_a_broken_header,
    ),
    *(mat_cut, mat_with_flipped_bytes, mat_struct, mat_chosen_struct, mat_of_zeros, mat_of_more_than_declared),
    *(mat_of_less_than_declared, mat_of_negative_size, mat_twice, mat_of_nan, mat73_linked, mat73_virtual),
    *(mat73_never_written, mat73_written_in_part, mat73_bomb, mat73_references, text, empty, folder, missing),
]


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__)
def test_bad_files_are_refused_in_one_line(tmp_path, build):
    path = tmp_path / ("a.npz" if build.__name__.startswith("npz") else "a.bin")
    message = build(path)
    with pytest.raises(InputError, match=message) as refusal:
        read_arrays(path)
    said = str(refusal.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert CANARY not in said
    assert len(said) < len(str(path)) + 300


@pytest.mark.parametrize("name", ["a.npz", "a.mat", "b.mat", "c.mat"])
def test_random_damage_never_escapes_as_another_error(tmp_path, name):
    containers(tmp_path)
    whole = (tmp_path / name).read_bytes()
    generator = numpy_generator("damage", name)
    read = 0
    for number in range(60):
        raw = bytearray(whole)
        for place in generator.integers(0, min(len(raw), 3000 if number % 2 else len(raw)), 3):
            raw[place] = generator.integers(256)
        (tmp_path / name).write_bytes(raw[: generator.integers(len(raw))] if number % 5 == 0 else raw)
        with contextlib.suppress(InputError):
            read_arrays(tmp_path / name)
            read += 1
    assert read < 60


def test_values_are_read_only_of_the_variable_asked_for(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"broken": MATLAB, "k": MATLAB}, do_compression=True)
    raw = bytearray((tmp_path / "a.mat").read_bytes())
    raw[3000] ^= 255  # in the values of the first one
    (tmp_path / "a.mat").write_bytes(raw)
    assert read_arrays(tmp_path / "a.mat", variable="k").kspace.tobytes() == KSPACE.tobytes()
    with open_arrays(tmp_path / "a.mat") as found, pytest.raises(InputError, match="'broken' is damaged"):
        found[0].read((0, 0, 0, 0))
