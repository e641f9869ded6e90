"""MATLAB files of version 5 to 7, not trusted: the heads of their variables, and the values of complex ones.

"MAT-File Format" (MathWorks): after 128 bytes come elements of a type, a number of bytes and data, padded to 8 bytes.
An array (type 14), or one that zlib has packed (type 15), holds as elements its flags, sizes, name, real part and
imaginary part, the parts in whatever type of number takes least room.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from rsdmri.data.hdf5 import PathLike, clean
from rsdmri.data.plain_files import file_size, refuse_packed_bomb
from rsdmri.errors import InputError

_ARRAY, _PACKED, _COMPLEX_FLAG = 14, 15, 0x0800
_CLASSES = {
    **{1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single", 8: "int8", 9: "uint8"},
    **{10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64"},
}
_COMPLEX = {"double": "c16", "single": "c8"}
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MOST_VARIABLES, _HEAD_BYTES = 1000, 1024


@dataclass(frozen=True)
class MatVariable:
    """What the head of a variable says, and where it lies."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """``double``, ``single``, ``struct`` and the like."""
    is_complex: bool
    start: int
    stored: int
    """Bytes in the file, from ``start``."""
    packed: bool
    order: str
    """``<`` or ``>``."""


def mat5_variables(path: PathLike, where: str) -> list[MatVariable]:
    """Heads of the variables of a file; values are not unpacked.

    Raises:
        InputError: a file that is damaged, cut short or holds far more than it stores; several variables of one name.
    """
    found: dict[str, MatVariable] = {}
    with open(path, "rb") as file:
        order = "<" if file.read(128).endswith(b"IM") else ">"
        end = file_size(path)
        while file.tell() < end:
            if len(found) == _MOST_VARIABLES:
                raise InputError(f"{where}: holds more than {_MOST_VARIABLES:,} variables; keep what is needed")
            try:
                one = _next(file, order, end)
            except (struct.error, zlib.error, ValueError):
                raise InputError(f"{where}: is cut short or damaged; save it again, or copy it again") from None
            if one is None:
                continue
            if one.name in found:
                raise InputError(f"{where}: holds '{clean(one.name, 30)}' twice; save it again")
            found[one.name] = one
            refuse_packed_bomb(where, one.name, math.prod(one.shape) * (16 if one.is_complex else 1), one.stored)
    return list(found.values())


def load_mat5(path: PathLike, where: str, one: MatVariable) -> np.ndarray:
    """Values of a complex variable; no more is unpacked than its head declares.

    Raises:
        InputError: values that are damaged, cut short, or not what the head declares.
    """
    count = math.prod(one.shape)
    try:
        with open(path, "rb") as file:
            file.seek(one.start)
            data = file.read(one.stored)
        if one.packed:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(data, _HEAD_BYTES + 2 * (8 * count + 16))[8:]
            if not unpacking.eof:
                raise ValueError("more than declared")
        view, place = memoryview(data), 0
        for _ in range(3):
            _, _, place = _element(view, place, one.order)
        values = np.empty(count, _COMPLEX[one.kind])
        for part in (values.real, values.imag):
            code, raw, place = _element(view, place, one.order)
            part[:] = np.frombuffer(raw, one.order + _NUMBERS[code])
    except (struct.error, zlib.error, ValueError, KeyError):
        raise InputError(
            f"{where}: '{clean(one.name, 30)}' is damaged or not the complex array that it declares; save it again"
        ) from None
    return values.reshape(one.shape, order="F")


def _next(file: BinaryIO, order: str, end: int) -> MatVariable | None:
    """The head of the next element, None where it is no array; ``file`` stands behind it afterwards."""
    kind, count = struct.unpack(f"{order}2I", file.read(8))
    start = file.tell()
    if start + count > end:
        raise ValueError("beyond the end of the file")
    head = file.read(min(count, _HEAD_BYTES))
    file.seek(start + count)
    packed = kind == _PACKED
    if packed:
        head = zlib.decompressobj().decompress(head, _HEAD_BYTES)
        kind = struct.unpack_from(f"{order}I", head)[0]
        head = head[8:]
    else:
        file.seek(-count % 8, 1)
    if kind != _ARRAY:
        return None
    _, flags, place = _element(head, 0, order)
    _, sizes, place = _element(head, place, order)
    _, name, _ = _element(head, place, order)
    word = struct.unpack_from(f"{order}I", flags)[0]
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if any(size < 0 for size in shape):
        raise ValueError("negative size")
    kind_name = _CLASSES.get(word & 0xFF, "unknown")
    is_complex = bool(word & _COMPLEX_FLAG) and kind_name in _COMPLEX
    return MatVariable(bytes(name).decode("latin-1"), shape, kind_name, is_complex, start, count, packed, order)


def _element(data: bytes | memoryview, place: int, order: str) -> tuple[int, bytes | memoryview, int]:
    """Type and data of the element at ``place``, and where the next one begins; at most 4 bytes go into its tag."""
    word, count = struct.unpack_from(f"{order}2I", data, place)
    if word >> 16:
        count = word >> 16
        if count > 4:
            raise ValueError("more than 4 bytes in a tag")
        return word & 0xFFFF, data[place + 4 : place + 4 + count], place + 8
    if place + 8 + count > len(data):
        raise ValueError("element beyond its array")
    return word, data[place + 8 : place + 8 + count], place + 8 + count + (-count % 8)
