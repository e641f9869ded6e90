"""Reading magnitude volumes: targets and reconstructions of fastMRI-style HDF5 files.

Files may come from anywhere, so nothing in them is followed or believed: only fixed names are looked up, links to
elsewhere, external storage and virtual data sets are refused, and sizes are checked before memory is taken.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rsdmri.errors import InputError

VOLUME_NAMES = ("reconstruction_rss", "reconstruction_esc", "reconstruction")

_MAX_SLICES = 2048
_MAX_SIDE = 4096
_MAX_BYTES = 4 << 30
_MAX_INFLATION = 1000  # declared over stored bytes; more is a size bomb, not compression,
_SMALL = 64 << 20  # except in volumes so small that it does not matter


def read_volume(
    path: str | os.PathLike[str], names: Sequence[str] = VOLUME_NAMES
) -> tuple[NDArray[np.floating[Any]], str]:
    """Return the first data set of ``names`` that ``path`` holds, as a real ``(slice, y, x)`` array, and its name.

    `InputError` when the file is missing, damaged or not HDF5, holds none of ``names``, or the data set is not a
    volume of real numbers, points outside the file, or declares more than it can hold.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .h5 file or a folder of them")
    try:
        with h5py.File(path, "r") as handle:
            present = [n for n in (*names, "kspace") if handle.get(n, getlink=True) is not None]
            if present in ([], ["kspace"]):
                raise InputError(_absent(path, names, has_kspace=bool(present)))
            name = present[0]
            dataset = _dataset(path, handle, name)
            _check(path, name, dataset)
            return dataset[()], name
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_unreadable(path, error)) from None


def _dataset(path: Path, handle: h5py.File, name: str) -> h5py.Dataset:
    if not isinstance(handle.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{path}: {name} is a link to elsewhere and is not followed; store the data in the file")
    dataset = handle[name]
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: {name} is a group, expected a data set (slice, y, x)")
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{path}: {name} keeps its data in other files and is not read; store the data in the file")
    return dataset


def _check(path: Path, name: str, dataset: h5py.Dataset) -> None:
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (4, 8):
        raise InputError(f"{path}: {name} has type {dataset.dtype}, expected float32 or float64 magnitudes")
    shape = dataset.shape
    if shape is None or len(shape) != 3:
        raise InputError(f"{path}: {name} has shape {shape}, expected a volume (slice, y, x)")
    if 0 in shape:
        raise InputError(f"{path}: {name} is empty, its shape is {shape}")
    declared, stored = dataset.nbytes, dataset.id.get_storage_size()
    too_large = shape[0] > _MAX_SLICES or max(shape[1:]) > _MAX_SIDE or declared > _MAX_BYTES
    if too_large or declared > max(_SMALL, _MAX_INFLATION * stored):
        raise InputError(
            f"{path}: {name} declares shape {shape} ({declared:,} bytes, {stored:,} stored), beyond what is read here"
            f" ({_MAX_SLICES} slices of {_MAX_SIDE}x{_MAX_SIDE}, 4 GiB); check the file"
        )


def _absent(path: Path, names: Sequence[str], *, has_kspace: bool) -> str:
    wanted = " or ".join(names)
    if not has_kspace:
        return f"{path}: no {wanted} in it; give a reconstruction or a fastMRI file with its target"
    return (
        f"{path}: holds k-space but no {wanted}; a prospectively undersampled scan has no fully sampled image to be"
        " scored against, and for a fully sampled one give the file with its target"
    )


def _unreadable(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if path.stat().st_size == 0 or "signature not found" in text:
        return f"{path}: not an HDF5 file; give a .h5 file"
    if "truncated" in text:
        return f"{path}: the file is cut short ({path.stat().st_size:,} bytes are there); download it again"
    return f"{path}: damaged or not readable ({text[:160]}); check it or download it again"
