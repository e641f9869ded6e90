"""Reading coil maps that a user gives: NumPy ``.npy``, HDF5, or a BART pair ``.cfl`` and ``.hdr``, none trusted.

BART (https://mrirecon.github.io/bart): the header's second line is the size of up to 16 axes, READ, PHS1, PHS2, COIL,
MAPS, ..., SLICE = 13; the data are complex64, first axis fastest. READ is y here and PHS1 is x.
"""

import os
from pathlib import Path
from tokenize import TokenError

import h5py
import numpy as np

from rsdmri.data.hdf5 import PathLike, clean, get_dataset, open_hdf5, shown, top_names
from rsdmri.errors import InputError

DATASETS = ("maps", "sensitivity_maps", "sens_maps")
_COIL, _MAPS, _SLICE, _AXES = 3, 4, 13, 16
_HEADER_BYTES = 64 << 10
_MAGIC = b"\x93NUMPY"
_HEADER_ERRORS = (SyntaxError, TokenError, RecursionError, TypeError, KeyError)  # of NumPy, on a header that is no dict


def read_maps(path: PathLike, kspace: tuple[int, int, int, int]) -> np.ndarray:
    """Coil maps of a scan whose k-space has shape ``kspace`` (slice, coil, y, x), as complex64 of that shape.

    The file holds (coil, y, x) or one slice for all slices, or (slice, coil, y, x); with several sets of maps
    (slice or 1, set, coil, y, x), and so is the result. In HDF5 the data set is called one of ``DATASETS``. For BART
    ``path`` is either file of the pair, or its name without ending.

    Raises:
        InputError: a file that is missing, damaged, hostile, cut short or of another format; maps that are not complex,
            not finite, all zero, or do not fit the scan. Sizes are checked before memory is taken.
    """
    where, source = shown(path), Path(path)
    ending = source.suffix.lower()
    try:
        if ending == ".npy":
            return _checked(_open_numpy(source, where), kspace, where)
        if ending in (".cfl", ".hdr") or (not ending and source.with_name(source.name + ".hdr").is_file()):
            return _checked(_open_bart(source if not ending else source.with_suffix(""), where), kspace, where)
        if ending in (".h5", ".hdf5"):
            with open_hdf5(path) as file:
                return _checked(_find_dataset(file, where), kspace, where)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; check the path") from None
    except PermissionError:
        raise InputError(f"{where}: cannot be read (permission denied); check its permissions") from None
    except MemoryError:
        raise InputError(f"{where}: does not fit in memory; give maps of fewer slices") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({clean(error.strerror or error)}); check the path") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: cannot be read ({clean(error)}); check the path") from None
    raise InputError(f"{where}: coil maps end in .npy, .h5, .hdf5, .cfl or .hdr; convert the file to one of these")


def _open_numpy(path: Path, where: str) -> np.ndarray:
    """The array of a ``.npy`` file, mapped: NumPy compares its declared size with the file's, no memory is taken."""
    if path.is_dir():
        raise InputError(f"{where}: is a folder; give a file with coil maps")
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
    if not start:
        raise InputError(f"{where}: is empty (0 bytes); write the coil maps again")
    if start != _MAGIC:
        raise InputError(f"{where}: is not a .npy file; write it with numpy.save")
    try:
        return np.load(path, mmap_mode="r")
    except (*_HEADER_ERRORS, ValueError, EOFError, OSError, OverflowError) as error:
        raise InputError(
            f"{where}: damaged, cut short or not plain numbers ({clean(error, 100)}); save a complex64 array again"
        ) from None


def _find_dataset(file: h5py.File, where: str) -> h5py.Dataset:
    for name in DATASETS:
        found = get_dataset(file, name, where)
        if found is not None:
            return found
    raise InputError(
        f"{where}: no data set {' or '.join(map(repr, DATASETS))} (it holds {top_names(file)}); call the coil maps"
        f" '{DATASETS[0]}'"
    )


def _open_bart(base: Path, where: str) -> np.ndarray:
    """The array of a BART pair, mapped, as (slice, coil, y, x) or (slice, set, coil, y, x)."""
    header, data = (base.with_name(base.name + ending) for ending in (".hdr", ".cfl"))
    for part in (header, data):
        if not part.is_file():
            raise InputError(f"{where}: '{clean(part.name)}' is missing; a BART array is a pair of .cfl and .hdr")
    sizes = _bart_sizes(header, where)
    declared, stored = 8, os.stat(data).st_size
    for size in sizes:
        declared *= size
    if stored < declared:
        raise InputError(f"{where}: .cfl is cut short ({stored:,} of {declared:,} bytes); copy it again")
    if stored > declared:
        raise InputError(
            f"{where}: .cfl has {stored:,} bytes but its header declares {declared:,}; copy both files again"
        )
    used = (0, 1, _COIL, _MAPS, _SLICE)
    other = [f"axis {axis} has {size}" for axis, size in enumerate(sizes) if axis not in used and size != 1]
    if other:
        raise InputError(
            f"{where}: {', '.join(other)}; expected READ (0), PHS1 (1), COIL (3), MAPS (4) and SLICE (13) only:"
            " put slices on axis 13 (bart transpose 2 13)"
        )
    array = np.memmap(data, dtype="<c8", mode="r", shape=tuple(sizes[axis] for axis in used), order="F")
    return array.transpose(4, 3, 2, 0, 1) if sizes[_MAPS] > 1 else array[:, :, :, 0].transpose(3, 2, 0, 1)


def _bart_sizes(header: Path, where: str) -> list[int]:
    """Sizes of the 16 axes of a BART array."""
    with open(header, "rb") as file:
        text = file.read(_HEADER_BYTES + 1)
    if len(text) > _HEADER_BYTES:
        raise InputError(f"{where}: .hdr has more than {_HEADER_BYTES:,} bytes; that is no BART header")
    lines = [line.strip() for line in text.decode("ascii", "replace").splitlines()]
    title = lines.index("# Dimensions") + 1 if "# Dimensions" in lines else 0
    line = lines[title] if title < len(lines) else ""
    words = line.split()
    fits = 0 < len(words) <= _AXES and all(word.isascii() and word.isdigit() and len(word) < 12 for word in words)
    if title == 0 or not fits or any(int(word) == 0 for word in words):
        raise InputError(
            f"{where}: .hdr needs '# Dimensions' and a line of up to {_AXES} positive sizes, got '{clean(line)}'"
        )
    return [int(word) for word in words] + [1] * (_AXES - len(words))


def _checked(found: np.ndarray | h5py.Dataset, kspace: tuple[int, int, int, int], where: str) -> np.ndarray:
    """Maps in memory as complex64, the same for all slices where the file holds one; shape and type before values."""
    slices, coils, height, width = kspace
    shape = tuple(int(size) for size in found.shape)
    if found.dtype.kind != "c" or found.dtype.itemsize not in (8, 16):
        raise InputError(f"{where}: coil maps have type {clean(found.dtype)}; store complex64")
    fits = len(shape) in (3, 4, 5) and shape[-3:] == (coils, height, width)
    fits = fits and (len(shape) == 3 or shape[0] in (1, slices))
    if not fits or (len(shape) == 5 and not 0 < shape[1] <= coils):
        raise InputError(
            f"{where}: coil maps {shape} do not fit k-space {kspace}; expected {(coils, height, width)},"
            f" {kspace}, or (slice or 1, set, coil, y, x) with at most {coils} sets"
        )
    values = np.asarray(found[()] if isinstance(found, h5py.Dataset) else found)
    with np.errstate(over="ignore", invalid="ignore"):  # too large for complex64: infinite, reported as such
        values = values.astype(np.complex64, order="C")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError(
            f"{where}: {bad:,} of {values.size:,} coil map values are NaN or infinite; repair or zero them"
        )
    if not values.any():
        raise InputError(f"{where}: coil maps are zero everywhere; write them again")
    values = values[None] if len(shape) == 3 else values
    return np.array(np.broadcast_to(values, (slices, *values.shape[1:]))) if len(values) != slices else values
