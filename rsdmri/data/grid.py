"""The Cartesian grid of a raw data file: which matrix, where its centre lies, and what is cut off."""

from dataclasses import dataclass

import numpy as np

from rsdmri.data.fastmri_header import Limits, Protocol
from rsdmri.errors import InputError

_MOST_SLICES, _MOST_COILS, _LONGEST_SIDE = 2048, 256, 4096
_LARGE_BYTES, _LARGE_RATIO = 4 << 30, 64  # a grid this much larger than the samples on it is no scan


@dataclass(frozen=True, eq=False)
class Grid:
    """Positions (slab, partition, y, x) of k-space; the centre of k-space lies at index n // 2 of each axis."""

    slabs: int
    depth: int
    """Partitions of a slab as encoded, 1 of a 2-D scan."""
    kept_depth: int
    """Partitions without their oversampling."""
    measured: int
    """Readout samples as encoded."""
    height: int
    """Readout samples without their oversampling."""
    width: int
    """Phase encodes."""
    samples: slice
    """Of a readout, those that are kept."""
    start: int
    """Index on the measured axis of the first of them."""
    rows: np.ndarray
    """(height, 1) bool: which rows the readout covers; an asymmetric echo leaves some out."""
    line_offset: int
    """Column of the phase encode 0."""
    plane_offset: int
    padding: tuple[int, int] | None
    """Columns [left, right) that the protocol acquires, as the header says."""
    crop: tuple[int, int]
    voxel_mm: tuple[float, float, float] | None
    """Along (readout, phase encode, slice)."""

    def columns(self, lines: np.ndarray) -> np.ndarray:
        """Column of each readout."""
        return np.asarray(lines["kspace_encode_step_1"] + self.line_offset)

    def planes(self, lines: np.ndarray) -> np.ndarray:
        """Partition of each readout."""
        return np.asarray(lines["kspace_encode_step_2"] + self.plane_offset if self.depth > 1 else 0 * lines["slice"])

    def place(self, block: np.ndarray) -> np.ndarray:
        """Readouts (..., sample) on the rows of the grid, zero-filled, (..., height).

        Oversampling is cut off in image space by orthonormal transforms, which leaves the image's values and the noise
        of a sample as they are.
        """
        kept = block[..., self.samples]
        full = np.zeros((*block.shape[:-1], self.measured), np.complex64)
        full[..., self.start : self.start + kept.shape[-1]] = kept
        if self.height == self.measured:
            return full
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(full, axes=-1), norm="ortho"), axes=-1)
        first = self.measured // 2 - self.height // 2
        image = image[..., first : first + self.height]
        result = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=-1), norm="ortho"), axes=-1)
        result[..., ~self.rows[:, 0]] = 0
        return result


def plan_grid(
    where: str, lines: np.ndarray, slabs: int, protocol: Protocol, keep_oversampling: bool
) -> tuple[Grid, tuple[str, ...]]:
    """The grid of the imaging ``lines`` (of one size) in ``slabs`` slices or slabs, and what had to be assumed.

    Raises:
        InputError: readouts that do not fit the encoded matrix; sizes that are no scan.
    """
    first, notes = lines[0], []
    pre, post, size = (int(first[name]) for name in ("discard_pre", "discard_post", "number_of_samples"))
    encoded = protocol.header.encoded
    step_1, step_2 = lines["kspace_encode_step_1"], lines["kspace_encode_step_2"]
    if encoded is None:
        encoded = (size, int(step_1.max()) + 1, int(step_2.max()) + 1)
        notes.append(f"header: no encoded matrix; {encoded[0]}x{encoded[1]} taken from the readouts")
    measured, width, depth = encoded
    if depth > 1 and slabs > 1 and not step_2.any():
        depth = 1  # slices counted as partitions
    _require_sizes(where, lines, slabs, (measured, width, depth))

    center = int(first["center_sample"])
    if center == 0 and pre == 0 and size > 1:
        center = size // 2
        notes.append("readouts name no centre sample; taken as their middle")
    if pre + post >= size or pre < 0 or post < 0:
        raise InputError(f"{where}: readouts discard {pre} + {post} of {size} samples; nothing is left of them")
    start = measured // 2 - center + pre
    if start < 0 or start + size - pre - post > measured:
        raise InputError(
            f"{where}: readouts of {size - pre - post} samples with their centre at {center - pre} do not fit the "
            f"encoded matrix of {measured}; correct encodedSpace or center_sample"
        )
    line_offset = _offset(where, step_1, width, protocol.lines, "kspace_encode_step_1", notes)
    plane_offset = _offset(where, step_2, depth, protocol.partitions, "kspace_encode_step_2", notes) if depth > 1 else 0
    kept = _kept_sizes(protocol, (measured, width, depth), notes)
    height = measured if keep_oversampling else kept[0]
    if height != measured and measured % height:
        notes.append(f"readout cut from {measured} to {height} samples, which is no whole oversampling")
    grid = Grid(
        slabs=slabs,
        depth=depth,
        kept_depth=kept[2],
        measured=measured,
        height=height,
        width=width,
        samples=slice(pre, size - post),
        start=start,
        rows=_rows(measured, height, start, size - pre - post),
        line_offset=line_offset,
        plane_offset=plane_offset,
        padding=_padding(protocol.lines, line_offset),
        crop=(kept[0], kept[1]),
        voxel_mm=_voxel(protocol, encoded),
    )
    if not grid.rows.all():
        notes.append(f"asymmetric echo: {int(grid.rows.sum())} of {height} readout samples acquired")
    return grid, tuple(notes)


def _require_sizes(where: str, lines: np.ndarray, slabs: int, encoded: tuple[int, int, int]) -> None:
    measured, width, depth = encoded
    coils, slices = int(lines["active_channels"][0]), slabs * depth
    if coils > _MOST_COILS or slices > _MOST_SLICES or max(measured, width) > _LONGEST_SIDE:
        raise InputError(
            f"{where}: {slices:,} slices of {coils} coils and {measured}x{width} samples are more than a scan has "
            f"(at most {_MOST_SLICES}, {_MOST_COILS}, {_LONGEST_SIDE}); correct the header"
        )
    grid_bytes = 8 * slices * coils * measured * width
    held = 8 * coils * int(lines["number_of_samples"].astype(np.int64).sum())
    if grid_bytes > _LARGE_BYTES and grid_bytes > _LARGE_RATIO * held:
        raise InputError(
            f"{where}: its header declares a grid of {grid_bytes:,} bytes for {held:,} bytes of samples; "
            "not a plausible scan, refused"
        )


def _offset(where: str, steps: np.ndarray, size: int, limits: Limits | None, name: str, notes: list[str]) -> int:
    """What takes an encoding counter to its index on an axis of ``size``."""
    center = limits.center if limits is not None else size // 2
    if limits is None:
        notes.append(f"header: no encoding limits of {name}; its centre taken as {center}")
    low, high = int(steps.min()) + size // 2 - center, int(steps.max()) + size // 2 - center
    if low < 0 or high >= size:
        raise InputError(
            f"{where}: {name} {int(steps.min())} to {int(steps.max())} with its centre at {center} does not fit the "
            f"encoded matrix of {size}; correct encodedSpace or encodingLimits"
        )
    return size // 2 - center


def _padding(limits: Limits | None, offset: int) -> tuple[int, int] | None:
    return None if limits is None else (limits.minimum + offset, limits.maximum + 1 + offset)


def _rows(measured: int, height: int, start: int, size: int) -> np.ndarray:
    """Which rows of the kept grid lie within the readout, (height, 1)."""
    position = (np.arange(height) - height // 2) * measured / height + measured // 2
    covered = (position >= start) & (position <= start + size - 1)
    return (covered | (size == measured))[:, None]


def _kept_sizes(protocol: Protocol, encoded: tuple[int, int, int], notes: list[str]) -> tuple[int, int, int]:
    """Image size along (readout, phase encode, partition): what the reconstructed field of view holds of the grid.

    Pixels keep the measured size, so a matrix that the scanner would interpolate to is not followed.
    """
    recon, fov, whole = protocol.header.recon, protocol.header.fov_mm, protocol.encoded_fov_mm
    kept = []
    for axis, size in enumerate(encoded):
        asked = min(size, recon[axis]) if recon is not None else size
        if fov is not None and whole is not None:
            by_fov = min(size, max(1, round(size * fov[axis] / whole[axis])))
            if recon is not None and abs(by_fov - asked) <= 1:
                by_fov = asked  # rounding
            if recon is not None and axis < 2 and by_fov != recon[axis]:
                notes.append(
                    f"header: its fields of view and matrices ask for {recon[axis]} pixels where {by_fov} of "
                    f"{size} were measured along {'yxz'[axis]}; using {by_fov}"
                )
            asked = by_fov
        kept.append(asked if size > 1 else 1)
    return kept[0], kept[1], kept[2]


def _voxel(protocol: Protocol, encoded: tuple[int, int, int]) -> tuple[float, float, float] | None:
    """Distance of neighbouring pixels along (readout, phase encode) and the thickness of a slice, mm."""
    fov, matrix = protocol.encoded_fov_mm, encoded
    if fov is None:
        fov, matrix = protocol.header.fov_mm, protocol.header.recon or encoded
    return None if fov is None else (fov[0] / matrix[0], fov[1] / matrix[1], fov[2] / matrix[2])
