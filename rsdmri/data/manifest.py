"""Manifests: which files belong to a data set, in which split, whose, and under which licence.

A tab-separated text file with a header line. ``path`` (relative to the manifest, or absolute) is the only column that
must be there; ``split`` defaults to train. A folder stands for its ``manifest.tsv``, or for all its ``*.h5`` files.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rsdmri.errors import InputError
from rsdmri.files import write_text

COLUMNS = ("path", "sha256", "split", "subject", "anatomy", "contrast", "coils", "matrix", "licence")
SPLITS = ("train", "val", "test")
_LARGEST = 200_000_000  # bytes


@dataclass(frozen=True)
class ManifestEntry:
    """One file of a data set; empty strings where the manifest does not say."""

    path: Path
    sha256: str = ""
    split: str = "train"
    subject: str = ""
    anatomy: str = ""
    contrast: str = ""
    coils: str = ""
    matrix: str = ""
    licence: str = ""


def read_manifest(path: str | os.PathLike[str]) -> list[ManifestEntry]:
    """Entries of a manifest or folder, with absolute paths, in the order of the file (folders: by name).

    File contents are not read and hashes not checked here; see `verify`.

    Raises:
        InputError: no such manifest, no scans in the folder, no ``path`` column, a row that does not fit the header,
            an unknown split, the same file twice, a file that is not there.
    """
    source = Path(path)
    if source.is_dir():
        listed = source / "manifest.tsv"
        if not listed.exists():
            files = sorted(file for file in source.glob("*.h5") if not file.name.startswith("."))
            if not files:
                raise InputError(f"{source}: no manifest.tsv and no .h5 files in this folder; give another --data")
            return [ManifestEntry(file.resolve()) for file in files]
        source = listed
    rows = _rows(source)
    header, body = rows[0], rows[1:]
    if "path" not in header:
        raise InputError(f"{source}: no column 'path' in its first line; expected tab-separated {' '.join(COLUMNS)}")
    if len(set(header)) < len(header):
        raise InputError(f"{source}: a column is named twice in its first line; name each once")
    entries: list[ManifestEntry] = []
    seen: set[Path] = set()
    for number, row in enumerate(body, start=2):
        if not any(cell.strip() for cell in row):
            continue
        entry = _entry(source, number, header, row)
        if entry.path in seen:
            raise InputError(f"{source} line {number}: {entry.path.name} is listed twice; remove one")
        seen.add(entry.path)
        entries.append(entry)
    if not entries:
        raise InputError(f"{source}: lists no files; add one line per scan")
    return entries


def _rows(source: Path) -> list[list[str]]:
    try:
        if source.stat().st_size > _LARGEST:
            raise InputError(f"{source}: larger than {_LARGEST:,} bytes, not a manifest; give a .tsv or a folder")
        text = source.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{source}: no such manifest or folder; check --data") from None
    except UnicodeDecodeError:
        raise InputError(f"{source}: not a text file; give a manifest (.tsv) or a folder of scans") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error}); check it") from None
    if "\0" in text or not text.strip():
        raise InputError(f"{source}: {'holds NUL bytes' if text.strip() else 'is empty'}; not a manifest")
    return [line.split("\t") for line in text.splitlines()]


def _entry(source: Path, number: int, header: list[str], row: list[str]) -> ManifestEntry:
    where = f"{source} line {number}"
    if len(row) != len(header):
        raise InputError(f"{where}: {len(row)} cells where the first line has {len(header)}; separate cells with tabs")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True) if name in COLUMNS}
    if not cells["path"]:
        raise InputError(f"{where}: the path is empty; name a file")
    split = cells.get("split") or "train"
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {split[:40]!r}; use one of {', '.join(SPLITS)}")
    file = (source.parent / cells["path"]).resolve()
    if not file.is_file():
        raise InputError(f"{where}: {file} does not exist; correct the path or remove the line")
    return ManifestEntry(**{**cells, "path": file, "split": split})  # type: ignore[arg-type]


def write_manifest(path: str | os.PathLike[str], entries: Iterable[ManifestEntry]) -> None:
    """Write ``entries`` to ``path`` atomically, file paths relative to it where they lie below its folder."""
    folder = Path(path).resolve().parent
    lines = ["\t".join(COLUMNS)]
    for entry in entries:
        file = Path(entry.path).resolve()
        shown = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
        cells = [shown, *(str(getattr(entry, name)) for name in COLUMNS[1:])]
        if any(set(cell) & set("\t\n\r\0") for cell in cells):
            raise InputError(f"{file.name!r}: tabs and line breaks cannot be written to a manifest; rename it")
        lines.append("\t".join(cells))
    write_text(path, "\n".join(lines) + "\n")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify(entry: ManifestEntry) -> None:
    """Compare a file with its manifest's hash; `InputError` if they differ. Does nothing without a hash."""
    if entry.sha256 and file_sha256(entry.path) != entry.sha256.lower():
        raise InputError(f"{entry.path}: differs from its manifest (sha256); copy it again or update the manifest")
