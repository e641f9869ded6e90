"""Opening HDF5 that may be damaged or hostile: every refusal is one line that names the file and the cure.

Only fixed names are looked up and only plain data sets are read: no links out of the file, no external or virtual
storage, no walk over the file's tree. What remains are bugs of the HDF5 library itself.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from rsdmri.data.remote import is_uri, open_remote, public
from rsdmri.errors import InputError

PathLike = str | os.PathLike[str]


class DangerousFile(InputError):
    """A file that points out of itself or declares far more than it holds: not a mistake that a scanner makes."""


_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 1000


def clean(text: object, limit: int = 60) -> str:
    """Text from a file as one printable line of at most ``limit`` characters, safe in messages and logs."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def shown(path: PathLike) -> str:
    """A path as one printable line, a URI without its credentials."""
    return clean(public(str(path)) if is_uri(path) else os.fspath(path), 1000)


@contextmanager
def open_hdf5(path: PathLike) -> Iterator[h5py.File]:
    """Open a path or URI for reading; errors of the HDF5 library inside the ``with`` block become `InputError`."""
    where = shown(path)
    try:
        if is_uri(path):
            with _open_uri(str(path), where) as file:
                yield file
            return
        source = Path(path)
        if "\0" in os.fspath(source):
            raise FileNotFoundError
        if source.is_dir():
            raise InputError(f"{where}: is a folder, not a scan; give an .h5 file")
        if source.exists() and not source.is_file():
            raise InputError(f"{where}: is a pipe or a device, not a file; give an .h5 file")
        if source.stat().st_size == 0:
            raise InputError(f"{where}: is empty (0 bytes); copy or download it again")
        if not h5py.is_hdf5(source):
            with open(source, "rb"):  # permission errors look like a wrong format to h5py
                pass
            raise InputError(f"{where}: is not an HDF5 file; give a fastMRI-style .h5 file")
        with h5py.File(source, "r") as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; check the path") from None
    except PermissionError:
        raise InputError(f"{where}: cannot be read (permission denied); check its permissions") from None
    except MemoryError:
        raise InputError(
            f"{where}: does not fit in memory; read fewer slices at a time, or without limits (--trust)"
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: {_explain(error)}") from None


@contextmanager
def _open_uri(uri: str, where: str) -> Iterator[h5py.File]:
    with open_remote(uri) as handle:
        if handle.length == 0:
            raise InputError(f"{where}: is empty (0 bytes); upload it again")
        if handle.read(8) != b"\x89HDF\r\n\x1a\n":
            raise InputError(f"{where}: is not an HDF5 file; give a fastMRI-style .h5 file")
        with h5py.File(handle, "r") as file:
            yield file


def _explain(error: Exception) -> str:
    """One clause on what an error of h5py means to a user."""
    text = str(error)
    cut = re.search(r"eof = (\d+).*?stored_eof = (\d+)", text)
    if cut:
        have, want = (int(number) for number in cut.groups())
        return f"file is cut short ({have:,} of {want:,} bytes); download or copy it again"
    if "filter" in text:
        return "compressed data fail their checksum or cannot be unpacked; download or copy it again"
    return f"damaged or unsupported HDF5 ({clean(text, 100)}); download or copy it again"


def get_group(file: h5py.File, name: str, where: str) -> h5py.Group | None:
    """The group called ``name`` at the top of ``file``, None if there is none.

    Raises:
        DangerousFile: it is a soft or external link.
        InputError: it is no group.
    """
    found = _hard_linked(file, name, where)
    if found is not None and not isinstance(found, h5py.Group):
        raise InputError(f"{where}: '{name}' is an array, not a group; give an ISMRMRD file")
    return found


def _hard_linked(parent: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset | h5py.Datatype | None:
    """What lies at ``name`` in ``parent`` itself, None if nothing does; `InputError` for links."""
    link = parent.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        kind = "an external link to another file" if isinstance(link, h5py.ExternalLink) else "a soft link"
        raise DangerousFile(f"{where}: '{name}' is {kind}, which is refused; store the data themselves in the file")
    return parent[name]


def get_dataset(file: h5py.Group, name: str, where: str) -> h5py.Dataset | None:
    """The plain data set called ``name`` in ``file``, a file or group, None if there is none.

    Raises:
        InputError: it is a group, has no shape or needs a filter that is not installed.
        DangerousFile: it is a soft or external link, external or virtual storage, or declares far more bytes than are
            stored.
    """
    found = _hard_linked(file, name, where)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{where}: '{name}' is a {type(found).__name__.lower()}, not an array; store it as a data set")
    if found.external:
        raise DangerousFile(
            f"{where}: '{name}' keeps its data in another file, which is refused; store them in this one"
        )
    if found.is_virtual:
        raise DangerousFile(
            f"{where}: '{name}' is a virtual data set over other files, which is refused; store it plainly"
        )
    if found.shape is None:
        raise InputError(f"{where}: '{name}' is empty (no shape); write the data again")
    properties = found.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code = properties.get_filter(index)[0]
        if not _has_filter(code):
            raise InputError(
                f"{where}: '{name}' is compressed with HDF5 filter {code}, which is not installed; "
                "python -m pip install hdf5plugin, or store it uncompressed or with gzip"
            )
    declared, stored = found.size * found.dtype.itemsize, found.id.get_storage_size()
    if declared > _BOMB_BYTES and declared > _BOMB_RATIO * max(stored, 1):
        raise DangerousFile(
            f"{where}: '{name}' declares {declared:,} bytes but stores {stored:,}; not a plausible scan, refused"
        )
    return found


def _has_filter(code: int) -> bool:
    """Whether a filter is there; those of the package hdf5plugin, if it is installed, register when it is imported."""
    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401
    return bool(h5py.h5z.filter_avail(code))


def top_names(file: h5py.Group, limit: int = 8) -> str:
    """Names at the top of ``file``, cleaned, for a message."""
    names: list[str] = []
    for name in file:
        if len(names) == limit:
            names.append("...")
            break
        names.append(clean(name, 30))
    return ", ".join(names) if names else "nothing"
