"""Reading magnitude volumes: targets and reconstructions of fastMRI-style HDF5 files."""

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rsdmri.data.hdf5 import PathLike, clean, get_dataset, open_hdf5, shown
from rsdmri.errors import InputError

VOLUME_NAMES = ("reconstruction_rss", "reconstruction_esc", "reconstruction")

_MAX_SLICES = 2048
_MAX_SIDE = 4096
_MAX_BYTES = 4 << 30


def read_volume(path: PathLike, names: Sequence[str] = VOLUME_NAMES) -> tuple[NDArray[np.floating[Any]], str]:
    """Return the first data set of ``names`` that ``path`` holds, as a real ``(slice, y, x)`` array, and its name.

    `InputError` when the file is missing, damaged or not HDF5, holds none of ``names``, or the data set is not a
    volume of real numbers, keeps its data elsewhere, or declares more than is read here.
    """
    where = shown(path)
    with open_hdf5(path) as file:
        for name in names:
            dataset = get_dataset(file, name, where)
            if dataset is not None:
                _check(where, name, dataset)
                return dataset[()], name
        raise InputError(_absent(where, names, has_kspace=file.get("kspace", getlink=True) is not None))


def read_optional(path: PathLike, name: str, *, kind: str = "f") -> NDArray[Any] | None:
    """The data set ``name`` of ``path`` as `read_volume` reads it, None where there is none; ``kind`` c: complex."""
    where = shown(path)
    with open_hdf5(path) as file:
        dataset = get_dataset(file, name, where)
        if dataset is None:
            return None
        _check(where, name, dataset, kind)
        return np.asarray(dataset[()])


def read_attributes(path: PathLike, names: Sequence[str]) -> dict[str, str | float]:
    """Attributes of ``path`` among ``names``: words as one printable line, of numbers the mean of the finite ones.

    Left out is what the file does not have, and what is neither words nor up to 2048 numbers.
    """
    found: dict[str, str | float] = {}
    with open_hdf5(path) as file:
        for name in names:
            if name not in file.attrs or not _small(file.attrs.get_id(name)):
                continue
            value = file.attrs[name]
            if isinstance(value, str | bytes):
                found[name] = clean(value, 100)
            elif np.asarray(value).dtype.kind in "biuf":
                numbers = np.asarray(value, np.float64)
                if np.isfinite(numbers).any():
                    found[name] = float(numbers[np.isfinite(numbers)].mean())
    return found


def _small(attribute: h5py.h5a.AttrID) -> bool:
    return attribute.get_storage_size() <= _MAX_SLICES * 8 and len(attribute.shape or ()) < 2


_KINDS = {"f": ((4, 8), "float32 or float64 magnitudes"), "c": ((8, 16), "complex64 or complex128")}


def _check(where: str, name: str, dataset: h5py.Dataset, kind: str = "f") -> None:
    sizes, expected = _KINDS[kind]
    if dataset.dtype.kind != kind or dataset.dtype.itemsize not in sizes:
        raise InputError(f"{where}: '{name}' has type {dataset.dtype}, expected {expected}")
    shape = dataset.shape
    if len(shape) != 3:
        raise InputError(f"{where}: '{name}' has shape {shape}, expected a volume (slice, y, x)")
    if 0 in shape:
        raise InputError(f"{where}: '{name}' is empty, its shape is {shape}; write the volume again")
    if shape[0] > _MAX_SLICES or max(shape[1:]) > _MAX_SIDE or dataset.nbytes > _MAX_BYTES:
        raise InputError(
            f"{where}: '{name}' declares shape {shape} ({dataset.nbytes:,} bytes), beyond what is read here"
            f" ({_MAX_SLICES} slices of {_MAX_SIDE}x{_MAX_SIDE}, 4 GiB); check the file"
        )


def _absent(where: str, names: Sequence[str], *, has_kspace: bool) -> str:
    wanted = " or ".join(names)
    if not has_kspace:
        return f"{where}: no {wanted} in it; give a reconstruction or a fastMRI file with its target"
    return (
        f"{where}: holds k-space but no {wanted}; a prospectively undersampled scan has no fully sampled image to be"
        " scored against, and for a fully sampled one give the file with its target"
    )
