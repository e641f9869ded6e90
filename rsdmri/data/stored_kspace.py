"""The k-space data set of an HDF5 file, slice by slice."""

from collections.abc import Iterator

import h5py
import numpy as np

from rsdmri.data.hdf5 import clean, get_dataset, top_names
from rsdmri.data.kspace import check_sizes
from rsdmri.errors import InputError


class Kspace:
    """The checked ``kspace`` data set of an open file, whatever its layout, as slices (coil, y, x) complex64."""

    def __init__(self, file: h5py.File, where: str):
        self.where = where
        found = get_dataset(file, "kspace", where)
        if found is None:
            raise InputError(f"{where}: no data set 'kspace' (it holds {top_names(file)}); give a fastMRI-style scan")
        self.data = found
        dtype, shape = found.dtype, tuple(found.shape)
        self.pairs = dtype.kind == "f" and dtype.itemsize in (4, 8) and len(shape) in (4, 5) and shape[-1] == 2
        if not self.pairs and not (dtype.kind == "c" and dtype.itemsize in (8, 16)):
            raise InputError(
                f"{where}: k-space has type {clean(dtype)}; store complex64 (or float32 with a last axis of size 2)"
            )
        axes = shape[:-1] if self.pairs else shape
        if len(axes) not in (3, 4):
            raise InputError(
                f"{where}: k-space has {len(axes)} axes {axes}; expected (slice, coil, y, x), or (slice, y, x)"
            )
        self.single = len(axes) == 3
        self.slices, self.coils, self.y, self.x = (axes[0], 1, *axes[1:]) if self.single else axes
        check_sizes(where, self.slices, self.coils, self.y, self.x)
        if found.id.get_storage_size() == 0:
            raise InputError(f"{where}: k-space {axes} was declared but never written; write the data again")

    def read(self, index: int, coil: int | None = None) -> np.ndarray:
        """Slice ``index``, (coil, y, x) complex64, or (1, y, x) of one coil."""
        where = (index,) if self.single or coil is None else (index, slice(coil, coil + 1))
        try:
            block = np.asarray(self.data[where])
        except (OSError, RuntimeError):
            raise self._unreadable(index) from None
        if self.pairs:
            block = block[..., 0] + 1j * block[..., 1]
        with np.errstate(over="ignore", invalid="ignore"):  # too large for complex64: infinite, reported as such
            return block.astype(np.complex64, copy=False).reshape(-1, self.y, self.x)

    def read_into(self, out: np.ndarray, index: int) -> None:
        """Slice ``index`` into ``out``, (coil, y, x) complex64, whatever it held before; see `read`."""
        as_stored = np.float32 if self.pairs else np.complex64
        if self.data.dtype.newbyteorder("=") != as_stored:  # other precisions are converted by numpy
            out[...] = self.read(index)
            return
        view = out.view(np.float32).reshape(*out.shape, 2) if self.pairs else out
        try:
            self.data.read_direct(view[0] if self.single else view, np.s_[index])
        except (OSError, RuntimeError):
            raise self._unreadable(index) from None

    def check(self, index: int, mask: np.ndarray) -> None:
        """`InputError` if there is no slice ``index`` or ``mask`` does not fit."""
        if not 0 <= index < self.slices:
            raise InputError(f"{self.where}: no slice {index}; it has slices 0 to {self.slices - 1}")
        if mask.dtype != bool or mask.shape not in {(self.x,), (1, self.x), (self.y, self.x)}:
            raise InputError(
                f"{self.where}: mask {mask.dtype} {mask.shape} does not fit k-space {(self.y, self.x)}; "
                f"expected bool ({self.x},) or {(self.y, self.x)}"
            )

    def _unreadable(self, index: int) -> InputError:
        return InputError(
            f"{self.where}: slice {index} cannot be read (checksum, compression or disk error); copy it again"
        )

    def blocks(self) -> Iterator[np.ndarray]:
        """A coil image of the middle slice, then every slice."""
        middle = self.slices // 2
        yield self.read(middle, 0)
        yield self.read(middle)
        for index in range(self.slices):
            if index != middle:
                yield self.read(index)
