"""Reconstruction of files into a folder of results and pictures."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri.data.hdf5 import shown
from rsdmri.errors import InputError
from rsdmri.files import output_directory, safe_stem
from rsdmri.priors import Prior
from rsdmri.privacy import personal_kinds
from rsdmri.progress import progress
from rsdmri.runtime import select_device
from rsdmri.workflows.domain import OutOfDomain
from rsdmri.workflows.export import Destination, check_free, destinations, export, identity
from rsdmri.workflows.reconstruct import LEARNT, Reconstruction, check_arguments, chosen_prior, load_scan, reconstruct


def reconstruct_files(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str = "rsd",
    prior: Prior | str | os.PathLike[str] | None = None,
    acceleration: float | None = None,
    samples: int = 8,
    seed: int = 0,
    device: str = "auto",
    maps: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    map_sets: int = 1,
    held_out: float | None = None,
    out_of_domain: OutOfDomain = "fallback",
    reading: Mapping[str, Any] | None = None,
    formats: Sequence[str] | None = None,
    dicom_source: str | os.PathLike[str] | None = None,
    force: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Reconstruct files into the folder ``out``: ``STEM.h5`` in fastMRI's submission form and ``STEM.png``.

    Each row of the result holds ``scan`` and, when it worked, ``path`` (the first format's), ``paths``, ``method``,
    ``acceleration``, ``seconds_per_slice``, ``scores`` (None where there are none) and ``scored``; when it did not,
    ``error``, one line. Nothing is left of a scan that failed. Further arguments: see `reconstruct`.

    Args:
        paths: scans.
        out: folder, or for one scan a file whose suffix says the format: .nii.gz, .dcm, .h5, .png, .cfl.
        formats: some of `rsdmri.workflows.export.FORMATS`; None: h5 and png, or what ``out`` says.
        dicom_source: DICOM file of the same examination, for its Study and FrameOfReference UIDs.
        force, reading: whether to replace results that exist; options of `load_scan`.
        say: takes each line for the user.

    Raises:
        InputError: arguments that no file could be reconstructed with; the file's own error if it is the only one.
    """
    sources = [Path(path) for path in paths]
    check_arguments(method, samples, held_out)
    targets = _output_files(sources, Path(out), formats, (maps, calibration, dicom_source))
    network = chosen_prior(prior, device) if method in LEARNT else None
    select_device(device)
    existed, folder = targets[0].folder.is_dir(), output_directory(targets[0].folder)
    writing, rows = {"source": dicom_source, "force": force}, list[dict[str, Any]]()
    options: dict[str, Any] = {"method": method, "acceleration": acceleration, "samples": samples, "seed": seed}
    options |= {"device": device, "maps": maps, "calibration": calibration, "map_sets": map_sets, "trust": trust}
    options |= {"held_out": held_out, "out_of_domain": out_of_domain}
    for path, target in zip(sources, targets, strict=True):
        try:
            rows.append(_one_file(path, target, network, options, writing, dict(reading or {}), say))
        except InputError as error:
            text = str(error) if os.fspath(path) in str(error) else f"{shown(path)}: {error}"
            if len(sources) == 1:
                _remove_if_empty(folder, existed)
                raise InputError(text) from None
            rows.append({"scan": target.stem, "error": text})
    _remove_if_empty(folder, existed)  # it is where no file worked
    return rows


def _one_file(
    path: Path,
    target: Destination,
    prior: Prior | None,
    options: dict[str, Any],
    writing: dict[str, Any],
    reading: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    scan = load_scan(path, options["trust"], **reading)
    spread = options["method"] == "rsd" and options["samples"] > 1
    wanted = target.paths(options["method"], spread, scan.acquisition)
    check_free(target.folder, list(wanted.values()), writing["force"])
    with progress(f"Reconstructing {scan.name}", total=len(scan.kspace)) as bar:
        result = reconstruct(scan, prior=prior, advance=bar.advance, **options)
    paths = export(result, target, picture=_picture, **writing)
    kinds = personal_kinds(path.stem)
    if kinds:
        say(f"{scan.name}: a pseudonym, as the name of the file seems to hold {' and '.join(kinds)}")
    for line in _summary(result):
        say(line)
    row = {name: result.attrs[name] for name in ("method", "acceleration", "seconds_per_slice")}
    row |= {"scan": scan.name, "path": next(iter(paths.values())), "paths": paths}
    return {**row, "scores": result.scores, "scored": result.scored}


def _output_files(
    paths: Sequence[Path], out: Path, formats: Sequence[str] | None, others: Sequence[str | os.PathLike[str] | None]
) -> list[Destination]:
    """Where each scan's results go; `InputError` where two would share a name, or an input would be overwritten."""
    if not paths:
        raise InputError("no scan given; name one or more .h5 files")
    targets = destinations([safe_stem(path) for path in paths], out, formats)
    inputs = [source for source in (*paths, *(Path(other) for other in others if other is not None)) if source.exists()]
    taken: dict[Path, Path] = {}
    for path, target in zip(paths, targets, strict=True):
        for name in sorted(identity(target)):
            if name in taken:
                raise InputError(
                    f"{shown(taken[name])} and {shown(path)} would both be written to {name.name}; rename one, or "
                    "reconstruct them into different --out folders"
                )
            taken[name] = path
        for result in target.paths("method", True, "unknown").values():
            place = target.folder / result
            if any(place.exists() and place.samefile(source) for source in inputs):
                raise InputError(f"--out {out}: {result.name} there is the scan itself; choose another folder")
    return targets


def _summary(result: Reconstruction) -> list[str]:
    """Lines for the user."""
    attrs, (slices, height, width) = result.attrs, result.volume.shape
    rate = f"R {attrs['acceleration']:.2f}"
    rate += f" (nominal {attrs['acceleration_nominal']:g})" if "acceleration_nominal" in attrs else ""
    scores = result.scores or {}
    figures = "  ".join(f"{name.upper()} {scores[name]:.4g}" for name in ("nmse", "psnr", "ssim") if name in scores)
    return [
        f"{result.name}: {attrs['method']}, {slices} slices of {height} x {width}, {rate}, "
        f"{attrs['acs_lines']} ACS lines, {attrs['seconds_per_slice']:.2g} s per slice",
        f"{result.name}: {figures}{', ' if figures else ''}{result.scored}",
        *(f"{result.name}: warning: {warning}" for warning in result.warnings),
    ]


def _picture(result: Reconstruction) -> bytes:
    """PNG of the middle slice (the brightest one where that is empty), with target, error and spread where known."""
    from rsdmri.report.figures import image_grid
    from rsdmri.report.png import png_bytes
    from rsdmri.report.reconstruction import reconstruction_figure

    index = len(result.volume) // 2
    if not result.volume[index].any():
        index = int(np.argmax(np.square(result.volume, dtype=np.float64).sum((1, 2))))
    attrs = result.attrs
    heading = f"slice {index + 1} of {len(result.volume)}, R {attrs['acceleration']:.2f}"
    method, image = str(attrs["method"]), result.volume[index]
    if result.target is None and result.std is None and result.alarm is None:
        return png_bytes(image_grid(image, [method], heading=heading, width=5))
    target = None if result.target is None else result.target[index]
    std = None if result.std is None else result.std[index]
    band = None if result.quantiles is None else result.quantiles[:, index]
    heading += "" if band is None else f", band: {attrs['interval_source']}"
    return png_bytes(
        reconstruction_figure(target, {method: image}, std, band=band, heading=heading, alarm=result.alarm)
    )


def _remove_if_empty(folder: Path, existed: bool) -> None:
    if not existed:
        with suppress(OSError):
            folder.rmdir()
