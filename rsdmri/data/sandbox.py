"""Reading untrusted files in a child process: a crash, a bomb or a hang there is one line here.

Metadata that overflow a buffer of the HDF5 library cannot be told from good ones beforehand. So the file is opened by
`rsdmri.data.child` alone: bounded memory, processor and wall time, and on Linux no network and no other file. What
comes back are plain arrays and a few checked words. Training reads its many slices in process (`rsdmri.data.dataset`).
"""

import json
import math
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from rsdmri.data import child
from rsdmri.data.hdf5 import PathLike, clean, shown
from rsdmri.data.scan import Scan
from rsdmri.data.scan_parts import scan_from_parts
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

_TYPES = ("complex64", "complex128", "float32", "float64", "bool")
_LARGEST_HEAD, _MOST_ARRAYS, _MOST_AXES = 1 << 20, 16, 6
# What Python and HDF5 need of the environment; keys and tokens that are in it stay here.
_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_",
    "LD_",
    "DYLD_",
    "PYTHON",
    "HDF5_",
    "VIRTUAL_ENV",
    "CONDA",
    "SYSTEMROOT",
    "TEMP",
)
_CURE = "if you know where the file comes from, --trust (trust=True) reads it without the guard"


@dataclass(frozen=True)
class Limits:
    """What reading one file may take."""

    memory: int
    """Bytes of address space; Python with its libraries takes about 120 MB of it."""
    cpu_seconds: int
    wall_seconds: float

    @classmethod
    def for_size(cls, size: int) -> "Limits":
        """Generous ones for a file of ``size`` bytes: compressed scans unpack to several times their size."""
        return cls((1 << 30) + 16 * size, 10 + size // 2_000_000, 60 + size / 1e6)


def load_scan(path: PathLike, *, trust: bool = False, **reading: Any) -> Scan:
    """The scan in the file ``path``, read by a child process, or in this one with ``trust``.

    ``reading`` are options of `rsdmri.data.formats.read_any`.

    Raises:
        InputError: one line on what the file is not, or on what reading it did to the child.
    """
    result = _read("scan", path, trust, reading)
    if not isinstance(result, Scan):
        raise InputError(f"{shown(path)}: its reader gave no scan; {_CURE}")
    return replace(result, name=safe_stem(path))


def load_maps(path: PathLike, kspace: tuple[int, int, int, int], *, trust: bool = False) -> np.ndarray:
    """Coil maps as `rsdmri.data.maps.read_maps` gives them, read as `load_scan` reads."""
    result = _read("maps", path, trust, {"kspace": kspace})
    if not isinstance(result, np.ndarray):
        raise InputError(f"{shown(path)}: its reader gave no coil maps; {_CURE}")
    return result


def load_facts(path: PathLike, *, trust: bool = False, reader: str = "schema") -> dict[str, Any]:
    """What `rsdmri.data.schema.examine`, or another ``reader``, says of a file, read as `load_scan` reads."""
    result = _read(reader, path, trust, {})
    if not isinstance(result, dict):
        raise InputError(f"{shown(path)}: its reader gave no facts; {_CURE}")
    return result


def read_in_child(
    reader: str, path: PathLike, options: Mapping[str, Any], limits: Limits | None = None
) -> Scan | np.ndarray | dict[str, Any]:
    """What ``child.reader(reader)(path, **options)`` gives, from a child process.

    Args:
        reader: a name that `rsdmri.data.child.reader` knows.
        path: the file; only its size is looked at here.
        options: keyword arguments of the reader, such as JSON can hold.
        limits: None: by the size of the file.

    Raises:
        InputError: the reader's own, or one on its crash, memory or time.
    """
    where, name = shown(path), os.fspath(path)
    paths = _belonging(name)
    limits = limits or Limits.for_size(_size(paths, where))
    request = {
        "reader": reader,
        "path": name,
        "paths": paths,
        "options": dict(options),
        "memory": limits.memory,
        "cpu_seconds": limits.cpu_seconds,
    }
    process = _start(where)
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(limits.wall_seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        try:
            head, arrays = _converse(process, json.dumps(request).encode(), limits.memory)
        except (EOFError, OSError, ValueError, MemoryError) as error:
            _kill(process)
            raise InputError(f"{where}: {_ending(process.wait(), late.is_set(), limits, error)}; {_CURE}") from None
    finally:
        timer.cancel()
        _kill(process)
        process.wait()
    return _unpacked(where, head, arrays, limits)


def _read(reader: str, path: PathLike, trust: bool, options: dict[str, Any]) -> Any:
    return child.reader(reader)(path, **options) if trust else read_in_child(reader, path, options)


def _belonging(name: str) -> list[str]:
    """The file itself and, of a BART pair, its other half."""
    base, ending = os.path.splitext(name)
    if ending in (".cfl", ".hdr"):
        return [name, base + ".cfl", base + ".hdr"]
    return [name] if ending else [name, name + ".cfl", name + ".hdr"]


def _size(paths: list[str], where: str) -> int:
    """Bytes of the files that are there; `InputError` for pipes and devices, which have no end."""
    total = 0
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # the reader says what is wrong with it
            continue
        if stat.S_ISREG(status.st_mode):
            total += status.st_size
        elif stat.S_ISDIR(status.st_mode):
            total += sum(file.stat().st_size for file in Path(path).glob("*") if file.is_file())
        else:
            raise InputError(f"{where}: is a pipe or a device, not a file; give a file")
    return total


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", "rsdmri.data.child"]  # -P: no module is imported from the current folder


def _start(where: str) -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **{name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
        "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        return subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            pipesize=1 << 20,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(f"{where}: no process could be started to read it ({error.strerror}); {_CURE}") from None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the child and whatever it started, if it has not ended."""
    if process.poll() is not None:
        return
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        return


def _converse(
    process: "subprocess.Popen[bytes]", request: bytes, most: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Head and arrays of the answer; sizes are checked before memory is taken."""
    with process.stdin as question, process.stdout as answer:  # type: ignore[union-attr]
        question.write(request)
        question.close()
        (length,) = struct.unpack("<Q", _take(answer, bytearray(8)))
        if length > _LARGEST_HEAD:
            raise ValueError("too long a head")
        head = json.loads(bytes(_take(answer, bytearray(length))))
        if not isinstance(head, dict) or not isinstance(listed := head.get("arrays"), list):
            raise ValueError("no head")
        shapes = [_array(item) for item in listed]
        total = sum(math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in shapes)
        if total > most or len(shapes) > _MOST_ARRAYS:
            raise ValueError("too much")
        arrays = {}
        for name, kind, shape in shapes:
            arrays[name] = np.empty(shape, kind)
            _take(answer, arrays[name].reshape(-1).view(np.uint8))
            if kind == "bool" and arrays[name].view(np.uint8).max(initial=0) > 1:
                raise ValueError("no truth values")
        return head, arrays


def _array(item: Any) -> tuple[str, str, tuple[int, ...]]:
    """Name, type and shape of an array to come, checked."""
    name, kind, shape = item
    sizes = isinstance(shape, list) and len(shape) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    if type(name) is not str or kind not in _TYPES or not sizes:
        raise ValueError("no array")
    return name, kind, tuple(shape)


def _take(stream: IO[bytes], buffer: Any) -> Any:
    """Fill ``buffer`` from ``stream``; `EOFError` where that ends before."""
    view = memoryview(buffer)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return buffer


def _ending(code: int, late: bool, limits: Limits, error: Exception) -> str:
    """What a child that gave no answer did."""
    if late:
        return f"reading it took longer than {limits.wall_seconds:,.0f} s, stopped"
    if isinstance(error, MemoryError):
        return "what it holds does not fit in memory"
    if code < 0 and hasattr(signal, "SIGXCPU") and -code == signal.SIGXCPU:
        return f"reading it took more than {limits.cpu_seconds:,} s of processor time, stopped"
    if code < 0 and -code != getattr(signal, "SIGKILL", 9):
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"reading it crashed ({name}); the file is damaged or hostile"
    if code < 0:
        return "the process that read it was killed or gave a broken answer, out of memory perhaps"
    return f"the process that read it ended without an answer (exit code {code})"


def _unpacked(
    where: str, head: dict[str, Any], arrays: dict[str, np.ndarray], limits: Limits
) -> Scan | np.ndarray | dict[str, Any]:
    if "refused" in head:
        raise InputError(clean(head["refused"], 1500))
    if head.get("failed") == "MemoryError":
        raise InputError(f"{where}: reading it takes more than {limits.memory >> 20:,} MiB of memory, refused; {_CURE}")
    if "failed" in head:
        raise InputError(f"{where}: damaged, or of a layout that is not known ({clean(head['failed'])}); {_CURE}")
    kind, meta = head.get("kind"), head.get("meta")
    try:
        if kind == "scan" and isinstance(meta, dict):
            return scan_from_parts(arrays, meta)
        if kind == "array":
            return arrays["array"]
        if kind == "facts" and isinstance(meta, dict):
            return meta
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: its reader gave no valid answer ({clean(error, 200)}); {_CURE}") from None
    raise InputError(f"{where}: its reader gave no valid answer; {_CURE}")
