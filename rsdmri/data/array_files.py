"""The arrays inside NumPy, MATLAB and HDF5 files: their names, shapes and types first, values only of the one chosen.

Nothing in these files is trusted: no Python objects, cells, structs or links; declared sizes are compared with what is
stored before memory is taken. Shapes are those of the program that wrote the file: MATLAB's order for MATLAB files,
whose version 7.3 is HDF5 with the axes reversed and complex values as pairs {real, imag}.
"""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import h5py
import numpy as np

from rsdmri.data.hdf5 import PathLike, clean, get_dataset, open_hdf5, shown
from rsdmri.data.matlab import MatVariable, load_mat5, mat5_variables
from rsdmri.data.plain_files import file_errors, file_size, first_bytes, refuse_packed_bomb
from rsdmri.errors import InputError

NUMPY, ZIP, MATLAB_73 = b"\x93NUMPY", b"PK\x03\x04", b"MATLAB 7.3"
Selection = tuple[int | slice, ...]
_MOST_VARIABLES = 1000
_HEADER_ERRORS = (SyntaxError, TokenError, RecursionError, TypeError, KeyError)  # of NumPy, on a header that is no dict


@dataclass(frozen=True, eq=False)
class Variable:
    """A named array of a file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """NumPy's name of its type, or the program's where it is no array of numbers."""
    is_complex: bool
    matlab: bool
    """Whether MATLAB wrote it: its habits of axes, first axis fastest."""
    read: Callable[[Selection], np.ndarray]
    """Values at one index or slice for each axis; only valid while the file is open."""

    def __str__(self) -> str:
        return f"{clean(self.name, 30)} {self.kind} {'x'.join(map(str, self.shape))}"


@contextmanager
def open_arrays(path: PathLike) -> Iterator[list[Variable]]:
    """The arrays of a NumPy, MATLAB or HDF5 file, by its content; `InputError` for any other file."""
    start = first_bytes(path, 128)
    if not start.startswith((NUMPY, ZIP)) and not is_mat5(start):
        with open_hdf5(path) as file:
            yield _hdf5_variables(file, shown(path))
        return
    with file_errors(path) as where:
        if start.startswith(NUMPY):
            array = open_npy(path, where)
            found = [_plain(Path(path).stem, array.shape, array.dtype, lambda chosen: array[chosen])]
        elif start.startswith(ZIP):
            found = _npz_variables(path, where)
        else:
            found = _mat5_variables(path, where)
    yield found


def is_mat5(start: bytes) -> bool:
    """Whether a file that begins so is MATLAB version 5 to 7: a text of 124 bytes, a version, an endian mark."""
    return len(start) == 128 and start[124:] in (b"\x00\x01IM", b"\x01\x00MI")


def is_matlab_hdf5(file: h5py.File) -> bool:
    """Whether an HDF5 file is MATLAB's: its text before the data, the class of its variables, or {real, imag}."""
    with open(file.filename, "rb") as raw:
        if raw.read(len(MATLAB_73)) == MATLAB_73:
            return True
    variables = [file[name] for name in _plain_names(file)]
    return any("MATLAB_class" in one.attrs or complex_pair(one.dtype) is not None for one in variables)


def open_npy(path: PathLike, where: str) -> np.ndarray:
    """The array of a ``.npy`` file, mapped: NumPy compares its declared size with the file's, no memory is taken."""
    if not first_bytes(path, len(NUMPY)).startswith(NUMPY):
        raise InputError(f"{where}: is not a .npy file; write it with numpy.save")
    try:
        return np.load(path, mmap_mode="r")
    except (*_HEADER_ERRORS, ValueError, EOFError, OSError, OverflowError) as error:
        raise InputError(
            f"{where}: damaged, cut short or not plain numbers ({clean(error, 100)}); save a complex64 array again"
        ) from None


def _plain(
    name: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[Selection], np.ndarray], matlab: bool = False
) -> Variable:
    is_complex = dtype.kind == "c" and dtype.itemsize in (8, 16)
    return Variable(name, tuple(int(size) for size in shape), clean(dtype, 20), is_complex, matlab, read)


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Errors of unpacking as `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, *_HEADER_ERRORS) as error:
        raise InputError(f"{where}: damaged or not plain numbers ({clean(error, 100)}); write it again") from None


def _npz_variables(path: PathLike, where: str) -> list[Variable]:
    """Arrays of a NumPy archive; each member's header is read, and compared with the size of its data."""
    found = []
    with _damage(where), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if len(members) > _MOST_VARIABLES:
            raise InputError(f"{where}: holds {len(members):,} arrays, at most {_MOST_VARIABLES:,} are read")
        for member in members:
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(stream)
                data = member.file_size - stream.tell()
            declared = dtype.itemsize * math.prod(map(int, shape))
            if not dtype.hasobject and (declared != data or member.compress_size > file_size(path)):
                raise InputError(
                    f"{where}: '{clean(member.filename, 30)}' declares {declared:,} bytes but holds {data:,}; "
                    "save it again"
                )
            refuse_packed_bomb(where, member.filename, member.file_size, member.compress_size)
            found.append(_plain(member.filename[:-4], shape, dtype, _npz_reader(path, where, member)))
    return found


def _npz_reader(path: PathLike, where: str, member: zipfile.ZipInfo) -> Callable[[Selection], np.ndarray]:
    def read(chosen: Selection) -> np.ndarray:
        with _damage(where), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            values: np.ndarray = np.lib.format.read_array(stream)
            return values[chosen]

    return read


def _mat5_variables(path: PathLike, where: str) -> list[Variable]:
    def reader(one: MatVariable) -> Callable[[Selection], np.ndarray]:
        return lambda chosen: load_mat5(path, where, one)[chosen]

    return [
        Variable(
            one.name, one.shape, one.kind + (" complex" if one.is_complex else ""), one.is_complex, True, reader(one)
        )
        for one in mat5_variables(path, where)
    ]


def _hdf5_variables(file: h5py.File, where: str) -> list[Variable]:
    """Plain data sets at the top of an HDF5 file; links and groups are passed over."""
    matlab = is_matlab_hdf5(file)
    found = []
    for name in _plain_names(file):
        data = get_dataset(file, name, where)
        if data is None:
            continue
        dtype = complex_pair(data.dtype) or data.dtype
        shape = tuple(reversed(data.shape)) if matlab else data.shape
        found.append(_plain(name, shape, dtype, _hdf5_reader(data, where, name, matlab), matlab))
    return found


def complex_pair(dtype: np.dtype) -> np.dtype | None:
    """Complex type of a compound {real, imag} of floats, as MATLAB 7.3 stores complex values; None for any other."""
    if dtype.names != ("real", "imag"):
        return None
    parts = [dtype[name] for name in dtype.names]
    if any(part.kind != "f" or part.itemsize not in (4, 8) for part in parts) or parts[0] != parts[1]:
        return None
    return np.dtype(np.complex64 if parts[0].itemsize == 4 else np.complex128)


def _hdf5_reader(data: h5py.Dataset, where: str, name: str, matlab: bool) -> Callable[[Selection], np.ndarray]:
    def read(chosen: Selection) -> np.ndarray:
        refuse_unwritten(data, where, name)
        try:
            block = np.asarray(data[chosen[::-1] if matlab else chosen])
        except (OSError, RuntimeError):
            raise InputError(
                f"{where}: '{clean(name)}' cannot be read (checksum, compression or disk error); copy it again"
            ) from None
        target = complex_pair(data.dtype)
        if target is not None:
            values = np.empty(block.shape, np.complex64)
            with np.errstate(over="ignore", invalid="ignore"):
                values.real, values.imag = block["real"], block["imag"]
            block = values
        return block.T if matlab else block

    return read


def refuse_unwritten(data: h5py.Dataset, where: str, name: str) -> None:
    """`InputError` for a data set that was never written, or declares far more than is stored."""
    stored = data.id.get_storage_size()
    if stored == 0:
        raise InputError(f"{where}: '{clean(name)}' was declared but never written; write the data again")
    refuse_packed_bomb(where, name, data.size * data.dtype.itemsize, stored)


def _plain_names(file: h5py.File) -> list[str]:
    """Names of data sets at the top of ``file`` that are no links, the first ones of many."""
    names = []
    for number, name in enumerate(file):
        if number >= _MOST_VARIABLES:
            break
        with suppress(KeyError, RuntimeError, OSError):
            if (
                isinstance(file.get(name, getlink=True), h5py.HardLink)
                and file.get(name, getclass=True) is h5py.Dataset
            ):
                names.append(name)
    return names
