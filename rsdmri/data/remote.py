"""Files behind a URI (``s3://``, ``http(s)://``, ``memory://``), read through fsspec a few blocks at a time.

A location is a `Path`, or a URI as text; ``file://`` URIs are paths. Credentials come from where fsspec's file systems
look for them (environment, configuration files). Messages show a URI without user, password, query and fragment, and
never the words of the library's own errors, which may repeat them.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from rsdmri.errors import InputError

Location = Path | str

PROTOCOLS = ("http", "https", "s3", "memory")
BLOCK, BLOCKS = 2 << 20, 4  # bytes of a block, blocks kept of one open file
_CURE = "python -m pip install 'rsdmri[remote]'"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing: its URI, its name below the folder listed, bytes, and what changes when it changes."""

    uri: str
    relative: str
    size: int
    stamp: str


def is_uri(location: str | os.PathLike[str]) -> bool:
    """Whether ``location`` names a protocol (a Windows drive is none)."""
    return isinstance(location, str) and re.match(r"[A-Za-z][A-Za-z0-9+.\-]+://", location) is not None


def public(uri: str) -> str:
    """``uri`` as it may be shown: without user, password, query and fragment, one printable line."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    text = f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"
    return "".join(c if c.isprintable() else "?" for c in text)


def name_of(location: str | os.PathLike[str]) -> str:
    """Name of the file, without folders and query."""
    if not is_uri(location):
        return Path(location).name
    return unquote(PurePosixPath(urlsplit(os.fspath(location)).path).name)


def locate(text: str, base: Location = Path()) -> Location:
    """Absolute location that ``text`` names, seen from the folder ``base``.

    Raises:
        InputError: a protocol that is not read, a URI without a file, a local file named by something remote.
    """
    if is_uri(text):
        scheme = text.partition("://")[0].lower()
        if scheme == "file" and not is_uri(str(base)):
            return Path(url2pathname(urlsplit(text).path)).resolve()
        if scheme not in PROTOCOLS:
            raise InputError(f"{public(text)}: {scheme}:// is not read here; use a path or {', '.join(PROTOCOLS)}")
        return scheme + text[len(scheme) :]
    if is_uri(str(base)):
        if text.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", text):
            raise InputError(f"{public(str(base))}: names the local file {text[:80]!r}; use paths below it, or URIs")
        return f"{str(base).rstrip('/')}/{text}"
    return (Path(base) / text).resolve()


def refuse_secrets(uri: str, option: str) -> None:
    """`InputError` if ``uri`` carries a user, a password or a query: it would be stored with the results."""
    if "@" in uri.partition("://")[2].partition("/")[0] or "?" in uri:
        raise InputError(
            f"{option} {public(uri)}: carries credentials or a query, which would be stored; "
            "give them in the environment (such as AWS_PROFILE)"
        )


@contextmanager
def open_remote(uri: str) -> Iterator["RemoteReader"]:
    """Open ``uri`` for reading; at most ``BLOCK * BLOCKS`` bytes of it are kept in memory."""
    system, path = _system(uri)
    with _explained(uri):
        handle = system.open(path, "rb", block_size=BLOCK, cache_type="blockcache", cache_options={"maxblocks": BLOCKS})
    try:
        yield RemoteReader(handle, uri)
    finally:
        handle.close()


class RemoteReader(io.RawIOBase):
    """A seekable remote file whose failures are `OSError`, with nothing of the address in them."""

    def __init__(self, handle: Any, uri: str):
        self._handle, self._uri = handle, uri
        with _explained(uri):
            self.length = int(handle.seek(0, 2))
            handle.seek(0)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset``; see `io.IOBase`."""
        return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        """Position."""
        return int(self._handle.tell())

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the file goes; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        try:
            data = self._handle.read(len(view))
        except Exception as error:  # each protocol has its own, not all of them OSError
            raise OSError(f"remote read failed ({_kind(error)})") from None
        view[: len(data)] = data
        return len(data)


def read_bytes(uri: str, limit: int) -> bytes:
    """Contents of a remote file of at most ``limit`` bytes."""
    with open_remote(uri) as handle, _explained(uri):
        if handle.length > limit:
            raise InputError(f"{public(uri)}: larger than {limit:,} bytes; give another file")
        return handle.read() or b""


def list_files(uri: str, suffixes: tuple[str, ...], *, recursive: bool) -> list[RemoteFile]:
    """Files below the remote folder ``uri`` whose names end in one of ``suffixes``, by name."""
    system, path = _system(uri)
    root = path.rstrip("/")
    with _explained(uri):
        found = system.find(root, maxdepth=None if recursive else 1, detail=True)
    files = []
    for name, info in found.items():
        if not name.lower().endswith(suffixes) or not name.startswith(f"{root}/"):
            continue
        relative = name[len(root) + 1 :]
        with _explained(uri):
            known = info if info.get("size") is not None else system.info(name)
        files.append(RemoteFile(f"{uri.rstrip('/')}/{relative}", relative, int(known.get("size") or 0), _stamp(known)))
    return sorted(files, key=lambda file: file.relative)


def _stamp(info: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
    return " ".join(str(info[key]) for key in keys if info.get(key) is not None)


def _system(uri: str) -> tuple[Any, str]:
    try:
        import fsspec

        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError):
        raise InputError(f"{public(uri)}: needs optional packages to be read; {_CURE}") from None
    except Exception as error:
        raise InputError(f"{public(uri)}: cannot be opened ({_kind(error)}); check address and credentials") from None


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what a file system raises into one line without the library's words."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{public(uri)}: no such file or folder, or no server; check the address") from None
    except PermissionError:
        raise InputError(f"{public(uri)}: access denied; check your credentials for it") from None
    except Exception as error:
        raise InputError(f"{public(uri)}: cannot be read ({_kind(error)}); check address and connection") from None


def _kind(error: Exception) -> str:
    status = getattr(error, "status", None)
    return f"{type(error).__name__} {status}" if isinstance(status, int) else type(error).__name__
