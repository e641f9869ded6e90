"""Many slices of many scans: handles stay open, buffers are reused, and only acquired samples come out."""

import os
import threading
from collections import OrderedDict
from contextlib import ExitStack

import numpy as np

from rsdmri.data.hdf5 import open_hdf5, shown
from rsdmri.data.kspace import acquired_only
from rsdmri.data.remote import Location, is_uri
from rsdmri.data.stored_kspace import Kspace


class SliceReader:
    """Reads acquired samples of single slices; for several threads, and after a fork.

    Memory does not grow with the number of reads: at most ``handles`` files are open, the least recently used one is
    closed. A file that was replaced meanwhile is opened anew. HDF5 reads one slice at a time whatever the number of
    threads; masking runs beside it. A child process opens its own handles.

    Args:
        handles: files kept open.
    """

    def __init__(self, handles: int = 8):
        self._most = max(1, handles)
        self._start()

    def read(self, location: Location, index: int, mask: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Acquired samples of slice ``index``: ``where(mask, kspace, 0)``, (coil, y, x) complex64.

        Args:
            location: the file, a path or URI.
            index: slice, from 0.
            mask: what to read, bool (x,), (1, x) or (y, x); nothing else leaves this function, it may be NaN.
            out: contiguous complex64 (coil, y, x) to fill and return; a new array without it.

        Raises:
            InputError: a bad file, no such slice, a mask of another size, NaN or infinite values under the mask.
        """
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            kspace = self._opened(location)
            kspace.check(index, mask)
            shape = (kspace.coils, kspace.y, kspace.x)
            if out is None:
                out = np.empty(shape, np.complex64)
            elif out.shape != shape or out.dtype != np.complex64 or not out.flags.c_contiguous:
                raise ValueError(f"out: expected contiguous complex64 {shape}, got {out.dtype} {out.shape}")
            kspace.read_into(out, index)
        acquired_only(out, mask, shown(location), index)
        return out

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            while self._open:
                self._open.popitem()[1][2].close()

    def __getstate__(self) -> dict[str, int]:
        return {"handles": self._most}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[Location, tuple[tuple[int, ...], Kspace, ExitStack]] = OrderedDict()

    def _opened(self, location: Location) -> Kspace:
        state = _state(location)
        known = self._open.get(location)
        if known is not None and known[0] == state:
            self._open.move_to_end(location)
            return known[1]
        if known is not None:
            self._open.pop(location)[2].close()
        while len(self._open) >= self._most:
            self._open.popitem(last=False)[1][2].close()
        with ExitStack() as stack:
            kspace = Kspace(stack.enter_context(open_hdf5(location)), shown(location))
            self._open[location] = (state, kspace, stack.pop_all())
        return kspace


def _state(location: Location) -> tuple[int, ...]:
    """What changes when a local file is replaced; nothing for remote ones, which are not asked at every slice."""
    if is_uri(str(location)):
        return ()
    try:
        status = os.stat(location)
    except (OSError, ValueError):
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino
