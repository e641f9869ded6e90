"""Converting scans between file formats, and from many coils to an emulated one."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsdmri.data.bart import write_cfl
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.hdf5 import shown
from rsdmri.data.scan import Header, Scan
from rsdmri.errors import InputError
from rsdmri.files import atomic_path
from rsdmri.physics.emulation import single_coil_weights
from rsdmri.physics.fourier import ifft2c, rss
from rsdmri.runtime import prepare_process
from rsdmri.workflows.reconstruct import load_scan

ISMRMRD_ENDINGS = (".mrd", ".ismrmrd.h5", ".ismrmrd")


def convert(
    source: Path,
    out: Path,
    *,
    emulate_single_coil: bool = False,
    force: bool = False,
    reading: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Scan:
    """Write the scan ``source`` as ``out`` and return it; what ``out`` cannot hold is said.

    Samples stay as they were measured: the oversampling of readouts is kept.

    Args:
        source: a scan of any format.
        out: ends in .h5 for fastMRI, .mrd or .ismrmrd.h5 for ISMRMRD, .cfl for BART; written beside and renamed.
        emulate_single_coil: combine the coils as fastMRI's single-coil data, see `single_coil_weights`.
        force: overwrite ``out``.
        reading: options of `load_scan`.
        say: gets one line each on the result and on what was lost.

    Raises:
        InputError: an ending of no format, a file that is there already, a scan that cannot be read or combined.
    """
    prepare_process()
    kind = _kind(out)
    _refuse_overwriting(Path(source), out, kind, force)
    scan = load_scan(source, keep_oversampling=True, **(reading or {}))
    emulated = None
    if emulate_single_coil:
        scan, emulated = _emulated(scan)
    try:
        match kind:
            case "fastMRI HDF5":
                _write_fastmri(out, scan, emulated)
            case "BART cfl":
                write_cfl(out, scan.kspace)
            case _:
                from rsdmri.data.ismrmrd import write_ismrmrd

                with atomic_path(out) as temporary:
                    write_ismrmrd(temporary, scan)
    except OSError as error:
        raise InputError(f"{shown(out)}: cannot be written ({error.strerror or error}); choose another") from None
    slices, coils, height, width = scan.kspace.shape
    say(f"{shown(out)}: {kind}, {slices} slices, {coils} coils, {height} x {width}")
    for line in _lost(scan, kind):
        say(f"lost: {line}")
    return scan


def _kind(out: Path) -> str:
    name = out.name.lower()
    if name.endswith(ISMRMRD_ENDINGS):
        return "ISMRMRD HDF5"
    if name.endswith((".h5", ".hdf5")):
        return "fastMRI HDF5"
    if name.endswith(".cfl"):
        return "BART cfl"
    raise InputError(f"{shown(out)}: the ending says the format: .h5 fastMRI, .mrd or .ismrmrd.h5 ISMRMRD, .cfl BART")


def _refuse_overwriting(source: Path, out: Path, kind: str, force: bool) -> None:
    parts = [out, out.with_suffix(".hdr")] if kind == "BART cfl" else [out]
    for part in parts:
        if part.is_dir():
            raise InputError(f"{shown(part)}: is a folder; name a file")
        if part.exists() and source.exists() and part.samefile(source):
            raise InputError(f"{shown(out)}: is the scan itself; choose another name")
        if part.exists() and not force:
            raise InputError(f"{shown(part)}: is there already; choose another name, or overwrite it with --force")
    if not out.parent.is_dir():
        raise InputError(f"{shown(out)}: no such folder; make it first")


def _emulated(scan: Scan) -> tuple[Scan, np.ndarray]:
    """The scan with one emulated coil, and the magnitude of its image (slice, h, w); the target is the RSS of all."""
    if scan.kspace.shape[1] == 1:
        raise InputError(f"--emulate-singlecoil: {scan.name} has one coil already; leave it out")
    if scan.prospective:
        raise InputError(f"--emulate-singlecoil: {scan.name} is undersampled; the fit needs a fully sampled scan")
    top, left = ((n - m) // 2 for n, m in zip(scan.kspace.shape[-2:], scan.crop, strict=True))  # as fastMRI crops
    centre = (..., slice(top, top + scan.crop[0]), slice(left, left + scan.crop[1]))
    images = torch.stack([ifft2c(torch.from_numpy(one))[centre] for one in scan.kspace])
    weights = single_coil_weights(images)
    combined = torch.einsum("c,scyx->syx", weights, torch.from_numpy(scan.kspace))[:, None]
    variance = None
    if scan.noise_cov is not None:
        row = weights.numpy().astype(np.complex128)[None]
        variance = row @ scan.noise_cov @ row.conj().T
    one_coil = dataclasses.replace(
        scan,
        kspace=np.ascontiguousarray(combined.numpy()),
        maps=None,
        noise_cov=variance,
        target=rss(images).numpy(),
        target_source="reconstruction_rss",
    )
    return one_coil, torch.einsum("c,scyx->syx", weights, images).abs().numpy()


def _write_fastmri(out: Path, scan: Scan, emulated: np.ndarray | None) -> None:
    single = scan.kspace.shape[1] == 1
    mask = scan.mask[0] if scan.mask.shape[0] == 1 else scan.mask
    own = scan.target if scan.target_source == "reconstruction_esc" else None
    known = {} if scan.acquisition == "unknown" else {"acquisition": scan.acquisition}
    write_scan(
        out,
        scan.kspace[:, 0] if single else scan.kspace,
        target=scan.target if own is None else None,
        emulated=emulated if own is None else own,
        mask=mask if scan.prospective else None,
        header=_header(scan),
        attrs=known,
    )


def _header(scan: Scan) -> Header | None:
    """Geometry as fastMRI's header has it, None where array sizes say the same."""
    height, width = scan.kspace.shape[-2:]
    header = scan.header
    if header is None and scan.geometry is None and scan.crop == (height, width):
        return None
    present = np.flatnonzero(~scan.absent)
    fov = header.fov_mm if header is not None else None
    if fov is None and scan.geometry is not None:
        spacing, thickness = scan.geometry.spacing_mm, scan.geometry.thickness_mm
        fov = (spacing[0] * scan.crop[0], spacing[1] * scan.crop[1], thickness)
    encoded = header.encoded if header is not None and header.encoded is not None else (height, width, 1)
    recon = header.recon if header is not None and header.recon is not None else (*scan.crop, 1)
    padding = (int(present[0]), int(present[-1]) + 1)
    known = header or Header()
    return dataclasses.replace(known, encoded=(encoded[0], width, encoded[2]), recon=recon, fov_mm=fov, padding=padding)


def _lost(scan: Scan, kind: str) -> list[str]:
    """What the scan knows and a file of that kind does not hold."""
    parts: list[tuple[str, bool]] = [("coil maps", scan.maps is not None)]
    if kind != "ISMRMRD HDF5":
        parts.append(("noise covariance", scan.noise_cov is not None))
        parts.append(("position and orientation of the slices", scan.geometry is not None))
    if kind != "fastMRI HDF5":
        parts.append(("reference image", scan.target is not None))
        parts.append(("name of the acquisition", scan.acquisition != "unknown"))
    if kind == "BART cfl":
        parts.append(("matrix, field of view and padding of the header", scan.header is not None))
        parts.append(("image size, smaller than k-space", scan.crop != scan.kspace.shape[-2:]))
    return [words for words, held in parts if held]
