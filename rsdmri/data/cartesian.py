"""Readouts of a raw data file sorted onto the Cartesian grid of a `Scan`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from rsdmri.data.acquisitions import CHOICES, Readouts, imaging_lines, noise_lines
from rsdmri.data.fastmri_header import Protocol
from rsdmri.data.grid import Grid, plan_grid
from rsdmri.data.placement import place_slices
from rsdmri.data.sampling import settle_sampling
from rsdmri.data.scan import Header, Scan
from rsdmri.errors import InputError
from rsdmri.physics.noise import covariance_from_noise_scan

_NOISE_BYTES = 64 << 20  # more noise samples would not change the covariance


@dataclass(frozen=True, eq=False)
class _Filled:
    """K-space on its grid."""

    kspace: np.ndarray
    """(slab, partition, coil, y, x) complex64, the mean of all readouts of a position."""
    counts: np.ndarray
    """(slab, partition, x) readouts of each position."""


def scan_from_readouts(
    readouts: Readouts,
    protocol: Protocol,
    *,
    name: str,
    choice: Mapping[str, int],
    slices: slice | None = None,
    keep_oversampling: bool = False,
    warnings: tuple[str, ...] = (),
) -> Scan:
    """Sort the imaging readouts of a file onto their grid.

    The readout's oversampling is cut off in image space, averages are averaged, fully sampled partitions are
    transformed to slices, noise measurements become the noise covariance of one sample of the result.

    Args:
        readouts: all of the file.
        protocol: what its header says.
        name: of the scan.
        choice: which ``contrast``, ``repetition``, ``set`` and ``phase``; 0 where it does not say.
        slices: which slices (slabs of a 3-D acquisition) to read, in ascending order of their index; None reads all.
        keep_oversampling: leave the readout as long as it was measured.
        warnings: what the reader of the file had to assume.

    Raises:
        InputError: readouts that are no Cartesian imaging, or that do not fit the grid or each other.
    """
    where = readouts.where
    chosen, slabs, notes = _choose(readouts, protocol, choice, slices)
    warnings += notes
    lines = readouts.lines[chosen]
    grid, notes = plan_grid(where, lines, int(slabs.max()) + 1, protocol, keep_oversampling)
    warnings += notes
    filled = _fill(readouts, chosen, slabs, grid)
    same, notes = _same_sampling(where, filled.counts)
    warnings += notes
    counts = filled.counts[same]
    kspace, notes = _to_slices(where, filled.kspace, counts, grid, same)
    warnings += notes
    mask = np.broadcast_to(counts.any((0, 1)), (1, grid.width)) & grid.rows
    mask = mask[:1] if grid.rows.all() else mask
    sampling = settle_sampling(where, kspace.shape[-2:], mask, _padding(mask, grid), iter(kspace))
    kspace[..., ~np.broadcast_to(sampling.mask, kspace.shape[-2:])] = 0
    noise, notes = _noise_covariance(readouts, protocol, lines, counts)
    warnings += notes
    kept = np.isin(slabs, same)
    numbers, partitions = np.searchsorted(same, slabs[kept]), len(kspace) // len(same)
    geometry, notes = place_slices(lines[kept], numbers, partitions, grid.voxel_mm, conjugate=protocol.siemens)
    return Scan(
        name=name,
        kspace=kspace,
        mask=sampling.mask,
        absent=sampling.absent,
        crop=grid.crop,
        prospective=sampling.prospective,
        noise_cov=noise,
        header=_header(protocol.header, grid, sampling.absent),
        geometry=geometry,
        warnings=warnings + notes + sampling.warnings,
    )


def _choose(
    readouts: Readouts, protocol: Protocol, choice: Mapping[str, int], slices: slice | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Numbers of the readouts that make the image, the slab of each (counted from 0), and warnings."""
    chosen, notes = imaging_lines(readouts, {key: choice.get(key, 0) for key in CHOICES})
    _require_trajectory(readouts, protocol, chosen)
    indices = np.unique(readouts.lines["slice"][chosen])
    wanted = indices[slices if slices is not None else slice(None)]
    if len(wanted) == 0:
        raise InputError(f"{readouts.where}: none of its {len(indices)} slices chosen; check the slice range")
    wanted = np.sort(wanted)
    chosen = chosen[np.isin(readouts.lines["slice"][chosen], wanted)]
    return chosen, np.searchsorted(wanted, readouts.lines["slice"][chosen]), notes


def _require_trajectory(readouts: Readouts, protocol: Protocol, chosen: np.ndarray) -> None:
    word = protocol.trajectory
    if word == "epi":
        raise InputError(
            f"{readouts.where}: is an EPI scan, whose readouts need a ghost correction and regridding that are not "
            "made here; write it corrected, as Cartesian"
        )
    if word == "cartesian" or (word is None and not readouts.lines["trajectory_dimensions"][chosen].any()):
        return
    raise InputError(
        f"{readouts.where}: its trajectory is {word or 'not named but recorded'}, not Cartesian; "
        "use rsdmri.physics.noncartesian with the samples and the trajectory, or grid them first"
    )


def _fill(readouts: Readouts, chosen: np.ndarray, slabs: np.ndarray, grid: Grid) -> _Filled:
    """Mean of all readouts of each position, oversampling cut off."""
    lines = readouts.lines[chosen]
    coils = int(lines["active_channels"][0])
    kspace = np.zeros((grid.slabs, grid.depth, coils, grid.height, grid.width), np.complex64)
    counts = np.zeros((grid.slabs, grid.depth, grid.width), np.int32)
    places = np.stack([slabs, grid.planes(lines), grid.columns(lines)], axis=1)
    np.add.at(counts, tuple(places.T), 1)
    for numbers, block in readouts.read(chosen):
        bad = int((~np.isfinite(block)).sum())
        if bad:
            raise InputError(f"{readouts.where}: {bad:,} acquired samples are NaN or infinite; repair the file")
        where = places[np.searchsorted(chosen, numbers)].tolist()
        for (slab, plane, column), samples in zip(where, grid.place(block), strict=True):
            kspace[slab, plane, :, :, column] += samples
    if (counts > 1).any():
        kspace /= np.maximum(counts, 1).astype(np.float32)[:, :, None, None, :]
    return _Filled(kspace, counts)


def _same_sampling(where: str, counts: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the slabs that hold all that any of them holds, and a warning of those that hold less."""
    acquired = counts > 0
    union = acquired.any(0)
    whole = np.flatnonzero((acquired == union).all((1, 2)))
    if len(whole) == 0:
        raise InputError(
            f"{where}: its {len(counts)} slices were sampled at different lines, and a scan has one mask; "
            "read them one by one with slices=slice(k, k + 1)"
        )
    if len(whole) == len(counts):
        return whole, ()
    short = [str(index) for index in range(len(counts)) if index not in whole]
    words = ", ".join(short[:8]) + (" ..." if len(short) > 8 else "")
    return whole, (f"slices left out, with fewer acquired lines than the others: {words}",)


def _to_slices(
    where: str, kspace: np.ndarray, counts: np.ndarray, grid: Grid, same: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(slice, coil, y, x) of the slabs ``same``: partitions transformed to image space, their oversampling cut off."""
    if len(same) < len(kspace):
        kspace = kspace[same]
    if grid.depth == 1:
        return kspace[:, 0], ()
    acquired: np.ndarray = np.all(counts > 0, axis=0)
    planes, columns = np.asarray(acquired.any(1)), np.asarray(acquired.any(0))
    first, last = int(np.argmax(planes)), grid.depth - int(np.argmax(planes[::-1]))
    separable = (acquired == planes[:, None] & columns).all()
    centre = grid.depth // 2
    if not separable or not planes[first:last].all() or not first <= centre < last:
        raise InputError(
            f"{where}: a 3-D scan whose partitions are undersampled ({int(planes.sum())} of {grid.depth} measured, "
            f"{'the same' if separable else 'different'} lines in each), which is not cut into slices; "
            "reconstruct it as a volume with rsdmri.physics.volume"
        )
    notes: tuple[str, ...] = ()
    if last - first < grid.depth:
        notes = (f"{grid.depth - (last - first)} of {grid.depth} partitions were not measured; zero-filled",)
    start = centre - grid.kept_depth // 2
    result = np.empty((len(kspace), grid.kept_depth, *kspace.shape[2:]), np.complex64)
    for slab, volume in enumerate(kspace):
        for coil in range(volume.shape[1]):
            image = np.fft.fftshift(
                np.fft.ifft(np.fft.ifftshift(volume[:, coil], axes=0), axis=0, norm="ortho"), axes=0
            )
            result[slab, :, coil] = image[start : start + grid.kept_depth]
    return result.reshape(-1, *kspace.shape[2:]), notes


def _padding(mask: np.ndarray, grid: Grid) -> tuple[int, int] | None:
    """Columns [left, right) of the protocol: the header's, or what was acquired if that is a block over the centre."""
    acquired = np.flatnonzero(mask.any(0))
    first, last = int(acquired[0]), int(acquired[-1]) + 1
    if grid.padding is not None:
        left, right = grid.padding
        return max(0, min(left, first)), min(grid.width, max(right, last))
    whole = len(acquired) == last - first and first <= grid.width // 2 < last
    return (first, last) if whole else None


def _noise_covariance(
    readouts: Readouts, protocol: Protocol, lines: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Covariance (coil, coil) of one sample of the averaged k-space, None without a noise measurement."""
    numbers = noise_lines(readouts.lines)
    if len(numbers) == 0:
        return None, ()
    noise, coils = readouts.lines[numbers], int(lines["active_channels"][0])
    if (noise["active_channels"] != coils).any():
        return None, (f"noise measurement of other coils than the scan's {coils}; ignored",)
    notes: tuple[str, ...] = ()
    enough = np.cumsum(8 * coils * noise["number_of_samples"].astype(np.int64)) <= _NOISE_BYTES
    enough[0] = True
    numbers, noise = numbers[enough], noise[enough]
    pieces = [
        block.transpose(1, 0, 2).reshape(coils, -1)
        for length in np.unique(noise["number_of_samples"])
        for _, block in readouts.read(numbers[noise["number_of_samples"] == length])
    ]
    dwell = [np.unique(part["sample_time_us"][part["sample_time_us"] > 0]) for part in (noise, lines)]
    known = all(len(times) == 1 for times in dwell)
    if not known:
        notes += ("noise measurement: the dwell times are not known; taken as those of the scan",)
    try:
        estimate = covariance_from_noise_scan(
            torch.from_numpy(np.concatenate(pieces, axis=1)),
            noise_dwell=float(dwell[0][0]) if known else None,
            data_dwell=float(dwell[1][0]) if known else None,
            bandwidth_ratio=protocol.noise_bandwidth or 1.0,
        )
    except InputError as error:
        return None, (f"{error}; ignored",)
    acquired = counts[counts > 0]
    share = float((1 / acquired).mean() * counts.any((0, 2)).mean())  # averages, and partitions that are zero-filled
    if len(np.unique(acquired)) > 1:
        notes += (f"lines were averaged {acquired.min()} to {acquired.max()} times: the noise is that of their mean",)
    return np.asarray(estimate.covariance.numpy() * share, np.complex128), notes


def _header(header: Header, grid: Grid, absent: np.ndarray) -> Header:
    """``header`` with the sizes of the grid as the scan holds it."""
    kept = np.flatnonzero(~absent)
    fov = None
    if grid.voxel_mm is not None:
        height, width = grid.crop
        fov = (height * grid.voxel_mm[0], width * grid.voxel_mm[1], grid.voxel_mm[2])
    return Header(
        encoded=(grid.height, grid.width, 1),
        recon=(*grid.crop, 1),
        fov_mm=fov,
        padding=(int(kept[0]), int(kept[-1]) + 1),
        field_strength_t=header.field_strength_t,
        echo_times_ms=header.echo_times_ms,
        repetition_times_ms=header.repetition_times_ms,
        inversion_times_ms=header.inversion_times_ms,
        flip_angles_deg=header.flip_angles_deg,
    )
