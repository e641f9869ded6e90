"""Writing ISMRMRD (MRD) HDF5."""

import os

import h5py
import numpy as np

from rsdmri import RESEARCH_ONLY
from rsdmri.data.acquisitions import NOISE, flag
from rsdmri.data.fastmri_header import format_header
from rsdmri.data.scan import Header, Scan
from rsdmri.errors import InputError
from rsdmri.files import atomic_path

PathLike = str | os.PathLike[str]

_FIRST_IN_SLICE, _LAST_IN_SLICE, _LAST_IN_MEASUREMENT = 7, 8, 25
_VERSION = 1

_COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition")
_HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        *((name, "<u4") for name in ("measurement_uid", "scan_counter", "acquisition_time_stamp")),
        ("physiology_time_stamp", "<u4", (3,)),
        *((name, "<u2") for name in ("number_of_samples", "available_channels", "active_channels")),
        ("channel_mask", "<u8", (16,)),
        *((name, "<u2") for name in ("discard_pre", "discard_post", "center_sample", "encoding_space_ref")),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        *((name, "<f4", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")),
        ("idx", [*((name, "<u2") for name in (*_COUNTERS, "set", "segment")), ("user", "<u2", (8,))]),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
_FLOATS = h5py.vlen_dtype(np.dtype("<f4"))
_ACQUISITION = np.dtype([("head", _HEAD), ("traj", _FLOATS), ("data", _FLOATS)])


def write_ismrmrd(path: PathLike, scan: Scan) -> None:
    """Write the acquired lines of ``scan`` as ISMRMRD HDF5, replaced atomically.

    The noise covariance is written as a noise measurement whose sample covariance it is exactly: made, not measured.
    Coil maps, the reference image, the acquisition's name and the crop's quirks have no place in the format: not kept.

    Raises:
        InputError: a scan whose readouts have holes (points of a 3-D pattern), which the format cannot hold.
    """
    rows = np.flatnonzero(scan.mask.any(1)) if scan.mask.shape[0] > 1 else np.arange(scan.kspace.shape[2])
    columns = np.flatnonzero(scan.mask.any(0))
    first, last = int(rows[0]), int(rows[-1]) + 1
    if scan.mask.shape[0] > 1 and not scan.mask[first:last][:, columns].all():
        raise InputError(
            f"{scan.name}: its readouts have holes, which ISMRMRD cannot hold; write it as fastMRI HDF5 or BART cfl"
        )
    header = _header(scan)
    left = header.padding[0] if header.padding is not None else 0
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        group = file.create_group("dataset")
        group.attrs["note"] = RESEARCH_ONLY
        group.create_dataset("xml", data=[format_header(header)], dtype=h5py.string_dtype())
        noise = _noise_samples(scan)
        slices = scan.kspace.shape[0]
        data = group.create_dataset("data", (len(noise) + slices * len(columns),), _ACQUISITION, maxshape=(None,))
        for index in range(len(noise)):
            data[index : index + 1] = _records(noise[index][None], 0, flag(NOISE))
        for index in range(slices):
            lines = scan.kspace[index][:, first:last, columns].transpose(2, 0, 1)
            records = _records(lines, scan.kspace.shape[2] // 2 - first, 0)
            _place(records["head"], scan, index, columns - left)
            start = len(noise) + index * len(columns)
            data[start : start + len(columns)] = records


def _header(scan: Scan) -> Header:
    """What the file's header says: the scan's grid, and what is known of size and timing."""
    known = scan.header or Header()
    height, width = scan.crop
    fov = known.fov_mm
    if scan.geometry is not None:
        fov = (
            height * scan.geometry.spacing_mm[0],
            width * scan.geometry.spacing_mm[1],
            scan.geometry.thickness_mm,
        )
    kept = np.flatnonzero(~scan.absent)
    return Header(
        encoded=(scan.kspace.shape[2], scan.kspace.shape[3], 1),
        recon=(height, width, 1),
        fov_mm=fov,
        padding=(int(kept[0]), int(kept[-1]) + 1),
        field_strength_t=known.field_strength_t,
        echo_times_ms=known.echo_times_ms,
        repetition_times_ms=known.repetition_times_ms,
        inversion_times_ms=known.inversion_times_ms,
        flip_angles_deg=known.flip_angles_deg,
    )


def _records(lines: np.ndarray, center: int, flags: int) -> np.ndarray:
    """Records of readouts (n, coil, sample)."""
    records = np.zeros(len(lines), _ACQUISITION)
    head = records["head"]
    head["version"], head["flags"] = _VERSION, flags
    head["number_of_samples"], head["center_sample"] = lines.shape[2], center
    head["available_channels"] = head["active_channels"] = lines.shape[1]
    for index, samples in enumerate(lines):
        records["traj"][index] = np.zeros(0, np.float32)
        records["data"][index] = np.ascontiguousarray(samples, np.complex64).view(np.float32).reshape(-1)
    return records


def _place(head: np.ndarray, scan: Scan, index: int, steps: np.ndarray) -> None:
    """Counters, flags, positions and directions of the readouts of a slice."""
    slices = scan.kspace.shape[0]
    head["scan_counter"] = index * len(steps) + np.arange(len(steps))
    head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = steps, index
    head["flags"][0] |= np.uint64(flag(_FIRST_IN_SLICE))
    head["flags"][-1] |= np.uint64(flag(_LAST_IN_SLICE, *([_LAST_IN_MEASUREMENT] if index == slices - 1 else [])))
    if scan.geometry is not None:
        head["position"] = scan.geometry.centres[index]
        head["read_dir"], head["phase_dir"] = scan.geometry.y_direction, scan.geometry.x_direction
        head["slice_dir"] = np.cross(scan.geometry.y_direction, scan.geometry.x_direction)


def _noise_samples(scan: Scan) -> list[np.ndarray]:
    """One readout (coil, sample) n with mean(n n^H) = noise_cov: its square root times rows of a Fourier matrix."""
    if scan.noise_cov is None:
        return []
    coils = len(scan.noise_cov)
    values, vectors = np.linalg.eigh(scan.noise_cov)
    length = max(256, 4 * coils)
    phase = np.outer(np.arange(1, coils + 1), np.arange(length)) / length
    rows = np.exp(2j * np.pi * phase)  # orthogonal, mean square 1
    return [((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.conj().T @ rows).astype(np.complex64)]
