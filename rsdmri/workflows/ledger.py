"""What a folder of reconstructions holds: a line for each scan, and which scans need not be done again.

``reconstructions.jsonl`` is replaced whole whenever a scan is done. Of several processes the first writes it, the
others a part each, which the first takes over when all are done.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri import __version__
from rsdmri.data.derived import digest
from rsdmri.data.volumes import read_attributes
from rsdmri.errors import InputError
from rsdmri.evaluation.record import finite
from rsdmri.files import write_text
from rsdmri.training.manifest import file_digest

NAME = "reconstructions.jsonl"
REQUEST = "request_sha256"

_TOLD = (
    *("method", "samples", "seed", "acceleration", "acceleration_nominal", "acs_lines", "seconds_per_slice"),
    *("source_sha256", "prior_sha256", "mask_sha256", REQUEST, "version", "note"),
)

Row = dict[str, Any]


class Ledger:
    """The lines of a folder, by scan.

    Args:
        folder: of results.
        kept: whether lines are written; otherwise they are known here alone.
        rank: of this process.
    """

    def __init__(self, folder: Path, *, kept: bool, rank: int = 0) -> None:
        self.folder, self._kept, self._rank = folder, kept, rank
        self.rows = _read(folder / NAME)
        self._own: dict[str, Row] = {}

    def add(self, row: Row) -> None:
        """Note ``row`` under its ``scan``, instead of an earlier one."""
        self.rows[row["scan"]] = self._own[row["scan"]] = row
        if self._kept:
            _write(self.folder / NAME, self.rows) if self._rank == 0 else _write(self._part, self._own)

    @property
    def _part(self) -> Path:
        return self.folder / f".reconstructions-{self._rank}.jsonl"

    def absorb(self) -> None:
        """Take over the parts that other processes left, and remove them; the first process alone does so."""
        parts = sorted(self.folder.glob(".reconstructions-*.jsonl"))
        for part in parts:
            self.rows |= _read(part)
        if parts:
            _write(self.folder / NAME, self.rows)
        for part in parts:
            part.unlink(missing_ok=True)

    def remove_if_nothing(self) -> None:
        """Remove the file where no scan of it was reconstructed."""
        if all(row.get("status") == "failed" for row in self.rows.values()):
            (self.folder / NAME).unlink(missing_ok=True)

    def finished(self, scan: str, wanted: Mapping[str, Path], request: str, source: str) -> Row | None:
        """What is known of the results of ``scan``, where all that are ``wanted`` exist and were made as they would be.

        Args:
            scan: stem of the results.
            wanted: files below the folder by what they hold.
            request: see `request_of`.
            source: hash of the scan's samples.
        """
        files = [os.fspath(path) for path in wanted.values()]
        if not all((self.folder / file).exists() for file in files):
            return None
        row = self.rows.get(scan, {})
        if (row.get(REQUEST), row.get("source_sha256")) == (request, source) and {*files} <= {*row.get("files", ())}:
            return row
        if wanted.keys() <= {"h5", "png"} and "h5" in wanted:
            told = told_by(self.folder / wanted["h5"])
            if (told.get(REQUEST), told.get("source_sha256")) == (request, source):
                return {"scan": scan, **told}
        return None


def told_by(file: Path) -> Row:
    """What a result's own attributes say; nothing where it cannot be read."""
    names = (REQUEST, "source_sha256", "method", "acceleration", "seconds_per_slice", "nmse", "nrmse", "psnr", "ssim")
    try:
        return dict(read_attributes(file, names))
    except InputError:
        return {}


def request_of(options: Mapping[str, Any], files: Mapping[str, Any], prior: str | None) -> str:
    """Hash of all that decides a result besides the scan: options, contents of ``files``, prior, version.

    ``files``: by option, None where not given; a name without suffix stands for all files of that stem.
    """
    contents = {}
    for name, given in files.items():
        path = None if given is None else Path(given)
        parts = [] if path is None else [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*"))
        contents[name] = [file_digest(part) for part in parts if part.is_file()]
    return digest({"options": dict(options), "files": contents, "prior": prior, "version": __version__})


def done_row(attrs: Mapping[str, Any], scan: str, files: Sequence[Path], **more: Any) -> Row:
    """Line of a scan that was reconstructed; ``attrs`` of its result."""
    told = {name: _plain(attrs[name]) for name in _TOLD if name in attrs}
    return {"scan": scan, "status": "done", **told, "files": [os.fspath(file) for file in files], **finite(more)}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read(path: Path) -> dict[str, Row]:
    """Rows by scan; lines that are none are passed over: their scans are not known to be done."""
    found: dict[str, Row] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("scan"), str):
            found[row["scan"]] = row
    return found


def _write(path: Path, rows: Mapping[str, Row]) -> None:
    write_text(path, "".join(json.dumps(rows[scan], allow_nan=False) + "\n" for scan in sorted(rows)))
