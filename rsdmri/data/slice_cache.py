"""Prepared values (coil maps, scale, noise) kept on disk between runs, shared by any number of processes.

An entry is one safetensors file named by the hash of everything it follows from. It carries a hash of its contents:
what does not fit is as good as absent and is written again. Entries appear by renaming, so a reader sees a whole one
or none; the least recently used ones go when the folder would outgrow its limit.
"""

import hashlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rsdmri.files import output_directory
from rsdmri.runtime import process_count

_SUFFIX = ".safetensors"
_PROCESSES = 8  # that may write at once without the limit being passed, or more where torchrun started more
_STALE = 3600.0  # seconds after which an unfinished file belongs to nobody


def entry_key(*parts: object) -> str:
    """Hexadecimal SHA-256 of ``parts``: bytes and buffers as they are, anything else as text."""
    digest = hashlib.sha256()
    for part in parts:
        data = memoryview(part if isinstance(part, bytes | memoryview) else str(part).encode()).cast("B")
        digest.update(data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class SliceCache:
    """Named tensors on disk within a size limit.

    Every process that has written 1/32 of the limit looks at the whole folder and, where it is over 3/4 of the limit,
    removes the oldest entries; so 8 processes together stay within it.

    Args:
        folder: created if missing.
        limit: bytes that the entries may take together.
    """

    def __init__(self, folder: Path, limit: float):
        self.folder, self.limit = output_directory(folder), limit
        self._share = limit / (4 * max(_PROCESSES, process_count()))
        self._written = self._share  # the first write looks, too
        self._lock = threading.Lock()

    def load(self, key: str) -> dict[str, Tensor] | None:
        """Tensors stored under ``key``; None if there are none, or damaged ones, which are removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        payload, digest = data[:-32], data[-32:]
        if len(data) > 32 and _digest(key, payload) == digest:
            try:
                tensors = load(payload)
            except (SafetensorError, ValueError, KeyError):
                tensors = None
            if tensors is not None:
                self._touch(path)
                return tensors
        path.unlink(missing_ok=True)
        return None

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep ``tensors`` under ``key``; not those that are larger than a share of the limit, or on a full disk."""
        payload = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
        if len(payload) + 32 > self._share:
            return
        path = self._path(key)
        temporary = self.folder / f".tmp-{os.getpid()}-{threading.get_ident()}-{path.name}"
        try:
            with self._lock:
                self._written += len(payload) + 32
                if self._written >= self._share:
                    self._shrink()
                    self._written = len(payload) + 32
            temporary.write_bytes(payload + _digest(key, payload))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:  # a read-only folder, or just removed by another process
            return

    def _shrink(self) -> None:
        """Remove unfinished files that nobody writes any more and, over 3/4 of the limit, the oldest entries."""
        entries, total = [], 0
        with os.scandir(self.folder) as listing:
            for item in listing:
                try:
                    status = item.stat(follow_symlinks=False)
                    if item.name.startswith(".tmp-") and time.time() - status.st_mtime > _STALE:
                        os.unlink(item.path)
                except OSError:
                    continue
                if item.name.endswith(_SUFFIX):
                    total += status.st_size
                    if not item.name.startswith("."):
                        entries.append((status.st_mtime_ns, status.st_size, item.path))
        if total <= 0.75 * self.limit:
            return
        for _, size, path in sorted(entries):
            if total <= 0.65 * self.limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def _digest(key: str, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=32, key=bytes.fromhex(key)[:32]).digest()
