"""The ISMRMRD header, in fastMRI and ISMRMRD files: a tolerant reader of an allow-list of fields and a writer.

Nothing but the encoding, the timing and the field strength is read: subject, study and measurement information never
leave the file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rsdmri.data.scan import Header

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
LARGEST = 1_000_000  # bytes; fastMRI's headers have about 10,000
TRAJECTORIES = ("cartesian", "epi", "radial", "goldenangle", "spiral", "other")
_MOST_TIMES = 64
_HZ_PER_TESLA = 42_577_478.5  # of protons


class HeaderRefused(ValueError):
    """The header is dangerous: the file should not be trusted."""


@dataclass(frozen=True)
class Limits:
    """Range of an encoding counter and the value at which the centre of k-space was measured."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True)
class Protocol:
    """What places readouts of the first encoding on their grid; None where the header does not say."""

    header: Header = field(default_factory=Header)
    encoded_fov_mm: tuple[float, float, float] | None = None
    trajectory: str | None = None
    """One of ``TRAJECTORIES``."""
    lines: Limits | None = None
    """Of ``kspace_encode_step_1``."""
    partitions: Limits | None = None
    """Of ``kspace_encode_step_2``."""
    siemens: bool = False
    """Whether a Siemens scanner measured."""
    noise_bandwidth: float | None = None
    """Share of the bandwidth that the receiver's filter passes, relativeReceiverNoiseBandwidth."""


def parse_header(text: bytes) -> tuple[Header, tuple[str, ...]]:
    """The `Header` of :func:`parse_protocol` and what could not be used, one line each."""
    protocol, warnings = parse_protocol(text)
    return protocol.header, warnings


def parse_protocol(text: bytes) -> tuple[Protocol, tuple[str, ...]]:
    """Geometry of the first encoding, timing, and what could not be used, one line each.

    padding_left = encoded.y // 2 - center; padding_right = padding_left + maximum + 1 (fastMRI, Zbontar et al. 2018).

    Raises:
        HeaderRefused: more than 1 MB, a DTD or entities.
    """
    root = header_root(text)
    if root is None:
        return Protocol(), ("header is not well-formed XML; using array sizes",)
    warnings: list[str] = []
    tesla, times, siemens, bandwidth = _conditions(root)
    found = _encoding(root)
    if found is None:
        header = Header(None, None, None, None, tesla, *times)
        return Protocol(header), ("header has no encoding section; using array sizes",)

    def triple(path: str, convert: Callable[[str], float], largest: float) -> tuple[float, ...] | None:
        names = [f"{path}/{axis}" for axis in "xyz"]
        if not any(name in found for name in names):
            return None
        values = [_number(found, name, convert) for name in names]
        if any(value is None or not 0 < value <= largest for value in values):
            warnings.append(f"header: {path} is not three positive numbers; ignored")
            return None
        return tuple(value for value in values if value is not None)

    encoded = triple("encodedSpace/matrixSize", int, 1 << 16)
    recon = triple("reconSpace/matrixSize", int, 1 << 16)
    fov = triple("reconSpace/fieldOfView_mm", float, 1e5)
    lines = _limits(found, "kspace_encoding_step_1")
    padding = None
    if encoded is not None and lines is not None:
        left = int(encoded[1]) // 2 - lines.center
        padding = (left, left + lines.maximum + 1)
    elif lines is None and any(name.startswith("encodingLimits/kspace_encoding_step_1") for name in found):
        warnings.append("header: encoding limits are incomplete; no padding assumed")
    word = found.get("trajectory", [""])[0].lower()
    protocol = Protocol(
        header=Header(_ints(encoded), _ints(recon), _floats(fov), padding, tesla, *times),
        encoded_fov_mm=_floats(triple("encodedSpace/fieldOfView_mm", float, 1e5)),
        trajectory=(word if word in TRAJECTORIES else "other") if word else None,
        lines=lines,
        partitions=_limits(found, "kspace_encoding_step_2"),
        siemens=siemens,
        noise_bandwidth=bandwidth,
    )
    return protocol, tuple(warnings)


def header_root(text: bytes) -> Any:
    """Root element of a header, None if it is not well-formed; `HeaderRefused` as `parse_header` says."""
    from defusedxml import ElementTree
    from defusedxml.common import DefusedXmlException

    if len(text) > LARGEST:
        raise HeaderRefused(f"is {len(text):,} bytes, more than {LARGEST:,}")
    try:
        return ElementTree.fromstring(text, forbid_dtd=True)
    except DefusedXmlException:
        raise HeaderRefused("declares a DTD or entities") from None
    except (ElementTree.ParseError, ValueError, LookupError):  # LookupError: an encoding that Python does not have
        return None


def encoding_texts(root: Any) -> dict[str, str] | None:
    """Texts of the geometry of the first encoding by path, such as encodedSpace/matrixSize/x; None without one."""
    found = _encoding(root)
    return None if found is None else {path: texts[0] for path, texts in found.items()}


def _encoding(root: Any) -> dict[str, list[str]] | None:
    encoding = next((element for element in root.iter() if local_name(element.tag) == "encoding"), None)
    if encoding is None:
        return None
    found: dict[str, list[str]] = {}
    _collect(encoding, "", found)
    return found


def format_header(header: Header) -> bytes:
    """ISMRMRD XML with the fields of ``header``, the inverse of `parse_header`; 1 mm voxels if there is no FOV."""
    encoded, recon = header.encoded or (1, 1, 1), header.recon or (1, 1, 1)
    fov = header.fov_mm or tuple(float(n) for n in recon)
    left, right = header.padding or (0, encoded[1])

    def space(name: str, matrix: tuple[int, ...]) -> str:
        # The encoded field of view keeps the voxel size of the reconstructed one.
        sides = [side * n / m for side, n, m in zip(fov, matrix, recon, strict=True)]
        size = "".join(f"<{axis}>{n}</{axis}>" for axis, n in zip("xyz", matrix, strict=True))
        extent = "".join(f"<{axis}>{side:.9g}</{axis}>" for axis, side in zip("xyz", sides, strict=True))
        return f"<{name}><matrixSize>{size}</matrixSize><fieldOfView_mm>{extent}</fieldOfView_mm></{name}>"

    limits = (
        f"<kspace_encoding_step_1><minimum>0</minimum><maximum>{right - left - 1}</maximum>"
        f"<center>{encoded[1] // 2 - left}</center></kspace_encoding_step_1>"
    )
    tesla, system = header.field_strength_t, ""
    if tesla is not None:
        strength = f"<systemFieldStrength_T>{tesla:.9g}</systemFieldStrength_T>"
        system = f"<acquisitionSystemInformation>{strength}</acquisitionSystemInformation>"
    hertz = round(tesla * _HZ_PER_TESLA) if tesla is not None else 123_200_000
    times = {
        "TR": header.repetition_times_ms,
        "TE": header.echo_times_ms,
        "TI": header.inversion_times_ms,
        "flipAngle_deg": header.flip_angles_deg,
    }
    sequence = "".join(f"<{name}>{v:.9g}</{name}>" for name, values in times.items() for v in values or ())
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<ismrmrdHeader xmlns="{NAMESPACE}">{system}<experimentalConditions>'
        f"<H1resonanceFrequency_Hz>{hertz}</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding>{space('encodedSpace', encoded)}{space('reconSpace', recon)}"
        f"<encodingLimits>{limits}</encodingLimits><trajectory>cartesian</trajectory></encoding>"
        f"{f'<sequenceParameters>{sequence}</sequenceParameters>' if sequence else ''}</ismrmrdHeader>\n"
    ).encode()


def local_name(tag: object) -> str:
    """Element name without its namespace; comments and processing instructions have none."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


_ALLOWED = {
    *("encodedSpace", "reconSpace", "matrixSize", "fieldOfView_mm"),
    *("encodingLimits", "kspace_encoding_step_1", "kspace_encoding_step_2"),
}
_LEAVES = {"x", "y", "z", "minimum", "center", "maximum", "trajectory"}
_SYSTEM = {"systemFieldStrength_T", "systemVendor", "relativeReceiverNoiseBandwidth"}
_TIMES = ("TE", "TR", "flipAngle_deg", "TI")


def _collect(element: object, path: str, found: dict[str, list[str]], leaves: frozenset[str] | None = None) -> None:
    """Texts of the allowed leaves below ``element`` by path; at most three levels deep."""
    for child in element:  # type: ignore[attr-defined]
        name = local_name(child.tag)
        here = f"{path}/{name}" if path else name
        if leaves is None and name in _ALLOWED and path.count("/") < 2:
            _collect(child, here, found)
        elif name in (_LEAVES if leaves is None else leaves) and child.text:
            texts = found.setdefault(here, [])
            if len(texts) < _MOST_TIMES:
                texts.append(child.text.strip()[:40])


def _conditions(root: object) -> tuple[float | None, list[tuple[float, ...] | None], bool, float | None]:
    """Field strength, (TE, TR, flip angles, TI), whether the vendor is Siemens, noise bandwidth."""
    found: dict[str, list[str]] = {}
    for section in root:  # type: ignore[attr-defined]
        if local_name(section.tag) == "acquisitionSystemInformation":
            _collect(section, "", found, frozenset(_SYSTEM))
        elif local_name(section.tag) == "sequenceParameters":
            _collect(section, "", found, frozenset(_TIMES))
    tesla = _number(found, "systemFieldStrength_T", float)
    bandwidth = _number(found, "relativeReceiverNoiseBandwidth", float)
    times: list[tuple[float, ...] | None] = []
    for name in _TIMES:
        values = [_value(text, float) for text in found.get(name, [])]
        kept = tuple(value for value in values if value is not None and value >= 0)
        times.append(kept or None)
    return (
        tesla if tesla is not None and 0 < tesla < 100 else None,
        times,
        "siemens" in found.get("systemVendor", [""])[0].lower(),
        bandwidth if bandwidth is not None and 0 < bandwidth <= 1 else None,
    )


def _limits(found: dict[str, list[str]], name: str) -> Limits | None:
    path = f"encodingLimits/{name}"
    center, maximum = (_number(found, f"{path}/{end}", int) for end in ("center", "maximum"))
    minimum = _number(found, f"{path}/minimum", int)
    return None if center is None or maximum is None else Limits(int(minimum or 0), int(maximum), int(center))


def _number(found: dict[str, list[str]], path: str, convert: Callable[[str], float]) -> float | None:
    """The first text at ``path`` as a number, None if it is not one."""
    return _value(found[path][0], convert) if path in found else None


def _value(text: str, convert: Callable[[str], float]) -> float | None:
    """``text`` as a finite number of modest size, None if it is not one."""
    try:
        value = convert(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e9 else None


def _ints(values: tuple[float, ...] | None) -> tuple[int, int, int] | None:
    return None if values is None else (int(values[0]), int(values[1]), int(values[2]))


def _floats(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])
