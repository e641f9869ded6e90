"""A scan's file against the schema of fastMRI's HDF5, field by field: all that is missing, odd or dangerous at once."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import h5py
import numpy as np

from rsdmri.data.fastmri import ACQUISITIONS, _file_mask, read_scan
from rsdmri.data.fastmri_header import LARGEST
from rsdmri.data.hdf5 import DangerousFile, PathLike, clean, get_dataset, open_hdf5, shown
from rsdmri.data.header_check import Finding, examine_header
from rsdmri.data.stored_kspace import Kspace
from rsdmri.errors import InputError
from rsdmri.privacy import personal_kinds

KNOWN = ("kspace", "mask", "ismrmrd_header", "reconstruction_rss", "reconstruction_esc")
_LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError)
_MOST_NAMES, _ATTRIBUTE_BYTES = 64, 1 << 16
_PERSONAL_ATTRIBUTE = re.compile(
    r"(?i)patient|subject|birth|name|physician|operator|institution|station|serial|date|mrn"
)
_LEAKING = {"max": "of the target", "norm": "of the target"}


def examine(path: PathLike) -> dict[str, Any]:
    """What a file holds of the schema: ``usable``, ``reason`` (one line where not) and ``fields``, rows of `Finding`.

    Usable is what `read_scan` reads. Nothing personal is told but its kind. Never raises `InputError` for what is in
    the file: everything wrong with it is in the result.
    """
    where, findings = shown(path), list[Finding]()
    try:
        with open_hdf5(path) as file:
            for check in (_kspace, _mask, _header, _targets, _attributes, _others):
                findings += _guarded(check, file, where)
    except InputError as error:
        findings.append(Finding("file", "odd", advice=_short(error, where)))
    try:
        read_scan(path)
    except InputError as error:
        reason = str(error)
    else:
        reason = ""
    return {"usable": not reason, "reason": reason, "fields": [asdict(finding) for finding in findings]}


def _guarded(check: Callable[[h5py.File, str], Iterator[Finding]], file: h5py.File, where: str) -> list[Finding]:
    """The findings of ``check``, as far as it comes."""
    found: list[Finding] = []
    name = check.__name__.strip("_")
    try:
        for finding in check(file, where):
            found.append(finding)
    except InputError as error:
        found.append(_refused(name, error, where))
    except _LIBRARY_ERRORS:
        found.append(Finding(name, "odd", advice="cannot be read: damaged; copy the file again"))
    return found


def _refused(name: str, error: InputError, where: str) -> Finding:
    return Finding(name, "dangerous" if isinstance(error, DangerousFile) else "odd", advice=_short(error, where))


def _short(error: InputError, where: str) -> str:
    return str(error).removeprefix(f"{where}: ")


def _described(data: h5py.Dataset) -> tuple[str, str]:
    return clean(data.dtype), clean(tuple(data.shape))


def _kspace(file: h5py.File, where: str) -> Iterator[Finding]:
    found = get_dataset(file, "kspace", where)
    if found is None:
        yield Finding("kspace", "missing", advice="a scan needs k-space: complex64 (slice, coil, y, x)")
        return
    kind, shape = _described(found)
    try:
        kspace = Kspace(file, where)
    except InputError as error:
        yield Finding("kspace", "odd", kind, shape, _short(error, where))
        return
    advice = "single-coil: (slice, y, x)" if kspace.single else ""
    advice = "real and imaginary parts on the last axis; complex64 is usual" if kspace.pairs else advice
    yield Finding("kspace", "found", kind, shape, advice)
    yield from _samples(kspace)


def _samples(kspace: Kspace) -> Iterator[Finding]:
    """What is wrong with the values of k-space."""
    broken, blank, wrong = [], [], 0
    for index in range(kspace.slices):
        try:
            block = kspace.read(index)
        except InputError:
            broken.append(str(index))
            continue
        finite = np.isfinite(block)
        wrong += int((~finite).sum())
        if not block.any():
            blank.append(str(index))
    if broken:
        advice = f"slices {clean(', '.join(broken))} cannot be read (checksum or compression); copy the file again"
        yield Finding("kspace values", "odd", advice=advice)
    if blank:
        advice = f"slices {clean(', '.join(blank))} hold only zeros; they stay empty"
        yield Finding("kspace values", "odd", advice=advice)
    if wrong:
        yield Finding("kspace values", "odd", advice=f"{wrong:,} are NaN or infinite; the mask must be 0 there")


def _mask(file: h5py.File, where: str) -> Iterator[Finding]:
    found = get_dataset(file, "mask", where)
    if found is None:
        yield Finding("mask", "missing", advice="optional: exact zeros tell what was not acquired")
        return
    kind, shape = _described(found)
    try:
        kspace = Kspace(file, where)
    except InputError:
        yield Finding("mask", "odd", kind, shape, "not checked: k-space is unusable")
        return
    try:
        mask = _file_mask(file, kspace)
    except InputError as error:
        yield Finding("mask", "odd", kind, shape, _short(error, where))
        return
    yield Finding("mask", "found", kind, shape)
    if mask is not None:
        yield from _agreement(kspace, mask)


def _agreement(kspace: Kspace, mask: np.ndarray) -> Iterator[Finding]:
    """Share of samples on which mask and data disagree."""
    claimed = np.broadcast_to(mask, (kspace.y, kspace.x))
    seen = np.zeros_like(claimed)
    for index in range(kspace.slices):
        block = kspace.read(index)
        seen |= (np.isfinite(block) & (block != 0)).any(0)
    unasked, empty = (100 * float(np.mean(wrong)) for wrong in (seen & ~claimed, claimed & ~seen))
    if unasked:
        advice = f"{unasked:.1f} % of the positions hold data where it says that nothing was acquired; correct it"
        yield Finding("mask values", "odd", advice=advice)
    if empty:
        advice = f"{empty:.1f} % of the positions hold only zeros where it claims data; taken as not acquired"
        yield Finding("mask values", "odd", advice=advice)


def _header(file: h5py.File, where: str) -> Iterator[Finding]:
    found = get_dataset(file, "ismrmrd_header", where)
    if found is None:
        yield Finding("ismrmrd_header", "missing", advice="optional: array sizes are used, and no padding assumed")
        return
    kind, shape = _described(found)
    if found.size != 1 or found.dtype.kind not in "SO" or found.dtype.itemsize > LARGEST:
        large = found.dtype.itemsize > LARGEST
        advice = f"more than {LARGEST:,} bytes" if large else "not one text; array sizes are used"
        yield Finding("ismrmrd_header", "dangerous" if large else "odd", kind, shape, advice)
        return
    text = np.asarray(found[()]).reshape(-1)[0]
    text = text.encode("utf-8", "replace") if isinstance(text, str) else text
    try:
        kspace = Kspace(file, where)
        size = kspace.y, kspace.x
    except InputError:
        size = None
    findings, kinds = examine_header(bytes(text), size)
    yield from findings
    yield from _privacy("ismrmrd_header", kinds)


def _targets(file: h5py.File, where: str) -> Iterator[Finding]:
    for name in KNOWN[3:]:
        try:
            found = get_dataset(file, name, where)
        except InputError as error:
            yield _refused(name, error, where)
            continue
        if found is None:
            yield Finding(name, "missing", advice="optional: scores are then against the full k-space")
            continue
        kind, shape = _described(found)
        fits = found.dtype.kind == "f" and len(found.shape) == 3
        yield Finding(name, "found" if fits else "odd", kind, shape, "" if fits else "expected float32 (slice, h, w)")


def _attributes(file: h5py.File, where: str) -> Iterator[Finding]:
    del where
    kinds: dict[str, None] = {}
    holders = [file]
    for name in KNOWN:
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            holders.append(file[name])
    for holder in holders:
        for number, name in enumerate(holder.attrs):
            if number == _MOST_NAMES:
                yield Finding("attributes", "odd", advice=f"more than {_MOST_NAMES}; the rest was not looked at")
                break
            kinds |= dict.fromkeys(_attribute_kinds(holder, name))
    acquisition = file.attrs.get("acquisition") if "acquisition" in file.attrs else None
    if acquisition is None:
        yield Finding("attribute acquisition", "missing", advice="optional: the contrast is called unknown")
    elif not isinstance(acquisition, str | bytes) or clean(acquisition) not in ACQUISITIONS:
        advice = f"none of {', '.join(ACQUISITIONS)}; the contrast is called unknown"
        yield Finding("attribute acquisition", "odd", advice=advice)
    else:
        yield Finding("attribute acquisition", "found", "text", clean(acquisition))
    for name, what in _LEAKING.items():
        if name in file.attrs:
            yield Finding(f"attribute {name}", "found", advice=f"{what}, from unacquired data: never read")
    yield from _privacy("attributes", list(kinds))


def _attribute_kinds(holder: Any, name: str) -> list[str]:
    """Kinds of personal data in one attribute, by its name and its text."""
    kinds = personal_kinds(name)
    if _PERSONAL_ATTRIBUTE.search(name):
        kinds.append("a field for personal data")
    try:
        if h5py.h5a.open(holder.id, name.encode()).get_storage_size() <= _ATTRIBUTE_BYTES:
            kinds += personal_kinds(str(np.asarray(holder.attrs[name]).tolist())[:1000])
    except _LIBRARY_ERRORS:
        return kinds
    return kinds


def _others(file: h5py.File, where: str) -> Iterator[Finding]:
    del where
    for number, name in enumerate(file):
        if number == _MOST_NAMES:
            yield Finding("other names", "odd", advice=f"more than {_MOST_NAMES}; the rest was not looked at")
            return
        if name in KNOWN:
            continue
        link = file.get(name, getlink=True)
        told = "another name" if personal_kinds(name) else clean(name, 30)
        if isinstance(link, h5py.HardLink):
            yield Finding(told, "found", advice="not part of the schema; not read")
        else:
            yield Finding(told, "dangerous", advice="a link out of its place; not followed, remove it")


def _privacy(field: str, kinds: list[str]) -> Iterator[Finding]:
    if kinds:
        advice = f"seems to hold personal data ({', '.join(kinds)}): not read, but remove it before sharing the file"
        yield Finding(field, "odd", advice=advice)
