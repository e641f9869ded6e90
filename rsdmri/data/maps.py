"""Reading coil maps that a user gives: NumPy ``.npy``, HDF5, or a BART pair ``.cfl`` and ``.hdr``, none trusted."""

from pathlib import Path

import h5py
import numpy as np

from rsdmri.data.array_files import open_npy
from rsdmri.data.bart import only_axes, open_cfl, pair_base
from rsdmri.data.hdf5 import PathLike, clean, get_dataset, open_hdf5, top_names
from rsdmri.data.plain_files import file_errors
from rsdmri.errors import InputError

DATASETS = ("maps", "sensitivity_maps", "sens_maps")


def read_maps(path: PathLike, kspace: tuple[int, int, int, int]) -> np.ndarray:
    """Coil maps of a scan whose k-space has shape ``kspace`` (slice, coil, y, x), as complex64 of that shape.

    The file holds (coil, y, x) or one slice for all slices, or (slice, coil, y, x); with several sets of maps
    (slice or 1, set, coil, y, x), and so is the result. In HDF5 the data set is called one of ``DATASETS``. For BART
    ``path`` is either file of the pair, or its name without ending.

    Raises:
        InputError: a file that is missing, damaged, hostile, cut short or of another format; maps that are not complex,
            not finite, all zero, or do not fit the scan. Sizes are checked before memory is taken.
    """
    with file_errors(path) as where:
        ending = Path(path).suffix.lower()
        if ending == ".npy":
            return _checked(open_npy(path, where), kspace, where)
        if ending in (".cfl", ".hdr") or (not ending and pair_base(path) is not None):
            return _checked(_open_bart(path, where), kspace, where)
        if ending in (".h5", ".hdf5"):
            with open_hdf5(path) as file:
                return _checked(_find_dataset(file, where), kspace, where)
        raise InputError(f"{where}: coil maps end in .npy, .h5, .hdf5, .cfl or .hdr; convert the file to one of these")


def _find_dataset(file: h5py.File, where: str) -> h5py.Dataset:
    for name in DATASETS:
        found = get_dataset(file, name, where)
        if found is not None:
            return found
    raise InputError(
        f"{where}: no data set {' or '.join(map(repr, DATASETS))} (it holds {top_names(file)}); call the coil maps"
        f" '{DATASETS[0]}'"
    )


def _open_bart(path: PathLike, where: str) -> np.ndarray:
    """The maps of a BART pair, mapped, as (slice, coil, y, x) or (slice, set, coil, y, x)."""
    axes = ("READ", "PHS1", "COIL", "MAPS", "SLICE")
    array = only_axes(where, open_cfl(path), axes, "put slices on axis 13 (bart transpose 2 13)").transpose(
        4, 3, 2, 0, 1
    )
    return array if array.shape[1] > 1 else array[:, 0]


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
