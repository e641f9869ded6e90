"""Reading fastMRI-style HDF5: whole scans, single slices, or only their shape. Files are not trusted (see `hdf5`).

``kspace`` is (slice, coil, y, x) or single-coil (slice, y, x), complex or real with a last axis (real, imaginary).
Optional: ``mask`` (x,), (1, x) or (y, x); ``ismrmrd_header``; ``reconstruction_rss`` or ``reconstruction_esc``.
The attributes ``max``, ``norm`` and ``patient_id`` are never read: the first two tell of unacquired data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from rsdmri.data.fastmri_header import LARGEST, HeaderRefused, parse_header
from rsdmri.data.fastmri_write import write_reconstruction, write_scan
from rsdmri.data.hdf5 import PathLike, clean, get_dataset, open_hdf5, shown
from rsdmri.data.kspace import LONGEST_SIDE, acquired_only, slice_notes
from rsdmri.data.remote import name_of
from rsdmri.data.sampling import settle_sampling
from rsdmri.data.scan import Header, Scan
from rsdmri.data.stored_kspace import Kspace
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

__all__ = ["ScanShape", "read_acquired", "read_scan", "scan_shape", "write_reconstruction", "write_scan"]

# Free text could name a patient: only these are passed on.
ACQUISITIONS = (
    *("CORPD_FBK", "CORPDFS_FBK", "AXT1", "AXT1PRE", "AXT1POST", "AXT2", "AXFLAIR"),  # fastMRI
    "AXPD",  # simulated
)


@dataclass(frozen=True, eq=False)
class ScanShape:
    """What is known about a scan before its samples are used; the fields mean what they mean in `Scan`."""

    name: str
    slices: int
    coils: int
    y: int
    x: int
    crop: tuple[int, int]
    mask: np.ndarray
    """Acquired positions, bool (1, x) or (y, x)."""
    absent: np.ndarray
    """(x,) bool."""
    prospective: bool
    has_mask: bool
    """Whether the file brought a mask, rather than its zeros telling."""
    acquisition: str
    header: Header | None
    warnings: tuple[str, ...]


def scan_shape(path: PathLike) -> ScanShape:
    """Shape, mask and header of a scan without loading it.

    Samples are looked at only to find positions that are exactly zero in all slices and coils, or filled padding:
    nothing but zero, finite or NaN is concluded of them. One coil image settles it for scans without zeros.

    Raises:
        InputError: what the file is not, or what is wrong with it.
    """
    with open_hdf5(path) as file:
        kspace = Kspace(file, shown(path))
        return _survey(file, kspace, safe_stem(name_of(path)), kspace.blocks())


def read_scan(path: PathLike, *, slices: slice | None = None, allow_unmasked: bool = False) -> Scan:
    """Read a scan: acquired samples, mask, geometry and the reference image where there is one.

    Positions that are zero in all slices and coils count as not acquired. What was not acquired is 0 in the result,
    whatever the file holds there (NaN included).

    Args:
        path: the file.
        slices: which slices to read; None reads all.
        allow_unmasked: drop finite non-zero samples where the file's mask says that nothing was acquired, instead of
            refusing the file.

    Raises:
        InputError: a file that is missing, damaged, hostile or not of this format; NaN or infinite acquired samples;
            samples that contradict the mask.
    """
    where = shown(path)
    with open_hdf5(path) as file:
        source = Kspace(file, where)
        chosen = range(source.slices)[slices if slices is not None else slice(None)]
        if not chosen:
            raise InputError(f"{where}: none of its {source.slices} slices chosen; check the slice range")
        kspace = np.empty((len(chosen), source.coils, source.y, source.x), np.complex64)
        for position, index in enumerate(chosen):
            kspace[position] = source.read(index)
        shape = _survey(file, source, safe_stem(name_of(path)), iter(kspace))
        given = _file_mask(file, source)
        if given is not None and not allow_unmasked:
            _refuse_contradiction(where, kspace, given)
        target, target_source, notes = _read_target(file, source, chosen, shape.prospective)
    for position, index in enumerate(chosen):
        acquired_only(kspace[position], shape.mask, where, index)
    return Scan(
        name=shape.name,
        kspace=kspace,
        mask=shape.mask,
        absent=shape.absent,
        crop=shape.crop,
        prospective=shape.prospective,
        acquisition=shape.acquisition,
        target=target,
        target_source=target_source,
        header=shape.header,
        warnings=shape.warnings + notes + slice_notes(kspace, chosen, shape.mask),
    )


def read_acquired(path: PathLike, index: int, mask: np.ndarray) -> np.ndarray:
    """Acquired samples of one slice: ``where(mask, kspace, 0)``, (coil, y, x) complex64.

    Samples outside ``mask`` are never looked at; they may be NaN.

    Args:
        path: the file.
        index: slice, from 0.
        mask: what to read, bool (x,), (1, x) or (y, x).

    Raises:
        InputError: a bad file, no such slice, a mask of another size, NaN or infinite values under the mask.
    """
    where = shown(path)
    with open_hdf5(path) as file:
        kspace = Kspace(file, where)
        kspace.check(index, mask)
        block = np.empty((kspace.coils, kspace.y, kspace.x), np.complex64)
        kspace.read_into(block, index)
    acquired_only(block, mask, where, index)
    return block


def _survey(file: h5py.File, kspace: Kspace, name: str, blocks: Iterator[np.ndarray]) -> ScanShape:
    """Everything but the samples; ``blocks`` are (coil, y, x) pieces of the scan."""
    header, notes = _read_header(file, kspace)
    given = _file_mask(file, kspace)
    padding = header.padding if header is not None else None
    if padding is not None and header is not None and header.encoded is not None and header.encoded[1] != kspace.x:
        notes += (f"header: encoded matrix {header.encoded[1]} is not k-space width {kspace.x}; padding ignored",)
        padding = None
    sampling = settle_sampling(kspace.where, (kspace.y, kspace.x), given, padding, blocks)
    crop, crop_notes = _crop(file, kspace, header)
    return ScanShape(
        name=name,
        slices=kspace.slices,
        coils=kspace.coils,
        y=kspace.y,
        x=kspace.x,
        crop=crop,
        mask=sampling.mask,
        absent=sampling.absent,
        prospective=sampling.prospective,
        has_mask=given is not None,
        acquisition=_acquisition(file),
        header=header,
        warnings=notes + sampling.warnings + crop_notes,
    )


def _acquisition(file: h5py.File) -> str:
    try:
        value = file.attrs.get("acquisition")
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):
        return "unknown"
    word = clean(value) if isinstance(value, str | bytes) else ""
    return word if word in ACQUISITIONS else "unknown"


def _file_mask(file: h5py.File, kspace: Kspace) -> np.ndarray | None:
    """The file's ``mask`` as bool (1, x) or (y, x), None if it has none."""
    found = get_dataset(file, "mask", kspace.where)
    if found is None:
        return None
    size = {(kspace.x,), (1, kspace.x), (kspace.y, kspace.x)}
    if tuple(found.shape) not in size or found.dtype.kind not in "biuf":
        raise InputError(
            f"{kspace.where}: mask is {clean(found.dtype)} {tuple(found.shape)}, which does not fit k-space "
            f"{(kspace.y, kspace.x)}; store 0 and 1 as ({kspace.x},) or {(kspace.y, kspace.x)}"
        )
    values = np.asarray(found[()])
    if not np.isin(values, (0, 1)).all():
        raise InputError(f"{kspace.where}: mask holds values other than 0 and 1; store 1 where a sample was acquired")
    return values.astype(bool).reshape(-1, kspace.x)


def _refuse_contradiction(where: str, kspace: np.ndarray, mask: np.ndarray) -> None:
    """`InputError` if finite non-zero samples lie where ``mask`` says that nothing was acquired."""
    skipped = np.broadcast_to(~mask, kspace.shape[-2:])
    count = 0
    for block in kspace:
        outside = block[:, skipped]
        count += int((np.isfinite(outside) & (outside != 0)).sum())
    if count:
        share = 100 * count / max(1, int(skipped.sum()) * kspace.shape[0] * kspace.shape[1])
        raise InputError(
            f"{where}: {count:,} samples ({share:.1f} %) hold data where its mask says that nothing was acquired; "
            "delete the data set 'mask' if the scan is fully sampled, or set those samples to 0"
        )


def _read_header(file: h5py.File, kspace: Kspace) -> tuple[Header | None, tuple[str, ...]]:
    found = get_dataset(file, "ismrmrd_header", kspace.where)
    if found is None:
        return None, ("no ismrmrd_header; using array sizes",)
    if found.size != 1 or found.dtype.kind not in "SO":
        return None, ("ismrmrd_header is not one text; using array sizes",)
    if found.dtype.itemsize > LARGEST:
        raise InputError(f"{kspace.where}: ismrmrd_header has more than {LARGEST:,} bytes; write a plain header")
    text = np.asarray(found[()]).reshape(-1)[0]
    text = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if not isinstance(text, bytes):
        return None, ("ismrmrd_header is not text; using array sizes",)
    try:
        return parse_header(text)
    except HeaderRefused as error:
        raise InputError(f"{kspace.where}: ismrmrd_header {error}, which is refused; write a plain header") from None


def _target_data(file: h5py.File, kspace: Kspace) -> tuple[str, h5py.Dataset | None, tuple[str, ...]]:
    """Name and data set of the reference image, None where there is none that fits; its values are not read."""
    names = ("reconstruction_rss", "reconstruction_esc")
    for name in reversed(names) if kspace.single else names:
        found = get_dataset(file, name, kspace.where)
        if found is None:
            continue
        fits = found.ndim == 3 and found.shape[0] == kspace.slices and found.dtype.kind == "f"
        if not fits or not all(0 < side <= LONGEST_SIDE for side in found.shape[1:]):
            return (
                name,
                None,
                (f"{name} is {clean(found.dtype)} {clean(found.shape)}, not real (slice, h, w); ignored",),
            )
        return name, found, ()
    return "", None, ()


def _crop(file: h5py.File, kspace: Kspace, header: Header | None) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Image size: the reference's, else the header's reconstructed matrix, else k-space's.

    Where that does not fit (fastMRI's FLAIR scans of 203 lines) the image is the largest square that does.
    """
    _, target, notes = _target_data(file, kspace)
    if target is not None:
        asked = (int(target.shape[1]), int(target.shape[2]))
    elif header is not None and header.recon is not None:
        asked = (header.recon[0], header.recon[1])
    else:
        asked = (kspace.y, kspace.x)
    if asked[0] <= kspace.y and asked[1] <= kspace.x:
        return asked, notes
    side = min(kspace.y, kspace.x)
    crop = (side, side) if asked[1] > side else (min(asked[0], kspace.y), asked[1])
    notes += (f"image size {asked[0]}x{asked[1]} exceeds k-space {kspace.y}x{kspace.x}; using {crop[0]}x{crop[1]}",)
    return crop, notes


def _read_target(
    file: h5py.File, kspace: Kspace, chosen: range, prospective: bool
) -> tuple[np.ndarray | None, str | None, tuple[str, ...]]:
    """Reference image (slice, h, w) float32, its data set's name, and warnings."""
    name, found, _ = _target_data(file, kspace)
    if found is None:
        return None, None, ()
    if prospective:
        return None, None, (f"{name} of an undersampled file is no reference; ignored",)
    target = np.stack([np.asarray(found[index], np.float32) for index in chosen])
    if not np.isfinite(target).all():
        return None, None, (f"{name} holds NaN or infinite values; ignored",)
    return target, name, ()
