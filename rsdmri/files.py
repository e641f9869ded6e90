"""Writing files so that a crash never leaves half of one."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsdmri.errors import DiskFullError, InputError
from rsdmri.privacy import pseudonymous

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # disk, largest file, quota


def full_disk(error: BaseException) -> bool:
    """Whether ``error`` says that the disk is full, or a quota or file size limit reached; libraries keep the words."""
    return getattr(error, "errno", None) in _FULL or any(os.strerror(code) in str(error) for code in _FULL)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Where the body fails on a full disk, raise `DiskFullError` that names ``path`` instead."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not full_disk(error):
            raise
        reason = " ".join(str(error).split())[-100:]
        raise DiskFullError(
            f"{path}: cannot be written, the disk is full ({reason}); free some space and run the same command again: "
            "it goes on from what was saved before"
        ) from None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it over ``path``.

    If the body raises, the temporary file is removed and ``path`` stays as it was. The temporary name keeps the
    suffix of ``path``, because writers choose a format by it.

    Errors:
        DiskFullError: the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        with writing(target):
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


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append ``text`` (UTF-8) to ``path``; `DiskFullError` where the disk is full."""
    with writing(path), open(path, "a", encoding="utf-8") as handle:
        handle.write(text)


def remove_orphans(folder: Path) -> None:
    """Delete temporary files and folders that interrupted writers left in ``folder``."""
    for orphan in folder.glob(".tmp-*"):
        if orphan.is_dir() and not orphan.is_symlink():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def output_directory(path: str | os.PathLike[str]) -> Path:
    """Create ``path`` and make sure that files can be written there; `InputError` if not."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".tmp-{os.getpid()}-probe"
        with writing(directory):
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
