"""Manifests: which files belong to a data set, in which split, whose, and under which licence.

A tab-separated text file with a header line. ``path`` (relative to the manifest, absolute, or a URI) is the only
column that must be there; ``split`` defaults to train. A folder stands for its ``manifest.tsv``, or for all its
``*.h5`` files.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rsdmri.data.remote import (
    BLOCK,
    Location,
    is_uri,
    list_files,
    locate,
    name_of,
    open_remote,
    public,
    read_bytes,
)
from rsdmri.errors import InputError
from rsdmri.files import write_text

COLUMNS = ("path", "sha256", "split", "subject", "anatomy", "contrast", "coils", "matrix", "licence")
SPLITS = ("train", "val", "test")
_LARGEST = 200_000_000  # bytes


@dataclass(frozen=True)
class ManifestEntry:
    """One file of a data set; empty strings where the manifest does not say."""

    path: Location
    sha256: str = ""
    split: str = "train"
    subject: str = ""
    anatomy: str = ""
    contrast: str = ""
    coils: str = ""
    matrix: str = ""
    licence: str = ""


def read_manifest(path: str | os.PathLike[str]) -> list[ManifestEntry]:
    """Entries of a manifest or folder, with absolute locations, in the order of the file (folders: by name).

    ``path`` may be a URI. File contents are not read and hashes not checked here (see `verify`), nor whether remote
    files are there.

    Raises:
        InputError: no such manifest, no scans in the folder, no ``path`` column, a row that does not fit the header,
            an unknown split, the same file twice, a file that is not there.
    """
    if is_uri(path):
        found = locate(str(path))
        if isinstance(found, str):
            return _read_remote(found)
        path = found
    source = Path(path)
    if source.is_dir():
        listed = source / "manifest.tsv"
        if not listed.exists():
            files = sorted(file for file in source.glob("*.h5") if not file.name.startswith("."))
            if not files:
                raise InputError(f"{source}: no manifest.tsv and no .h5 files in this folder; give another --data")
            return [ManifestEntry(file.resolve()) for file in files]
        source = listed
    return _entries(str(source), source.parent, _rows(source))


def _read_remote(uri: str) -> list[ManifestEntry]:
    """Entries of a remote manifest (``.tsv``) or folder."""
    where = public(uri)
    if not name_of(uri).lower().endswith(".tsv"):
        files = list_files(uri, ("/manifest.tsv", ".h5"), recursive=False)
        listed = next((file.uri for file in files if file.relative == "manifest.tsv"), None)
        if listed is None:
            if not files:
                raise InputError(f"{where}: no manifest.tsv and no .h5 files there; give another --data")
            return [ManifestEntry(file.uri) for file in files]
        uri = listed
    try:
        text = read_bytes(uri, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not a text file; give a manifest (.tsv) or a folder of scans") from None
    return _entries(where, uri.rpartition("/")[0], _table(where, text))


def _entries(source: str, folder: Location, rows: list[list[str]]) -> list[ManifestEntry]:
    header, body = rows[0], rows[1:]
    if "path" not in header:
        raise InputError(f"{source}: no column 'path' in its first line; expected tab-separated {' '.join(COLUMNS)}")
    if len(set(header)) < len(header):
        raise InputError(f"{source}: a column is named twice in its first line; name each once")
    entries: list[ManifestEntry] = []
    seen: set[Location] = set()
    for number, row in enumerate(body, start=2):
        if not any(cell.strip() for cell in row):
            continue
        entry = _entry(f"{source} line {number}", folder, header, row)
        if entry.path in seen:
            raise InputError(f"{source} line {number}: {name_of(entry.path)} is listed twice; remove one")
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
    return _table(str(source), text)


def _table(source: str, text: str) -> list[list[str]]:
    if "\0" in text or not text.strip():
        raise InputError(f"{source}: {'holds NUL bytes' if text.strip() else 'is empty'}; not a manifest")
    return [line.split("\t") for line in text.splitlines()]


def _entry(where: str, folder: Location, header: list[str], row: list[str]) -> ManifestEntry:
    if len(row) != len(header):
        raise InputError(f"{where}: {len(row)} cells where the first line has {len(header)}; separate cells with tabs")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True) if name in COLUMNS}
    if not cells["path"]:
        raise InputError(f"{where}: the path is empty; name a file")
    split = cells.get("split") or "train"
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {split[:40]!r}; use one of {', '.join(SPLITS)}")
    try:
        file = locate(cells["path"], folder)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if isinstance(file, Path) and not file.is_file():
        raise InputError(f"{where}: {file} does not exist; correct the path or remove the line")
    return ManifestEntry(**{**cells, "path": file, "split": split})  # type: ignore[arg-type]


def write_manifest(path: str | os.PathLike[str], entries: Iterable[ManifestEntry]) -> None:
    """Write ``entries`` to ``path`` atomically, file paths relative to it where they lie below its folder."""
    folder = Path(path).resolve().parent
    lines = ["\t".join(COLUMNS)]
    for entry in entries:
        if is_uri(str(entry.path)):
            shown = str(entry.path)
        else:
            file = Path(entry.path).resolve()
            shown = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
        cells = [shown, *(str(getattr(entry, name)) for name in COLUMNS[1:])]
        if any(set(cell) & set("\t\n\r\0") for cell in cells):
            raise InputError(
                f"{name_of(entry.path)!r}: tabs and line breaks cannot be written to a manifest; rename it"
            )
        lines.append("\t".join(cells))
    write_text(path, "\n".join(lines) + "\n")


def file_sha256(path: str | os.PathLike[str], advance: Callable[[int], None] = lambda _: None) -> str:
    """Hexadecimal SHA-256 of a file or URI, read in pieces; ``advance`` gets the bytes of each."""
    digest = hashlib.sha256()
    with open_remote(str(path)) if is_uri(path) else open(path, "rb", buffering=0) as handle:
        buffer = memoryview(bytearray(BLOCK))
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()


def verify(entry: ManifestEntry) -> None:
    """Compare a file with its manifest's hash; `InputError` if they differ. Does nothing without a hash."""
    if entry.sha256 and file_sha256(entry.path) != entry.sha256.lower():
        name = public(str(entry.path)) if is_uri(str(entry.path)) else entry.path
        raise InputError(f"{name}: differs from its manifest (sha256); copy it again or update the manifest")
