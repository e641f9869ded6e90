"""From Cartesian samples of any file to a `Scan`: limits, sampling, what was not acquired."""

from collections.abc import Sequence

import numpy as np

from rsdmri.data.hdf5 import clean
from rsdmri.data.sampling import settle_sampling
from rsdmri.data.scan import Header, Scan
from rsdmri.errors import InputError

LONGEST_SIDE = 4096
_MOST_SLICES, _MOST_COILS, _SLICE_BYTES = 2048, 256, 4 << 30


def check_sizes(where: str, slices: int, coils: int, y: int, x: int) -> None:
    """`InputError` for k-space that no scanner makes; to be called before memory is taken."""
    for size, most, what in (
        (slices, _MOST_SLICES, "slices"),
        (coils, _MOST_COILS, "coils"),
        (y, LONGEST_SIDE, "readout samples"),
        (x, LONGEST_SIDE, "phase-encode lines"),
    ):
        if not 0 < size <= most:
            raise InputError(f"{where}: k-space has {size:,} {what}; expected 1 to {most:,}")
    if coils * y * x * 8 > _SLICE_BYTES:
        raise InputError(f"{where}: one slice takes more than {_SLICE_BYTES >> 30} GiB; compress the coils first")


def cartesian_scan(
    where: str,
    name: str,
    kspace: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    maps: np.ndarray | None = None,
    header: Header | None = None,
    warnings: tuple[str, ...] = (),
) -> Scan:
    """The scan of ``kspace`` (slice, coil, y, x), written over: what was not acquired becomes 0.

    Args:
        where: the file, for messages.
        name: of the scan, safe as a file name.
        kspace: complex; positions that are zero in all slices and coils count as not acquired.
        mask: acquired positions where the file says so, bool (1, x) or (y, x).
        maps: coil maps of the shape of ``kspace``.
        header: geometry; its padding is absent.
        warnings: what the reader had to assume.

    Raises:
        InputError: implausible sizes, nothing acquired, NaN or infinite acquired samples.
    """
    slices, coils, height, width = kspace.shape
    check_sizes(where, slices, coils, height, width)
    kspace = to_complex64(kspace)
    padding = header.padding if header is not None else None
    sampling = settle_sampling(where, (height, width), mask, padding, iter(kspace))
    for index in range(slices):
        acquired_only(kspace[index], sampling.mask, where, index)
    return Scan(
        name=name,
        kspace=kspace,
        mask=sampling.mask,
        absent=sampling.absent,
        crop=(height, width),
        prospective=sampling.prospective,
        maps=maps,
        header=header,
        warnings=warnings + sampling.warnings + slice_notes(kspace, range(slices), sampling.mask),
    )


def to_complex64(values: np.ndarray) -> np.ndarray:
    """A writeable C-ordered complex64 array; what is too large for it becomes infinite, to be reported as such."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(values, np.complex64, ["C", "W"])


@np.errstate(invalid="ignore")  # signalling NaN are compared
def volume_slices(kspace: np.ndarray) -> tuple[np.ndarray, str]:
    """3-D k-space (coil, y, z, x) as 2-D slices (slice, coil, y, x), and a warning that says which.

    Where every acquired partition z holds the same phase encodes x, a Fourier transform along z gives slices of
    (y, x). Where (z, x) is undersampled point by point, one along the readout y gives independent problems of (z, x).
    """
    import torch  # here: reading slices needs no torch

    from rsdmri.physics.fourier import ifft1c
    from rsdmri.physics.volume import decoupled

    acquired = (kspace != 0).any((0, 1))
    partitions = np.flatnonzero(acquired.any(1))
    whole = bool(partitions.size) and np.ptp(partitions) + 1 == partitions.size
    values = torch.from_numpy(to_complex64(kspace))
    if whole and (acquired[partitions] == acquired[partitions[0]]).all():
        slices = ifft1c(values, -2).movedim(-2, 0)
        note = "3-D k-space with all partitions: slices are images along the partition axis"
    else:
        slices = decoupled(values)
        note = (
            "3-D k-space undersampled in both phase encodes: slices are positions along the readout, "
            "each of size (partition, phase encode)"
        )
    return np.ascontiguousarray(slices.numpy()), note


def acquired_only(block: np.ndarray, mask: np.ndarray, where: str, index: int) -> None:
    """Make ``block`` (coil, y, x) of slice ``index`` ``where(mask, block, 0)`` in place.

    NaN and infinity under the mask are refused, elsewhere they vanish. One coil image at a time stays in cache, and a
    bitwise and with all ones or all zeros is ``where`` in one pass.
    """
    keep = np.where(mask, np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0))
    bad = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for image in block:
            bits = image.view(np.uint64)
            np.bitwise_and(bits, keep, out=bits)
            numbers = image.view(np.float32).reshape(-1)
            if not np.isfinite(np.dot(numbers, numbers)):  # or too large to be squared: counting tells
                bad += int((~np.isfinite(image)).sum())
    if bad:
        raise InputError(
            f"{where}: {bad:,} acquired samples of slice {index} are NaN or infinite; "
            "repair the file, or give it a mask that is 0 there"
        )


def slice_notes(kspace: np.ndarray, chosen: Sequence[int], mask: np.ndarray) -> tuple[str, ...]:
    """Warnings about slices that hold less than the rest."""
    lines = np.stack([(block != 0).any((0, 1)) for block in kspace])
    blank = [str(index) for index, acquired in zip(chosen, lines, strict=True) if not acquired.any()]
    short = [
        str(index)
        for index, acquired in zip(chosen, lines, strict=True)
        if acquired.any() and (mask.any(0) & ~acquired).any()
    ]
    notes = []
    if blank:
        notes.append(f"slices without any signal: {clean(', '.join(blank))}")
    if short:
        notes.append(f"slices with fewer acquired lines than the scan: {clean(', '.join(short))}")
    return tuple(notes)
