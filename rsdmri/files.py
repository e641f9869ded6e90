"""Writing files so that a crash never leaves half of one."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsdmri.errors import InputError
from rsdmri.privacy import pseudonymous


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it over ``path``.

    If the body raises, the temporary file is removed and ``path`` stays as it was. The temporary name keeps the
    suffix of ``path``, because writers choose a format by it.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
        _fsync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success flush its files to disk and rename it to ``path`` as a whole.

    A folder of that name is replaced. If the body raises, the temporary folder is removed and ``path`` stays as it was.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to ``target`` on the same disk, in place of what is there."""
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f".tmp-{os.getpid()}-old-{target.name}")
        os.replace(target, old)
        os.replace(source, target)
        shutil.rmtree(old)
    else:
        os.replace(source, target)
    _fsync_directory(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def output_directory(path: str | os.PathLike[str]) -> Path:
    """Create ``path`` and make sure that files can be written there; `InputError` if not."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".tmp-{os.getpid()}-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{directory}: the output folder cannot be written ({error.strerror}); choose another with --out"
        ) from None
    return directory


def safe_stem(path: str | os.PathLike[str]) -> str:
    """Name of ``path`` without folder or suffix, reduced to letters, digits and ``._-``, at most 120 characters.

    One that seems to name a person becomes a pseudonym (`rsdmri.privacy`): results and logs carry it on.
    """
    stem = pseudonymous(Path(path).stem)
    stem = re.sub(r"[^\w.\-]+", "_", stem).strip("._")[:120]
    return stem or "scan"


def _fsync_directory(directory: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
