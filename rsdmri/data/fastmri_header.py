"""The ISMRMRD header of fastMRI files: a tolerant reader of the geometry fields and a writer.

Nothing but geometry is read: subject and study information never leave the file.
"""

import math
from collections.abc import Callable
from typing import Any

from rsdmri.data.scan import Header

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
LARGEST = 1_000_000  # bytes; fastMRI's headers have about 10,000


class HeaderRefused(ValueError):
    """The header is dangerous: the file should not be trusted."""


def parse_header(text: bytes) -> tuple[Header, tuple[str, ...]]:
    """Geometry of the first encoding and what could not be used, one line each.

    padding_left = encoded.y // 2 - center; padding_right = padding_left + maximum + 1 (fastMRI, Zbontar et al. 2018).

    Raises:
        HeaderRefused: more than 1 MB, a DTD or entities.
    """
    root = header_root(text)
    if root is None:
        return Header(), ("header is not well-formed XML; using array sizes",)
    found = encoding_texts(root)
    if found is None:
        return Header(), ("header has no encoding section; using array sizes",)
    warnings: list[str] = []

    def triple(path: str, convert: Callable[[str], float], largest: float) -> tuple[float, ...] | None:
        names = [f"{path}/{axis}" for axis in "xyz"]
        if not any(name in found for name in names):
            return None
        values = [_number(found.get(name), convert) for name in names]
        if any(value is None or not 0 < value <= largest for value in values):
            warnings.append(f"header: {path} is not three positive numbers; ignored")
            return None
        return tuple(value for value in values if value is not None)

    encoded = triple("encodedSpace/matrixSize", int, 1 << 16)
    recon = triple("reconSpace/matrixSize", int, 1 << 16)
    fov = triple("reconSpace/fieldOfView_mm", float, 1e5)
    limits = "encodingLimits/kspace_encoding_step_1"
    center, maximum = (_number(found.get(f"{limits}/{name}"), int) for name in ("center", "maximum"))
    padding = None
    if encoded is not None and center is not None and maximum is not None:
        left = int(encoded[1]) // 2 - int(center)
        padding = (left, left + int(maximum) + 1)
    elif center is not None or maximum is not None or any(name.startswith(limits) for name in found):
        warnings.append("header: encoding limits are incomplete; no padding assumed")
    return Header(_ints(encoded), _ints(recon), _floats(fov), padding), tuple(warnings)


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
    encoding = next((element for element in root.iter() if local_name(element.tag) == "encoding"), None)
    if encoding is None:
        return None
    found: dict[str, str] = {}
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
        extent = "".join(f"<{axis}>{side:.6g}</{axis}>" for axis, side in zip("xyz", sides, strict=True))
        return f"<{name}><matrixSize>{size}</matrixSize><fieldOfView_mm>{extent}</fieldOfView_mm></{name}>"

    limits = (
        f"<kspace_encoding_step_1><minimum>0</minimum><maximum>{right - left - 1}</maximum>"
        f"<center>{encoded[1] // 2 - left}</center></kspace_encoding_step_1>"
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<ismrmrdHeader xmlns="{NAMESPACE}">'
        "<experimentalConditions><H1resonanceFrequency_Hz>123200000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding>{space('encodedSpace', encoded)}{space('reconSpace', recon)}"
        f"<encodingLimits>{limits}</encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>\n"
    ).encode()


def local_name(tag: object) -> str:
    """Element name without its namespace; comments and processing instructions have none."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


_ALLOWED = {"encodedSpace", "reconSpace", "matrixSize", "fieldOfView_mm", "encodingLimits", "kspace_encoding_step_1"}
_LEAVES = {"x", "y", "z", "center", "maximum"}


def _collect(element: object, path: str, found: dict[str, str]) -> None:
    """Texts of the allowed leaves below ``element`` by path, the first one of each; at most three levels deep."""
    for child in element:  # type: ignore[attr-defined]
        name = local_name(child.tag)
        here = f"{path}/{name}" if path else name
        if name in _ALLOWED and path.count("/") < 2:
            _collect(child, here, found)
        elif name in _LEAVES and child.text:
            found.setdefault(here, child.text.strip()[:40])


def _number(text: str | None, convert: Callable[[str], float]) -> float | None:
    """``text`` as a finite number of modest size, None if it is not one."""
    try:
        value = convert(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) and abs(value) < 1e9 else None


def _ints(values: tuple[float, ...] | None) -> tuple[int, int, int] | None:
    return None if values is None else (int(values[0]), int(values[1]), int(values[2]))


def _floats(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])
