"""The strict check of an ISMRMRD header: all six fields that place an image, and what it tells of a person."""

from dataclasses import dataclass
from typing import Any

from rsdmri.data.fastmri_header import NAMESPACE, HeaderRefused, encoding_texts, header_root, local_name
from rsdmri.privacy import personal_kinds

_LIMITS = "encodingLimits/kspace_encoding_step_1"
_TRIPLES = (
    "encodedSpace/matrixSize",
    "encodedSpace/fieldOfView_mm",
    "reconSpace/matrixSize",
    "reconSpace/fieldOfView_mm",
)
_NUMBERS = (f"{_LIMITS}/center", f"{_LIMITS}/maximum")

_PERSONAL = {
    "a person's name": ("patientName", "referringPhysicianName"),
    "a patient number": ("patientID", "accessionNumber", "studyID"),
    "a date": ("patientBirthdate", "studyDate", "studyTime", "seriesDate", "seriesTime"),
    "a body": ("patientGender", "patientWeight_kg", "patientHeight_m"),
    "an institution or device": ("institutionName", "stationName", "deviceID", "deviceSerialNumber"),
    "a unique identifier": ("studyInstanceUID", "seriesInstanceUIDRoot", "frameOfReferenceUID", "measurementID"),
}
_KIND_OF = {name: kind for kind, names in _PERSONAL.items() for name in names}


@dataclass(frozen=True)
class Finding:
    """What is known of one field of a file."""

    field: str
    state: str
    """``found``, ``missing`` (and optional), ``odd`` or ``dangerous``."""
    type: str = ""
    shape: str = ""
    advice: str = ""
    """One line, empty where there is nothing to do."""


def examine_header(text: bytes, kspace: tuple[int, int] | None) -> tuple[list[Finding], list[str]]:
    """Findings on the fields of a header, strictly, and the kinds of personal data in it.

    ``kspace`` is (y, x) of the samples, None where they are unusable. Values are compared, personal ones never told.
    """
    try:
        root = header_root(text)
    except HeaderRefused as error:
        return [Finding("ismrmrd_header", "dangerous", "text", "", f"{error}; write a plain header")], []
    if root is None:
        return [Finding("ismrmrd_header", "odd", "text", "", "not well-formed XML; array sizes are used")], []
    kinds = _personal(root)
    advice = "" if root.tag.startswith(f"{{{NAMESPACE}}}") else f"root is not in the namespace {NAMESPACE}"
    top = Finding("ismrmrd_header", "odd" if advice else "found", "text", f"{len(text):,} bytes", advice)
    found = encoding_texts(root)
    if found is None:
        return [top, Finding("header: encoding", "missing", advice="no encoding section; array sizes are used")], kinds
    values = {name: _values(found, name) for name in (*_TRIPLES, *_NUMBERS)}
    findings = [_field(found, name, numbers) for name, numbers in values.items()]
    return [top, *findings, *_consistency(values, kspace)], kinds


def _values(found: dict[str, str], name: str) -> list[float] | None:
    """The numbers of a field, None where one is missing or is none that can be."""
    paths = [f"{name}/{axis}" for axis in "xyz"] if name in _TRIPLES else [name]
    try:
        numbers = [float(found[path]) for path in paths]
    except (KeyError, ValueError):
        return None
    low = 0 if name in _NUMBERS else 1e-6
    whole = name.endswith("_mm") or all(number == int(number) for number in numbers if abs(number) < 1e9)
    return numbers if whole and all(low <= number < 1e9 for number in numbers) else None


def _field(found: dict[str, str], name: str, numbers: list[float] | None) -> Finding:
    if numbers is not None:
        return Finding(f"header: {name}", "found", "number", " x ".join(f"{number:g}" for number in numbers))
    if not any(path == name or path.startswith(f"{name}/") for path in found):
        return Finding(
            f"header: {name}", "missing", advice="write it; without it array sizes or no padding are assumed"
        )
    wanted = "three positive numbers x, y, z" if name in _TRIPLES else "a whole number, 0 or more"
    return Finding(f"header: {name}", "odd", "text", advice=f"expected {wanted}; it is ignored")


def _consistency(values: dict[str, list[float] | None], kspace: tuple[int, int] | None) -> list[Finding]:
    """Where fields contradict one another or the samples."""
    encoded, _, recon, *_ = values.values()
    center, maximum = (values[name] for name in _NUMBERS)
    notes = []
    if encoded and recon and any(r > e for r, e in zip(recon[:2], encoded[:2], strict=True)):
        notes.append("the reconstructed matrix exceeds the encoded one; the crop is limited to k-space")
    if encoded and kspace and encoded[1] != kspace[1]:
        notes.append(f"the encoded matrix has {encoded[1]:g} phase encodes, k-space {kspace[1]}; padding is ignored")
    if encoded and center and maximum:
        left = encoded[1] // 2 - center[0]
        if not 0 <= left < left + maximum[0] + 1 <= encoded[1]:
            notes.append("acquired lines by center and maximum do not fit in the encoded matrix; padding is ignored")
    return [Finding("header: consistency", "odd", advice=note) for note in notes]


def _personal(root: Any) -> list[str]:
    """Kinds of personal data in the texts of a header."""
    kinds: dict[str, None] = {}
    for element in root.iter():
        text = (element.text or "").strip()
        if text:
            named = _KIND_OF.get(local_name(element.tag))
            kinds |= dict.fromkeys([named] if named else personal_kinds(text[:1000]))
    return list(kinds)
