"""Opening files that are not HDF5: what the system says of them becomes one line that names the file and the cure."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsdmri.data.hdf5 import PathLike, clean, shown
from rsdmri.errors import InputError

_PACKED_BYTES, _PACKED_RATIO = 64 << 20, 200


@contextmanager
def file_errors(path: PathLike) -> Iterator[str]:
    """Yield ``path`` as one printable line; errors of the file system inside the block become `InputError`."""
    where = shown(path)
    try:
        if "\0" in os.fspath(path):
            raise FileNotFoundError
        yield where
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; check the path") from None
    except PermissionError:
        raise InputError(f"{where}: cannot be read (permission denied); check its permissions") from None
    except MemoryError:
        raise InputError(f"{where}: does not fit in memory; give fewer slices") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({clean(error.strerror or error)}); check the path") from None


def first_bytes(path: PathLike, count: int) -> bytes:
    """The first ``count`` bytes of a file, fewer where it ends; `InputError` for a folder and an empty file."""
    with file_errors(path) as where:
        if Path(path).is_dir():
            raise InputError(f"{where}: is a folder; give a file")
        if not Path(path).is_file() and Path(path).exists():
            raise InputError(f"{where}: is a pipe or a device, not a file; give a file")
        with open(path, "rb") as file:
            start = file.read(count)
        if not start:
            raise InputError(f"{where}: is empty (0 bytes); write, copy or download it again")
        return start


def refuse_packed_bomb(where: str, name: str, declared: int, stored: int) -> None:
    """`InputError` for compressed data that would unpack to far more than any scan does."""
    if declared > _PACKED_BYTES and declared > _PACKED_RATIO * max(stored, 1):
        raise InputError(
            f"{where}: '{clean(name)}' declares {declared:,} bytes but stores {stored:,}; not a plausible scan, refused"
        )


def file_size(path: PathLike) -> int:
    """Size in bytes."""
    return os.stat(path).st_size
