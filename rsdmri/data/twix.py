"""Reading Siemens twix (``.dat``, VB to XA) through twixtools, an optional package: ``pip install 'rsdmri[twix]'``.

twixtools rather than pymapVBVD: it hands out each readout with its flags, position and quaternion. A twix file holds
names and dates of patients in its header: of it, only matrix, field of view, timing and field strength are used.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri.data.acquisitions import LINE, NOISE, Readouts, flag, imaging_lines
from rsdmri.data.cartesian import scan_from_readouts
from rsdmri.data.fastmri_header import Limits, Protocol
from rsdmri.data.hdf5 import PathLike, shown
from rsdmri.data.scan import Header, Scan
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

# Names of Siemens' flags to the numbers of ISMRMRD's, as siemens_to_ismrmrd maps them.
_FLAGS = {
    "NOISEADJSCAN": NOISE,
    "PATREFSCAN": 20,
    "PATREFANDIMASCAN": 21,
    "REFLECT": 22,
    "noname60": 23,  # navigators
    "PHASCOR": 24,
    "HPFEEDBACK": 26,
    "RETRO_DUMMYSCAN": 27,
    "RTFEEDBACK": 28,
    "REFPHASESTABSCAN": 30,
    "PHASESTABSCAN": 31,
}
_COUNTERS = {"kspace_encode_step_1": "Lin", "kspace_encode_step_2": "Par", "slice": "Sli", "contrast": "Eco"}
_COUNTERS |= {"repetition": "Rep", "set": "Set", "phase": "Phs"}
_NOISE_BANDWIDTH = 0.79  # share of the bandwidth that Siemens receivers pass, as siemens_to_ismrmrd writes it
_BLOCK = 256
_MOST_MEASUREMENTS, _LARGEST_KIND = 64, 10_000  # by which VD files are told from VB files
_TABLE = np.dtype({"names": ["offset", "length"], "formats": ["<u8", "<u8"], "offsets": [8, 16], "itemsize": 152})


def read_twix(
    path: PathLike,
    *,
    contrast: int = 0,
    repetition: int = 0,
    set: int = 0,
    phase: int = 0,
    slices: slice | None = None,
    keep_oversampling: bool = False,
) -> Scan:
    """Read the Cartesian scan of a twix file, the last measurement in it, sorted onto its grid.

    Arguments and result as of `read_ismrmrd`; slices come in their order along the slice direction. Where the protocol
    does not describe what was measured (Pulseq sequences), the matrix is that of the readouts and the geometry unknown.

    Raises:
        InputError: twixtools is not installed; a file that is missing, damaged or not of this format; scans that
            `read_ismrmrd` would refuse.
    """
    where = shown(path)
    measurements = _open(path, where)
    blocks = [block for one in measurements for block in one["mdb"]]
    dwell = [_dwell(one) for one in measurements for _ in one["mdb"]]
    lines = _lines(blocks, dwell, where)
    outside = np.concatenate([np.full(len(one["mdb"]), index) for index, one in enumerate(measurements)])
    adjustment = (outside < len(measurements) - 1) & (lines["flags"] & np.uint64(flag(NOISE)) == 0)
    lines["number_of_samples"][adjustment] = 0  # of other measurements, only the noise belongs to this scan
    readouts = Readouts(where, lines, lambda numbers: _samples(blocks, lines, numbers, where))
    choice = {"contrast": contrast, "repetition": repetition, "set": set, "phase": phase}
    chosen, _ = imaging_lines(readouts, choice)
    protocol, notes = _protocol(measurements[-1], lines[chosen])
    _order_slices(lines)
    return scan_from_readouts(
        readouts,
        protocol,
        name=safe_stem(path),
        choice=choice,
        slices=slices,
        keep_oversampling=keep_oversampling,
        warnings=notes,
    )


def _open(path: PathLike, where: str) -> list[dict[str, Any]]:
    """The measurements of the file, each with its readouts ``mdb`` (samples not read) and its header ``hdr``."""
    try:
        import twixtools
    except ImportError:
        raise InputError(f"{where}: reading twix needs twixtools; python -m pip install 'rsdmri[twix]'") from None
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{where}: no such file; check the path")
    if not source.suffix:
        raise InputError(f"{where}: has no suffix; name it .dat")
    _require_whole(source, where)
    found: list[Any] = []
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Whatever a parser raises on bytes that are no twix; its text could hold what the file holds.
        with contextlib.suppress(Exception):
            found = twixtools.read_twix(str(source), verbose=False, parse_pmu=False, parse_geometry=False)
    measurements = [one for one in found if isinstance(one, dict) and one.get("mdb")]
    if not measurements:
        raise InputError(f"{where}: is not a twix file with readouts, or is damaged; copy it from the scanner again")
    return measurements


def _require_whole(source: Path, where: str) -> None:
    """`InputError` if the file is shorter than its table of measurements says (VD and later; VB has no table)."""
    size = source.stat().st_size
    start = np.fromfile(source, np.uint8, 8 + _MOST_MEASUREMENTS * _TABLE.itemsize)
    if len(start) < 8:
        raise InputError(f"{where}: has {size} bytes, which is no twix file; copy it from the scanner again")
    kind, count = start[:8].view("<u4").tolist()
    if kind >= _LARGEST_KIND or not 0 < count <= _MOST_MEASUREMENTS or len(start) < 8 + count * _TABLE.itemsize:
        return
    table = start[8 : 8 + count * _TABLE.itemsize].view(_TABLE)
    for offset, length in zip(table["offset"].tolist(), table["length"].tolist(), strict=True):
        if offset + length > size:
            raise InputError(
                f"{where}: file is cut short ({size:,} of {offset + length:,} bytes); copy it from the scanner again"
            )


def _lines(blocks: Sequence[Any], dwell: Sequence[float], where: str) -> np.ndarray:
    """What is used of the heads of all readouts, (n,) of ``LINE``."""
    lines = np.zeros(len(blocks), LINE)
    for line, block, time in zip(lines, blocks, dwell, strict=True):
        head = block.mdh
        line["flags"] = flag(*(bit for name, bit in _FLAGS.items() if block.is_flag_set(name)))
        line["number_of_samples"], line["active_channels"] = head.SamplesInScan, head.UsedChannels
        line["discard_pre"], line["discard_post"] = (int(value) for value in _fields(head.CutOff))
        line["center_sample"] = head.CenterCol
        line["sample_time_us"] = time
        for name, counter in _COUNTERS.items():
            line[name] = getattr(head.Counter, counter)
        line["position"] = [float(value) for value in _fields(head.SliceData.SlicePos)]
        w, x, y, z = (float(value) for value in head.SliceData.Quaternion)
        # Columns of the rotation are phase, read and slice direction.
        line["phase_dir"] = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
        line["read_dir"] = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
        line["slice_dir"] = (2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y))
    return lines


def _fields(record: Any) -> list[Any]:
    """Values of a small record or array, in order."""
    if hasattr(record, "_fields_"):
        return [getattr(record, field[0]) for field in record._fields_]
    return list(record)


def _samples(
    blocks: Sequence[Any], lines: np.ndarray, numbers: np.ndarray, where: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples of the readouts ``numbers``, in blocks."""
    shape = (int(lines["active_channels"][numbers[0]]), int(lines["number_of_samples"][numbers[0]]))
    for part in np.split(numbers, range(_BLOCK, len(numbers), _BLOCK)):
        values = np.empty((len(part), *shape), np.complex64)
        for row, number in enumerate(part.tolist()):
            try:
                one = np.asarray(blocks[number].data)
            except (OSError, ValueError, TypeError, IndexError):
                one = np.empty(0)
            if one.shape != shape:
                raise InputError(f"{where}: readout {number} is cut short; copy the file from the scanner again")
            values[row] = one
        yield part, values


def _order_slices(lines: np.ndarray) -> None:
    """Number the slices along the slice direction; the scanner may count them in the order of their excitation."""
    numbers, first = np.unique(lines["slice"], return_index=True)
    along = (lines["position"][first] * lines["slice_dir"][first]).sum(1)
    rank = np.empty(len(numbers), np.int32)
    rank[np.argsort(along, kind="stable")] = np.arange(len(numbers))
    lines["slice"] = rank[np.searchsorted(numbers, lines["slice"])]


def _number(header: Any, *path: str | int) -> float | None:
    """The number at ``path`` in nested mappings and lists, None where there is none."""
    for key in path:
        if isinstance(header, Mapping):
            inside = key in header
        else:
            inside = isinstance(header, list) and isinstance(key, int) and len(header) > key
        if not inside:
            return None
        header = header[key]
    if isinstance(header, bool) or not isinstance(header, int | float | np.number):
        return None
    return float(header) if np.isfinite(float(header)) else None


def _positive(header: Any, *path: str | int) -> float | None:
    value = _number(header, *path)
    return value if value is not None and 0 < value < 1e9 else None


def _dwell(measurement: Mapping[str, Any]) -> float:
    """Time between samples in microseconds, 0 if not known."""
    return (_positive(measurement.get("hdr"), "MeasYaps", "sRXSPEC", "alDwellTime", 0) or 0) / 1000


def _protocol(measurement: Mapping[str, Any], lines: np.ndarray) -> tuple[Protocol, tuple[str, ...]]:
    """What places the imaging ``lines`` on their grid, from their heads and the measurement's protocol."""
    hdr = measurement.get("hdr")
    size, center = int(lines["number_of_samples"][0]), int(lines["center_sample"][0])
    measured = 2 * max(center, size - center) if center else size
    counts = [int(lines[name].max()) + 1 for name in ("kspace_encode_step_1", "kspace_encode_step_2")]
    width, depth = (int(_positive(hdr, "Meas", name) or 0) for name in ("iPEFTLength", "iPAFTLength"))
    depth = max(depth, counts[1]) if counts[1] > 1 else 1
    columns = _positive(hdr, "Meas", "iRoFTLength")
    oversampling = _positive(hdr, "Meas", "flReadoutOSFactor") or _positive(hdr, "Dicom", "flReadoutOSFactor") or 1.0
    fits = counts[0] <= width and columns == measured
    words: tuple[str, ...] = ()
    if not fits:
        width, words = counts[0], ("the protocol does not describe the readouts (Pulseq?); their own matrix is used",)
    extra = [_number(hdr, "MeasYaps", "sKSpace", f"d{axis}OversamplingForDialog") or 0.0 for axis in ("Phase", "Slice")]
    factors = (oversampling, 1 + max(0.0, extra[0]), 1 + max(0.0, extra[1]) if depth > 1 else 1.0)
    matrix = (measured, width, depth)
    recon = tuple(max(1, round(n / factor)) for n, factor in zip(matrix, factors, strict=True))
    sides = [
        _positive(hdr, "MeasYaps", "sSliceArray", "asSlice", 0, name)
        for name in ("dReadoutFOV", "dPhaseFOV", "dThickness")
    ]
    fov = whole = None
    if fits and None not in sides:
        fov = tuple(side or 0.0 for side in sides)
        whole = tuple(side * factor for side, factor in zip(fov, factors, strict=True))
    contrasts = int(_positive(hdr, "MeasYaps", "lContrasts") or 1)
    echo_times = [_positive(hdr, "MeasYaps", "alTE", index) for index in range(min(contrasts, 64))]
    repetition_time, flip = (_positive(hdr, "MeasYaps", name, 0) for name in ("alTR", "adFlipAngleDegree"))
    header = Header(
        encoded=matrix,
        recon=recon if fits else matrix,  # type: ignore[arg-type]
        fov_mm=fov,  # type: ignore[arg-type]
        field_strength_t=_positive(hdr, "Dicom", "flMagneticFieldStrength"),
        echo_times_ms=tuple(time / 1000 for time in echo_times if time) or None,
        repetition_times_ms=(repetition_time / 1000,) if repetition_time else None,
        flip_angles_deg=(flip,) if flip else None,
    )
    trajectory = _number(hdr, "MeasYaps", "sKSpace", "ucTrajectory")
    limits = [_limits(measurement, lines, name, size) for name, size in (("Lin", width), ("Par", depth))]
    return Protocol(
        header=header,
        encoded_fov_mm=whole,  # type: ignore[arg-type]
        trajectory="cartesian" if trajectory in (None, 1.0) else "other",
        lines=limits[0],
        partitions=limits[1],
        siemens=True,
        noise_bandwidth=_NOISE_BANDWIDTH,
    ), words


def _limits(measurement: Mapping[str, Any], lines: np.ndarray, counter: str, size: int) -> Limits | None:
    """Range of a counter and its centre, which the imaging readouts name; None where they name none."""
    step = lines["kspace_encode_step_1" if counter == "Lin" else "kspace_encode_step_2"]
    centers = {int(getattr(block.mdh, f"Center{counter}")) for block in measurement["mdb"] if block.is_image_scan()}
    center = centers.pop() if len(centers) == 1 else 0
    return Limits(0, int(step.max()), center) if center or size == 1 else None
