"""The lock of a run folder: one training there at a time.

The file ``.lock`` is locked with `flock`, which the kernel gives back whenever the process ends, however it ends, and
which two processes can never hold at once; it names its holder for the others. On Linux this holds between machines on
NFS, too; where a network file system keeps such locks to each machine, the name of another machine in the file is
respected until someone deletes it. Where there is no `flock` at all, the file's holder alone is asked after, and two
processes that start in the same instant may both pass.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsdmri.errors import InputError
from rsdmri.files import writing

_own: set[Path] = set()  # locks of this very process, for file systems without flock


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in ``folder`` while the body runs.

    Errors:
        InputError: one does so now, or another machine is named in the lock.
    """
    file = folder / ".lock"
    descriptor = _take(file)
    _own.add(file.resolve())
    try:
        yield
    finally:
        _own.discard(file.resolve())
        file.unlink(missing_ok=True)  # while it is held: nobody else's can be meant
        os.close(descriptor)


def _take(file: Path) -> int:
    """Descriptor of ``file``, locked and naming this process."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, file)
            if _still_there(descriptor, file):
                text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
                os.ftruncate(descriptor, 0)
                with writing(file):
                    os.pwrite(descriptor, text.encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it: the name belongs to another file now, or to none


def _lock(descriptor: int, file: Path) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refusal(file, *_holder(descriptor)) from None
        locked = False
    pid, host = _holder(descriptor)
    if pid is None:
        return
    if host != socket.gethostname() or (not locked and _alive(pid, file)):
        raise _refusal(file, pid, host)


def _holder(descriptor: int) -> tuple[int | None, str]:
    """Process and machine that the file names; no process where it names none."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return int(holder["pid"]), str(holder["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _refusal(file: Path, pid: int | None, host: str) -> InputError:
    who = "another process" if pid is None else f"process {pid} on {host}"
    return InputError(
        f"{file.parent}: {who} is training here; wait for it, choose another --out, or delete {file.name} there if it "
        "is gone"
    )


def _still_there(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _alive(pid: int, file: Path) -> bool:
    if pid == os.getpid():  # numbers start anew in a restarted container
        return file.resolve() in _own
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
