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
    """One checkpoint file: its name, step, contents, and the validation loss of its averaged weights.

    Of the best one also the lowest validation loss until its step, and where that was.
    """

    file: str
    step: int
    sha256: str
    size: int
    validation: float | None = None
    lowest: float | None = None
    lowest_step: int | None = None

    def gives_way(self, validation: float, error: float = 0.0) -> bool:
        """Whether a later checkpoint with this validation loss is kept instead.

        It is where its loss is below the lowest one, or above it by less than its own standard ``error``: where a
        measure cannot tell two checkpoints apart, the one that was trained for longer is kept. Without an error this
        keeps the lowest. After the one-standard-error rule of Breiman et al. 1984, section 3.4.3.
        """
        lowest = self.validation if self.lowest is None else self.lowest
        return lowest is None or validation < lowest + error

    def kept(self, file: str, before: "Entry | None") -> "Entry":
        """This checkpoint as the best, called ``file``, in place of the one ``before``."""
        lowest, step = self.validation, self.step
        if before is not None and before.validation is not None and lowest is not None:
            known = before.validation if before.lowest is None else before.lowest
            if known <= lowest:
                lowest, step = known, before.step if before.lowest_step is None else before.lowest_step
        return self.model_copy(update={"file": file, "lowest": lowest, "lowest_step": step})

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
