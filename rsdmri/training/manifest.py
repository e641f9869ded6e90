"""The list of a run's checkpoints, ``checkpoints/manifest.json``: what is whole, what is best, which roll-backs were.

It is written last, in one go: a file that it names was finished before, and what no longer counts leaves it first.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rsdmri.errors import InputError
from rsdmri.files import write_text

NAME = "manifest.json"
Warn = Callable[[str], None]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)  # what later versions add is passed over


class Entry(_Part):
    """One checkpoint file: its name, step, contents, and the validation loss of its averaged weights."""

    file: str
    step: int
    sha256: str
    size: int
    validation: float | None = None

    def check(self, folder: Path) -> None:
        """Raise `InputError`, which says what is wrong, unless the file has the size and hash that were written."""
        path = folder / self.file
        try:
            size = path.stat().st_size
            if size != self.size:
                raise InputError(f"{path}: damaged, {size} bytes where {self.size} were written")
            if file_digest(path) != self.sha256:
                raise InputError(f"{path}: damaged, its contents are not those that were written (sha256)")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None


class DrawnItem(_Part):
    """One slice of the training set: its number there, its file's name, its index in the file."""

    item: int
    file: str
    slice: int


class RollBack(_Part):
    """Step ``step`` diverged: training went on after step ``back_to``, without ``left_out`` or with all drawn anew."""

    step: int
    back_to: int
    problem: str
    left_out: tuple[DrawnItem, ...] = ()


class Record(_Part):
    """What is known of one stage: its generations, oldest first, the best of all, and its roll-backs in order.

    The first ``forgiven`` roll-backs were with other settings.
    """

    generations: tuple[Entry, ...] = ()
    best: Entry | None = None
    roll_backs: tuple[RollBack, ...] = ()
    forgiven: int = 0


class Manifest(_Part):
    """All stages of a run."""

    format: int = 1
    stages: dict[str, Record] = {}

    def stage(self, name: str) -> Record:
        """Record of the stage called ``name``, empty if there is none yet."""
        return self.stages.get(name, Record())

    def write(self, folder: Path, name: str, record: Record) -> "Manifest":
        """Replace the record of one stage, on disk, too."""
        changed = self.model_copy(update={"stages": {**self.stages, name: record}})
        write_text(folder / NAME, changed.model_dump_json(indent=1, exclude_none=True) + "\n")
        return changed


def forgive(folder: Path) -> None:
    """Note that the settings change: how often training went back with the old ones does not count any more."""
    manifest = read_manifest(folder)
    for name, record in manifest.stages.items():
        if record.roll_backs:
            update = {"forgiven": len(record.roll_backs)}
            manifest = manifest.write(folder, name, record.model_copy(update=update))


def read_manifest(folder: Path, warn: Warn = lambda line: None) -> Manifest:
    """The manifest of ``folder``; an empty one where there is none or, after a warning, a damaged one."""
    try:
        return Manifest.model_validate_json((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Manifest()
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        warn(f"{folder / NAME}: damaged ({' '.join(str(error).split())[:80]}); the files themselves are looked at")
        return Manifest()


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file's contents."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
