"""A scan as named arrays and JSON, and back: how records cross from one process to another."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from rsdmri.data.scan import Geometry, Header, Scan

Convert = Callable[[Any], Any]


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"expected a whole number, got {type(value).__name__}")
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {type(value).__name__}")
    return float(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, got {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or not value.isprintable() or len(value) > 2000:
        raise ValueError("expected one printable line")
    return value


def _several(one: Convert, count: int | None = None) -> Convert:
    def convert(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
            raise ValueError(f"expected {'several' if count is None else count} values")
        return tuple(one(value) for value in values)

    return convert


def _maybe(one: Convert) -> Convert:
    return lambda value: None if value is None else one(value)


def _record(kind: type, converts: Mapping[str, Convert]) -> Convert:
    def convert(values: Any) -> Any:
        return kind(**_checked(values, converts))

    return convert


ARRAYS = ("kspace", "mask", "absent", "maps", "noise_cov", "target")
HEADER: dict[str, Convert] = {
    "encoded": _maybe(_several(_whole, 3)),
    "recon": _maybe(_several(_whole, 3)),
    "fov_mm": _maybe(_several(_real, 3)),
    "padding": _maybe(_several(_whole, 2)),
    "field_strength_t": _maybe(_real),
    "echo_times_ms": _maybe(_several(_real)),
    "repetition_times_ms": _maybe(_several(_real)),
    "flip_angles_deg": _maybe(_several(_real)),
    "inversion_times_ms": _maybe(_several(_real)),
}
GEOMETRY: dict[str, Convert] = {
    "spacing_mm": _several(_real, 2),
    "thickness_mm": _real,
    "y_direction": _several(_real, 3),
    "x_direction": _several(_real, 3),
    "centres": _several(_several(_real, 3)),
}
FACTS: dict[str, Convert] = {
    "name": _text,
    "crop": _several(_whole, 2),
    "prospective": _flag,
    "acquisition": _text,
    "target_source": _maybe(_text),
    "header": _maybe(_record(Header, HEADER)),
    "geometry": _maybe(_record(Geometry, GEOMETRY)),
    "warnings": _several(_text),
}


def scan_to_parts(scan: Scan) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of ``scan`` by field, and the other fields as JSON can hold them; None fields of arrays are left out.

    Raises `ValueError` where a field is not known here: nothing is dropped in silence.
    """
    _same_fields(Scan, {*ARRAYS, *FACTS})
    _same_fields(Header, set(HEADER))
    _same_fields(Geometry, set(GEOMETRY))
    facts = {name: getattr(scan, name) for name in FACTS}
    for name in ("header", "geometry"):
        facts[name] = None if facts[name] is None else asdict(facts[name])
    arrays = {name: getattr(scan, name) for name in ARRAYS}
    return {name: array for name, array in arrays.items() if array is not None}, facts


def scan_from_parts(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Scan:
    """The scan of these parts, the inverse of `scan_to_parts`; `ValueError` where a part is missing or is no such."""
    unknown = arrays.keys() - set(ARRAYS)
    missing = {"kspace", "mask", "absent"} - arrays.keys()
    if unknown or missing:
        raise ValueError(f"arrays of a scan: {len(unknown)} unknown, missing: {', '.join(sorted(missing)) or 'none'}")
    values: dict[str, Any] = {**arrays, **_checked(facts, FACTS)}
    return Scan(**values)


def _checked(values: Any, converts: Mapping[str, Convert]) -> dict[str, Any]:
    if not isinstance(values, Mapping) or values.keys() != converts.keys():
        raise ValueError(f"expected the fields {', '.join(converts)}")
    return {name: convert(values[name]) for name, convert in converts.items()}


def _same_fields(kind: type, known: set[str]) -> None:
    here = {field.name for field in fields(kind)}
    if here != known:
        raise ValueError(f"{kind.__name__}: fields without a way to another process: {sorted(here ^ known)}")
