"""Magnitude volumes read, and hostile or damaged files refused in one line."""

import zlib

import h5py
import numpy as np
import pytest

from rsdmri.data.volumes import read_volume
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator


def volume(seed, shape=(2, 24, 20)):
    return numpy_generator("volumes", seed).random(shape).astype(np.float32)


def save(path, **datasets):
    with h5py.File(path, "w") as handle:
        for name, value in datasets.items():
            handle[name] = value
    return path


def linked(path, tmp_path):
    save(tmp_path / "victim.h5", reconstruction=volume(0))
    with h5py.File(path, "w") as handle:
        handle["reconstruction"] = h5py.ExternalLink("victim.h5", "reconstruction")


def looped(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle["reconstruction"] = h5py.SoftLink("/reconstruction")


def dangling(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle["reconstruction"] = h5py.SoftLink("/nothing")


def external(path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 64))
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", (1, 8, 8), "f4", external=[(str(tmp_path / "secret"), 0, 256)])


def virtual(path, tmp_path):
    save(tmp_path / "victim.h5", reconstruction=volume(0))
    layout = h5py.VirtualLayout((2, 24, 20), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "victim.h5"), "reconstruction", shape=(2, 24, 20))
    with h5py.File(path, "w") as handle:
        handle.create_virtual_dataset("reconstruction", layout)


def bomb(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", (2000, 4096, 4096), "f4", chunks=(1, 64, 64))


def truncated(path, tmp_path):
    save(path, reconstruction=volume(0))
    path.write_bytes(path.read_bytes()[:3000])


def flipped(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", data=volume(0), fletcher32=True, chunks=(1, 24, 20))
    data = bytearray(path.read_bytes())
    position = data.find(volume(0)[1].tobytes()[:16])
    data[position] ^= 255
    path.write_bytes(data)


def write(**kwargs):
    return lambda path, tmp_path: save(path, **kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, t: None, "no such file"),
        (lambda p, t: p.write_bytes(b""), "is empty"),
        (lambda p, t: p.write_bytes(zlib.compress(b"x" * 5000)), "not an HDF5 file"),
        (truncated, "cut short"),
        (linked, "external link to another file"),
        (looped, "soft link"),
        (dangling, "soft link"),
        (external, "in another file"),
        (virtual, "virtual data set"),
        (bomb, "declares 134,217,728,000 bytes but stores 0"),
        (flipped, "checksum"),
        (write(kspace=np.ones((1, 8, 8))), "holds k-space but no reconstruction"),
        (write(other=np.ones((1, 8, 8))), "no reconstruction in it"),
        (write(reconstruction=np.ones((8, 8))), r"shape \(8, 8\)"),
        (write(reconstruction=np.ones((0, 8, 8))), "is empty"),
        (write(reconstruction=np.ones((1, 8, 8), np.int16)), "type int16"),
        (write(reconstruction=np.ones((1, 8, 8), np.complex64)), "type complex64"),
        (write(reconstruction=np.ones((1, 8, 8), np.float16)), "type float16"),
        (write(**{"reconstruction/inner": np.ones((1, 8, 8))}), "is a group"),
        (write(reconstruction=np.ones((3000, 1, 1))), "beyond what is read here"),
        (write(reconstruction="text"), "type object"),
    ],
)
def test_hostile_or_damaged_volumes_are_refused_in_one_line(make, message, tmp_path):
    path = tmp_path / "file.h5"
    make(path, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path, ("reconstruction",))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compressed_volumes_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle.create_dataset("reconstruction_rss", data=volume(0), compression="gzip")
    data, name = read_volume(tmp_path / "a.h5")
    assert name == "reconstruction_rss"
    np.testing.assert_array_equal(data, volume(0))
