"""Layouts of public raw data sets other than fastMRI's: CMRxRecon and SKM-TEA; M4Raw's is fastMRI's.

CMRxRecon (https://github.com/CmrxRecon/CMRxRecon2024, ChallengeDataFormat; 2023 to 2025): MATLAB files with
``kspace_full``, ``kspace_sub04`` and the like, ``kus`` or ``kspace`` of axes (kx, ky, coil, slice, frame), black blood
without frames, ``kspace_single_...`` without coils. Undersampled along ky: kx is y here and ky is x. Masks are files of
their own; the k-space is zero where they are.

SKM-TEA (https://github.com/StanfordMIMI/skm-tea, DATASET.md): HDF5 with ``kspace`` (x, ky, kz, echo, coil), transformed
along the readout x already, ``maps`` (x, ky, kz, coil, set), ``masks/poisson_6.0x`` and others (ky, kz), smaller than
k-space, which is padded with zeros. Positions along x are the slices, ky is y and kz is x.

M4Raw (https://github.com/mylyu/M4Raw, M4Raw_tutorial.ipynb): HDF5 with ``kspace`` (slice, coil, y, x),
``reconstruction_rss`` and ``ismrmrd_header``, one file for each repetition: read by `rsdmri.data.fastmri`.
"""

import h5py
import numpy as np

from rsdmri.data.array_files import Variable, open_arrays, refuse_unwritten
from rsdmri.data.arrays import chosen_frame, read_variable
from rsdmri.data.hdf5 import PathLike, clean, get_dataset, open_hdf5, shown
from rsdmri.data.kspace import cartesian_scan, check_sizes
from rsdmri.data.plain_files import file_errors
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

_FACTORS = ("full", "sub04", "sub08", "sub10")
CMRXRECON = (*(f"kspace_{each}" for each in _FACTORS), "kus", "kspace", *(f"kspace_single_{each}" for each in _FACTORS))


def is_cmrxrecon(variable: Variable) -> bool:
    """Whether an array of a MATLAB file has a name and the number of axes of CMRxRecon's k-space."""
    fewest = 5 if variable.name == "kspace" else 4  # a name that others use too
    axes = (3, 4) if variable.name.startswith("kspace_single") else range(fewest, 6)
    return variable.matlab and variable.is_complex and variable.name in CMRXRECON and len(variable.shape) in axes


def read_cmrxrecon(path: PathLike, *, frame: int | None = None) -> Scan:
    """K-space of one frame of a CMRxRecon file.

    Args:
        path: MATLAB file.
        frame: which cardiac phase or contrast, from 0; None takes the first, with a warning.

    Raises:
        InputError: see `read_arrays`; a file without CMRxRecon's k-space.
    """
    with file_errors(path) as where, open_arrays(path) as found:
        chosen = next((one for one in found if is_cmrxrecon(one)), None)
        if chosen is None:
            listed = "; ".join(map(str, found[:8])) or "no arrays"
            raise InputError(f"{where}: no k-space of CMRxRecon; it holds {listed}; give the file with kspace_full")
        single = chosen.name.startswith("kspace_single")
        names = ("y", "x", "slice", "frame") if single else ("y", "x", "coil", "slice", "frame")
        note = f"CMRxRecon layout: kx of '{chosen.name}' is the readout; if not, name the axes with --axes"
        return read_variable(where, chosen, names[: len(chosen.shape)], frame, name=safe_stem(path), notes=(note,))


def is_skm_tea(file: h5py.File) -> bool:
    """Whether an open HDF5 file has SKM-TEA's k-space of 5 complex axes, and its maps, masks or images."""
    data = file["kspace"] if isinstance(file.get("kspace", getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.ndim != 5 or data.dtype.kind != "c":
        return False
    return any(file.get(name, getlink=True) is not None for name in ("maps", "masks", "target"))


def read_skm_tea(
    path: PathLike, *, frame: int | None = None, slices: slice | None = None, mask: str | None = None
) -> Scan:
    """K-space and coil maps of one echo of an SKM-TEA file.

    Args:
        path: HDF5 file.
        frame: which echo, from 0; None takes the first, with a warning.
        slices: which positions along the readout; None reads all, about 5 GB.
        mask: name of one of the file's masks to undersample with, such as ``poisson_6.0x``; None: none.

    Raises:
        InputError: a damaged or hostile file, no such echo or mask, implausible sizes, NaN or infinite samples.
    """
    where = shown(path)
    with open_hdf5(path) as file:
        data = get_dataset(file, "kspace", where)
        if data is None or not is_skm_tea(file):
            raise InputError(f"{where}: no 'kspace' (x, ky, kz, echo, coil) with maps, masks or target as in SKM-TEA")
        check_sizes(where, data.shape[0], data.shape[4], data.shape[1], data.shape[2])
        refuse_unwritten(data, where, "kspace")
        chosen = range(data.shape[0])[slices if slices is not None else slice(None)]
        if not chosen:
            raise InputError(f"{where}: none of its {data.shape[0]} slices chosen; check the slice range")
        echo, notes = chosen_frame(where, data.shape[3], frame, "echo")
        points, told = _mask(file, where, mask, data.shape[1:3])
        kspace = np.empty((len(chosen), data.shape[4], *data.shape[1:3]), np.complex64)
        for position, index in enumerate(chosen):
            kspace[position] = data[index, :, :, echo].transpose(2, 0, 1)
        maps = _maps(file, where, data.shape, chosen)
    if points is not None:
        kspace = np.where(points, kspace, np.complex64(0))
    notes = ("SKM-TEA layout: slices are positions along the readout, each of size (ky, kz)", *notes, *told)
    return cartesian_scan(where, safe_stem(path), kspace, mask=points, maps=maps, warnings=notes)


def _maps(file: h5py.File, where: str, shape: tuple[int, ...], chosen: range) -> np.ndarray | None:
    """The file's coil maps (slice, coil, y, x), None without or with several sets of them."""
    found = get_dataset(file, "maps", where)
    expected = (*shape[:3], shape[4], 1)
    if found is None or found.shape != expected or found.dtype.kind != "c" or found.id.get_storage_size() == 0:
        return None
    maps = np.empty((len(chosen), shape[4], *shape[1:3]), np.complex64)
    for position, index in enumerate(chosen):
        maps[position] = found[index, ..., 0].transpose(2, 0, 1)
    if not np.isfinite(maps).all():
        raise InputError(f"{where}: coil maps hold NaN or infinite values; repair the file")
    return maps


def _mask(
    file: h5py.File, where: str, name: str | None, shape: tuple[int, int]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The mask called ``name``, padded to ``shape`` about its centre; without a name a warning that names them."""
    link = file.get("masks", getlink=True)
    group = file["masks"] if isinstance(link, h5py.HardLink) else None
    names = [each for each, _ in zip(group, range(20), strict=False)] if isinstance(group, h5py.Group) else []
    listed = clean(", ".join(names), 200)
    if name is None:
        return None, (f"masks of the file not applied: {listed}",) if names else ()
    if name not in names:
        raise InputError(f"{where}: no mask '{clean(name, 30)}'; it holds {listed or 'none'}")
    found = get_dataset(group, name, where)
    fits = found is not None and found.ndim == 2 and found.dtype.kind in "biuf"
    if found is None or not fits or any(m > n for m, n in zip(found.shape, shape, strict=True)):
        raise InputError(f"{where}: mask '{clean(name, 30)}' does not fit k-space {shape}; use another")
    values = np.asarray(found[()])
    if not np.isin(values, (0, 1)).all():
        raise InputError(f"{where}: mask '{clean(name, 30)}' holds values other than 0 and 1; use another")
    padded = np.zeros(shape, bool)
    top, left = (n // 2 - m // 2 for n, m in zip(shape, values.shape, strict=True))
    padded[top : top + values.shape[0], left : left + values.shape[1]] = values
    return padded, ()
