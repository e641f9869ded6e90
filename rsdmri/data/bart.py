"""BART arrays: a pair of files NAME.cfl and NAME.hdr, not trusted.

BART (https://mrirecon.github.io/bart): the header's second line is the size of up to 16 axes, READ, PHS1, PHS2, COIL,
MAPS, TE, COEFF, COEFF2, ITER, CSHIFT, TIME, TIME2, LEVEL, SLICE, AVG, BATCH; the data are complex64, first axis
fastest. READ is y here, PHS1 is x, PHS2 the partition of a volume. K-space is centred, as `bart fft -u` has it.
"""

import os
from pathlib import Path

import numpy as np

from rsdmri.data.hdf5 import PathLike, clean
from rsdmri.data.kspace import cartesian_scan, check_sizes, volume_slices
from rsdmri.data.plain_files import file_errors
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.files import atomic_path, safe_stem

AXES = (
    *("READ", "PHS1", "PHS2", "COIL", "MAPS", "TE", "COEFF", "COEFF2"),
    *("ITER", "CSHIFT", "TIME", "TIME2", "LEVEL", "SLICE", "AVG", "BATCH"),
)
TITLE = "# Dimensions"
_HEADER_BYTES = 64 << 10


def pair_base(path: PathLike) -> Path | None:
    """NAME of the pair that ``path`` names by NAME.cfl, NAME.hdr or NAME itself; None where it names none."""
    source = Path(path)
    if source.suffix.lower() in (".cfl", ".hdr"):
        return source.with_suffix("")
    return source if not source.is_file() and _part(source, ".hdr").is_file() else None


def open_cfl(path: PathLike) -> np.ndarray:
    """The array of a pair with all 16 axes, first axis fastest, mapped: no memory is taken.

    Raises:
        InputError: a missing part, a header that is none, a size of the data that is not what the header declares.
    """
    with file_errors(path) as where:
        base = pair_base(path) or Path(path)
        header, data = _part(base, ".hdr"), _part(base, ".cfl")
        if not header.is_file() and not data.is_file():
            raise FileNotFoundError
        for part in (header, data):
            if not part.is_file():
                raise InputError(f"{where}: '{clean(part.name)}' is missing; a BART array is a pair of .cfl and .hdr")
        sizes = _sizes(header, where)
        declared, stored = 8, os.stat(data).st_size
        for size in sizes:
            declared *= size
        if stored < declared:
            raise InputError(f"{where}: .cfl is cut short ({stored:,} of {declared:,} bytes); copy it again")
        if stored > declared:
            raise InputError(
                f"{where}: .cfl has {stored:,} bytes but its header declares {declared:,}; copy both files again"
            )
        return np.memmap(data, dtype="<c8", mode="r", shape=tuple(sizes), order="F")


def only_axes(where: str, array: np.ndarray, names: tuple[str, ...], cure: str) -> np.ndarray:
    """``array`` with the axes ``names`` alone, in BART's order; `InputError` with ``cure`` where another is used."""
    sizes = list(zip(AXES, array.shape, strict=True))
    other = [f"axis {k} ({name}) has {n}" for k, (name, n) in enumerate(sizes) if n != 1 and name not in names]
    if other:
        expected = ", ".join(f"{name} ({AXES.index(name)})" for name in names)
        raise InputError(f"{where}: {', '.join(other)}; expected {expected} only: {cure}")
    return array.squeeze(tuple(k for k, name in enumerate(AXES) if name not in names))


def read_bart(path: PathLike) -> Scan:
    """K-space of a BART pair: READ, PHS1, COIL and either SLICE or PHS2, the partitions of a volume.

    Raises:
        InputError: see `open_cfl`; other axes in use, implausible sizes, NaN or infinite samples, nothing acquired.
    """
    with file_errors(path) as where:
        cure = "choose one with 'bart slice AXIS POSITION', or put slices on axis 13 with 'bart transpose AXIS 13'"
        array = only_axes(where, open_cfl(path), ("READ", "PHS1", "PHS2", "COIL", "SLICE"), cure)
        height, width, partitions, coils, slices = array.shape
        check_sizes(where, max(slices, partitions), coils, height, width)
        name = safe_stem((pair_base(path) or Path(path)).name + ".cfl")
        if partitions == 1:
            return cartesian_scan(where, name, array[:, :, 0].transpose(3, 2, 0, 1))
        if slices > 1:
            raise InputError(f"{where}: axes PHS2 (2) and SLICE (13) are both used; {cure}")
        kspace, note = volume_slices(array[..., 0].transpose(3, 0, 2, 1))
        note += "; if PHS2 (2) holds the slices of a 2-D scan, put them on axis 13 with 'bart transpose 2 13'"
        return cartesian_scan(where, name, kspace, warnings=(note,))


def write_cfl(path: PathLike, kspace: np.ndarray) -> None:
    """Write (slice, coil, y, x), or (coil, y, x), as NAME.cfl and NAME.hdr, each replaced atomically.

    Args:
        path: NAME.cfl.
        kspace: written as complex64; y becomes READ, x PHS1.
    """
    if kspace.ndim not in (3, 4):
        raise ValueError(f"kspace: expected (slice, coil, y, x) or (coil, y, x), got {kspace.shape}")
    kspace = kspace[None] if kspace.ndim == 3 else kspace
    slices, coils, height, width = kspace.shape
    sizes = dict.fromkeys(AXES, 1) | {"READ": height, "PHS1": width, "COIL": coils, "SLICE": slices}
    base = pair_base(path) or Path(path)
    with atomic_path(_part(base, ".cfl")) as temporary, open(temporary, "wb") as file:
        for one in kspace:
            np.ascontiguousarray(one.transpose(0, 2, 1), "<c8").tofile(file)
    with atomic_path(_part(base, ".hdr")) as temporary:
        temporary.write_text(f"{TITLE}\n{' '.join(map(str, sizes.values()))}\n", encoding="ascii")


def _part(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _sizes(header: Path, where: str) -> list[int]:
    """Sizes of the 16 axes of a BART array."""
    with open(header, "rb") as file:
        text = file.read(_HEADER_BYTES + 1)
    if len(text) > _HEADER_BYTES:
        raise InputError(f"{where}: .hdr has more than {_HEADER_BYTES:,} bytes; that is no BART header")
    lines = [line.strip() for line in text.decode("ascii", "replace").splitlines()]
    title = lines.index(TITLE) + 1 if TITLE in lines else 0
    line = lines[title] if title < len(lines) else ""
    words = line.split()
    fits = 0 < len(words) <= len(AXES) and all(w.isascii() and w.isdigit() and len(w) < 12 for w in words)
    if title == 0 or not fits or any(int(word) == 0 for word in words):
        raise InputError(
            f"{where}: .hdr needs '{TITLE}' and a line of up to {len(AXES)} positive sizes, got '{clean(line)}'"
        )
    return [int(word) for word in words] + [1] * (len(AXES) - len(words))
