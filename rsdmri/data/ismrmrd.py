"""Reading ISMRMRD (MRD) HDF5: group ``dataset`` with the header ``xml`` and the readouts ``data``.

Files are not trusted. h5py reads them rather than the ismrmrd package, so that the guards of `hdf5` hold and only what
is needed is read: of each readout its flags, counters, sizes, position and directions, never its user fields or time
stamps. Inati et al. 2017, doi:10.1002/mrm.26089.
"""

import os
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from rsdmri.data.acquisitions import LINE, Readouts
from rsdmri.data.cartesian import scan_from_readouts
from rsdmri.data.fastmri_header import LARGEST, HeaderRefused, Protocol, parse_protocol
from rsdmri.data.hdf5 import PathLike, clean, get_dataset, get_group, open_hdf5, shown, top_names
from rsdmri.data.ismrmrd_write import write_ismrmrd
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

__all__ = ["read_ismrmrd", "write_ismrmrd"]

_BLOCK_BYTES = 8 << 20
_MOST_LINES, _HEADS_AT_ONCE = 1 << 24, 1 << 12
_COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "contrast", "repetition", "set", "phase")


def read_ismrmrd(
    path: PathLike,
    *,
    contrast: int = 0,
    repetition: int = 0,
    set: int = 0,
    phase: int = 0,
    slices: slice | None = None,
    keep_oversampling: bool = False,
) -> Scan:
    """Read the Cartesian scan of an ISMRMRD file, sorted onto its grid.

    Noise measurements become ``noise_cov``; other readouts that are no imaging are left out by their flags, with a
    warning; averages are averaged; fully sampled partitions become slices; the centre of k-space lies at n // 2.
    ``y`` is the readout, ``x`` the phase encode. Of the header, only geometry, timing and field strength are read.

    Args:
        path: the file.
        contrast: echo or contrast to read; ``repetition``, ``set`` and ``phase`` alike.
        repetition: see ``contrast``.
        set: see ``contrast``.
        phase: see ``contrast``.
        slices: which slices (slabs of a 3-D scan) to read, in ascending order of their index; None reads all.
        keep_oversampling: leave the readout as long as it was measured, instead of cutting it in image space to the
            reconstructed field of view.

    Raises:
        InputError: a file that is missing, damaged, hostile or not of this format; EPI and non-Cartesian scans,
            undersampled partitions, readouts that differ in size; NaN or infinite samples.
    """
    where = shown(path)
    with open_hdf5(path) as file:
        group = get_group(file, "dataset", where)
        if group is None:
            raise InputError(f"{where}: no group 'dataset' (it holds {top_names(file)}); is it an ISMRMRD file?")
        protocol, warnings = _read_protocol(group, where)
        data = _acquisitions(group, where)
        step = _BLOCK_BYTES * len(data) // os.stat(path).st_size
        lines = _read_lines(data, min(max(1, step), _HEADS_AT_ONCE))
        _require_stored(path, lines, where)
        return scan_from_readouts(
            Readouts(where, lines, lambda numbers: _read_samples(data, lines, numbers, where)),
            protocol,
            name=safe_stem(path),
            choice={"contrast": contrast, "repetition": repetition, "set": set, "phase": phase},
            slices=slices,
            keep_oversampling=keep_oversampling,
            warnings=warnings,
        )


def _read_protocol(group: h5py.Group, where: str) -> tuple[Protocol, tuple[str, ...]]:
    found = get_dataset(group, "xml", where)
    if found is None:
        return Protocol(), ("no header 'xml'; using the sizes of the readouts",)
    if found.size != 1 or found.dtype.kind not in "SO" or found.dtype.itemsize > LARGEST:
        raise InputError(f"{where}: header 'xml' is not one text of at most {LARGEST:,} bytes; write a plain header")
    text = np.asarray(found[()]).reshape(-1)[0]
    text = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if not isinstance(text, bytes):
        raise InputError(f"{where}: header 'xml' is not text; write a plain header")
    try:
        return parse_protocol(text)
    except HeaderRefused as error:
        raise InputError(f"{where}: header 'xml' {error}, which is refused; write a plain header") from None


def _acquisitions(group: h5py.Group, where: str) -> h5py.Dataset:
    """The data set of readouts, its type checked."""
    data = get_dataset(group, "data", where)
    if data is None:
        raise InputError(f"{where}: no readouts 'data' in 'dataset' (it holds {top_names(group)}); is it raw data?")
    samples = data.dtype["data"] if data.dtype.names and "data" in data.dtype.names else None
    if samples is None or h5py.check_vlen_dtype(samples) != np.float32:
        raise InputError(f"{where}: 'data' does not hold readouts of float32 samples; write it with ISMRMRD's library")
    head: Any = data.dtype["head"] if "head" in data.dtype.names else np.dtype([])
    for name in LINE.names or ():
        kind = head["idx"] if name in _COUNTERS and head.names and "idx" in head.names else head
        if not kind.names or name not in kind.names:
            raise InputError(f"{where}: its readouts have no field '{name}'; write it with ISMRMRD's library")
        wanted, got = LINE[name], kind[name]
        if got.base.kind not in ("f" if wanted.base.kind == "f" else "iu") or got.shape != wanted.shape:
            raise InputError(
                f"{where}: field '{name}' of its readouts is {clean(got)}; write it with ISMRMRD's library"
            )
    data_lines = data.size if data.ndim else 0
    if not 0 < data_lines <= _MOST_LINES:
        raise InputError(f"{where}: holds {data_lines:,} readouts; expected 1 to {_MOST_LINES:,}")
    if data.ndim > 2 or (data.ndim == 2 and data.shape[1] != 1):
        raise InputError(f"{where}: 'data' has shape {clean(data.shape)}; expected one axis of readouts")
    return data


def _read_lines(data: h5py.Dataset, step: int) -> np.ndarray:
    """What is used of the heads of all readouts, (n,) of ``LINE``.

    Whole records are read, ``step`` at once, and their samples dropped: HDF5 leaks those that are not asked for.
    """
    lines = np.zeros(len(data), LINE)
    for start in range(0, len(data), step):
        head = data[start : start + step].reshape(-1)["head"]
        part = lines[start : start + step]
        for name in LINE.names or ():
            part[name] = head["idx"][name] if name in _COUNTERS else head[name]
    lines["sample_time_us"][~np.isfinite(lines["sample_time_us"])] = 0
    return lines


def _require_stored(path: PathLike, lines: np.ndarray, where: str) -> None:
    """`InputError` if the heads declare more samples than the file can hold: they are never compressed."""
    declared = 8 * int((lines["number_of_samples"].astype(np.int64) * lines["active_channels"]).sum())
    stored = os.stat(path).st_size
    if declared > stored:
        raise InputError(
            f"{where}: its readouts declare {declared:,} bytes of samples, more than the file's {stored:,}; "
            "copy or download it again"
        )


def _read_samples(
    data: h5py.Dataset, lines: np.ndarray, numbers: np.ndarray, where: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples of the readouts ``numbers`` (ascending, of one size), in blocks of about 8 MB."""
    size, coils = (int(lines[name][numbers[0]]) for name in ("number_of_samples", "active_channels"))
    step = max(1, _BLOCK_BYTES // (8 * size * coils))
    for block in np.split(numbers, range(step, len(numbers), step)):
        values = np.empty((len(block), coils, size), np.complex64)
        for run in np.split(block, np.flatnonzero(np.diff(block) > 1) + 1):
            first = int(np.searchsorted(block, run[0]))
            found = data[int(run[0]) : int(run[-1]) + 1].reshape(-1)["data"]
            for offset, one in enumerate(found):
                if len(one) != 2 * size * coils:
                    raise InputError(
                        f"{where}: readout {int(run[0]) + offset} stores {len(one):,} numbers where its head declares "
                        f"{coils} coils of {size} complex samples; copy or write it again"
                    )
                values[first + offset] = np.asarray(one, np.float32).view(np.complex64).reshape(coils, size)
        yield block, values
