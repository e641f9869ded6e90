"""Limits that a process lays upon itself before it parses a file of unknown origin, each where the system has it.

Linux: memory, processor time, no files written, no network (an empty network namespace), no files read but the named
ones and Python's own (Landlock, https://docs.kernel.org/userspace-api/landlock.html). macOS: the first three.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # unshare(2)
_NO_NEW_PRIVILEGES = 38  # prctl(2)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EVERY_ACCESS, _READ_FILE, _READ_FOLDER = (1 << 13) - 1, 1 << 2, 1 << 3  # what the first version of Landlock handles
_OPEN_FILES = 128
_LIBRARIES = 16 << 30  # bytes of address space


def limit_resources(memory: int, cpu_seconds: int) -> None:
    """Bound memory in bytes and processor time; no core dumps, no file written, few open.

    Data count against ``memory``; the address space may be larger, as the libraries of a CUDA build of torch map
    gigabytes that they never touch.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, soft, hard in (
        ("RLIMIT_DATA", memory, memory),
        ("RLIMIT_AS", memory + _LIBRARIES, memory + _LIBRARIES),
        ("RLIMIT_CPU", cpu_seconds, cpu_seconds + 1),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_NOFILE", _OPEN_FILES, _OPEN_FILES),
        ("RLIMIT_CORE", 0, 0),
    ):
        with suppress(AttributeError, ValueError, OSError):  # not known here, or lower already
            resource.setrlimit(getattr(resource, name), (soft, hard))


def leave_network() -> bool:
    """Move to a network namespace without interfaces, before any thread starts; whether the system allowed it."""
    if sys.platform != "linux":
        return False
    try:
        unshare = ctypes.CDLL(None).unshare
    except (OSError, AttributeError):
        return False
    # Root would lose its rights over files with a user namespace.
    return unshare(_NEW_NET) == 0 or (os.geteuid() != 0 and unshare(_NEW_USER | _NEW_NET) == 0)


def read_only(paths: Iterable[str]) -> bool:
    """Give up all access to files but reading ``paths`` and the interpreter's own; whether the system could do it."""
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        attributes = struct.pack("=Q", _EVERY_ACCESS)
        rules = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
        if rules < 0:
            return False
        try:
            for path in {*paths, *_own_folders()}:
                _allow_reading(libc, rules, path)
            if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
                return False
            return bool(libc.syscall(_RESTRICT_SELF, rules, 0) == 0)
        finally:
            os.close(rules)
    except (OSError, AttributeError):
        return False


def _allow_reading(libc: ctypes.CDLL, rules: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):  # not there: whoever opens it will say so
        return
    try:
        access = _READ_FILE | _READ_FOLDER if os.path.isdir(path) else _READ_FILE
        libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", access, place), 0)
    finally:
        os.close(place)


def _own_folders() -> list[str]:
    """Where modules and libraries that are imported late come from."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    modules = [folder for folder in sys.path if folder and os.path.abspath(folder) != os.path.dirname(package)]
    named = [os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "HDF5_PLUGIN_PATH")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/local/lib", "/etc/ld.so.cache", sys.prefix, sys.base_prefix]
    system += ["/dev/urandom", "/proc/cpuinfo", "/sys/devices/system/cpu"]  # torch looks at these when it is imported
    return [package, *modules, *(folder for folder in os.pathsep.join(named).split(os.pathsep) if folder), *system]
