"""Reading a scan of any format: the file's content says which, never its ending alone."""

import struct
from enum import StrEnum

import h5py

from rsdmri.data.array_files import NUMPY, ZIP, is_mat5, is_matlab_hdf5, open_arrays
from rsdmri.data.arrays import read_arrays
from rsdmri.data.bart import TITLE, pair_base, read_bart
from rsdmri.data.fastmri import read_scan
from rsdmri.data.hdf5 import PathLike, open_hdf5, shown
from rsdmri.data.layouts import is_cmrxrecon, is_skm_tea, read_cmrxrecon, read_skm_tea
from rsdmri.data.plain_files import file_errors, first_bytes
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError

_HEADER_BYTES = 4096


class Format(StrEnum):
    """What a file is."""

    fastmri = "fastMRI HDF5"
    ismrmrd = "ISMRMRD HDF5"
    cmrxrecon = "CMRxRecon MATLAB"
    skm_tea = "SKM-TEA HDF5"
    bart = "BART cfl"
    arrays = "arrays"
    twix = "Siemens twix"


def read_any(
    path: PathLike,
    *,
    variable: str | None = None,
    axes: str | None = None,
    frame: int | None = None,
    keep_oversampling: bool = False,
) -> Scan:
    """Read a scan from a file of any format of `Format`.

    Args:
        path: a file, or NAME of a BART pair NAME.cfl and NAME.hdr.
        variable: name of the array that holds the k-space, for NumPy, MATLAB and HDF5 files of arrays.
        axes: names of its axes, see `rsdmri.data.arrays`.
        frame: time frame, echo or repetition to read, from 0; None takes the first, with a warning.
        keep_oversampling: leave the readouts of ISMRMRD and twix files as long as they were measured.

    Raises:
        InputError: one line on a file that is missing, damaged, hostile or of no format, with what to do.
    """
    kind = detect_format(path)
    if variable is not None or axes is not None:
        if kind in (Format.bart, Format.ismrmrd, Format.twix):
            raise InputError(f"{shown(path)}: {kind} says itself what it holds; leave --variable and --axes out")
        kind = Format.arrays
    if frame is not None and kind not in (Format.arrays, Format.cmrxrecon, Format.skm_tea):
        raise InputError(f"--frame {frame}: is not for {kind}; leave it out")
    match kind:
        case Format.fastmri:
            return read_scan(path)
        case Format.ismrmrd:
            from rsdmri.data.ismrmrd import read_ismrmrd

            return read_ismrmrd(path, keep_oversampling=keep_oversampling)  # type: ignore[no-any-return, unused-ignore]
        case Format.cmrxrecon:
            return read_cmrxrecon(path, frame=frame)
        case Format.skm_tea:
            return read_skm_tea(path, frame=frame)
        case Format.bart:
            return read_bart(path)
        case Format.arrays:
            return read_arrays(path, variable=variable, axes=axes, frame=frame)
        case Format.twix:
            from rsdmri.data.twix import read_twix

            return read_twix(path, keep_oversampling=keep_oversampling)  # type: ignore[no-any-return, unused-ignore]


def detect_format(path: PathLike) -> Format:
    """What the content of a file says that it is; `InputError` for what is none of `Format`."""
    with file_errors(path) as where:
        base = pair_base(path)
        header = base.with_name(f"{base.name}.hdr") if base is not None else None
        if header is not None and header.is_file() and TITLE.encode() in first_bytes(header, _HEADER_BYTES):
            return Format.bart
        start = first_bytes(path, 128)
        if start.startswith((NUMPY, ZIP)) or is_mat5(start):
            return _of_arrays(path)
        if h5py.is_hdf5(path):
            return _of_hdf5(path)
        if _is_twix(path):
            return Format.twix
        if base is not None:  # a pair by its names alone: the reader says what is wrong with it
            return Format.bart
    raise InputError(
        f"{where}: is not an HDF5 file (fastMRI, ISMRMRD, MATLAB 7.3), nor a BART pair, NumPy, MATLAB or Siemens twix "
        "file; convert it to one of these"
    )


def _of_arrays(path: PathLike) -> Format:
    with open_arrays(path) as found:
        return Format.cmrxrecon if any(map(is_cmrxrecon, found)) else Format.arrays


def _of_hdf5(path: PathLike) -> Format:
    """Which of the layouts in HDF5."""
    with open_hdf5(path) as file:
        group = file["dataset"] if isinstance(file.get("dataset", getlink=True), h5py.HardLink) else None
        if isinstance(group, h5py.Group) and group.get("data", getlink=True) is not None:
            return Format.ismrmrd
        if is_skm_tea(file):
            return Format.skm_tea
        if file.get("kspace", getlink=True) is not None and not is_matlab_hdf5(file):
            return Format.fastmri
    return _of_arrays(path)


def _is_twix(path: PathLike) -> bool:
    """Whether a file begins with the headers of a Siemens measurement, of software VD and VE or of VB.

    VD: 0 or a small number, how many measurements, and at byte 16 where the first one lies; each begins with the size
    of its headers, how many, and the name of the first (as twixtools and pymapvbvd read it).
    """
    with open(path, "rb") as file:
        first, count, _, place = struct.unpack("<2IQQ", file.read(24).ljust(24, b"\0"))
        if first < 10_000 and 0 < count <= 64 and place < 1 << 32:
            file.seek(place)
        else:
            file.seek(0)
        head = file.read(24)
    if len(head) < 24:
        return False
    size, headers = struct.unpack("<2I", head[:8])
    return size > 24 and 0 < headers <= 64 and head[8:].startswith((b"Config\0", b"Dicom\0", b"Meas\0", b"MeasYaps\0"))
