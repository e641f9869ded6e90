"""Reconstruction of files into a folder of results and pictures."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri.data.fastmri import write_reconstruction
from rsdmri.data.hdf5 import shown
from rsdmri.errors import InputError
from rsdmri.files import atomic_path, output_directory, safe_stem
from rsdmri.priors import Prior
from rsdmri.privacy import personal_kinds
from rsdmri.progress import progress
from rsdmri.runtime import select_device
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
    trust: bool = False,
    png: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Reconstruct files into the folder ``out``: ``STEM.h5`` in fastMRI's submission form and ``STEM.png``.

    Each row of the result holds ``scan`` and, when it worked, ``path``, ``method``, ``acceleration``,
    ``seconds_per_slice``, ``scores`` (None where there are none) and ``scored``; when it did not, ``error``, one line.
    Nothing is left of a scan that failed. Arguments are those of `reconstruct`.

    Raises:
        InputError: arguments that no file could be reconstructed with; the file's own error if there is only one.
    """
    sources = [Path(path) for path in paths]
    check_arguments(method, samples)
    targets = _output_files(sources, Path(out))
    network = chosen_prior(prior, device) if method in LEARNT else None
    select_device(device)
    existed = Path(out).is_dir()
    folder = output_directory(out)
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {
        "method": method,
        "acceleration": acceleration,
        "samples": samples,
        "seed": seed,
        "device": device,
    }
    options |= {"maps": maps, "calibration": calibration, "trust": trust}
    for path, target in zip(sources, targets, strict=True):
        try:
            rows.append(_one_file(path, target, network, options, png, say))
        except InputError as error:
            text = str(error) if os.fspath(path) in str(error) else f"{shown(path)}: {error}"
            if len(sources) == 1:
                _remove_if_empty(folder, existed)
                raise InputError(text) from None
            rows.append({"scan": target.stem, "error": text})
    if all("error" in row for row in rows):
        _remove_if_empty(folder, existed)
    return rows


def _one_file(
    path: Path, target: Path, prior: Prior | None, options: dict[str, Any], png: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    scan = load_scan(path, options["trust"])
    with progress(f"Reconstructing {scan.name}", total=len(scan.kspace)) as bar:
        result = reconstruct(scan, prior=prior, advance=bar.advance, **options)
    picture = _picture(result) if png else None
    try:
        write_reconstruction(target, result.volume, std=result.std, attrs=result.attrs)
        if picture is not None:
            with atomic_path(target.with_suffix(".png")) as temporary:
                temporary.write_bytes(picture)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); choose another --out") from None
    kinds = personal_kinds(path.stem)
    if kinds:
        say(f"{scan.name}: a pseudonym, as the name of the file seems to hold {' and '.join(kinds)}")
    for line in _summary(result):
        say(line)
    row = {name: result.attrs[name] for name in ("method", "acceleration", "seconds_per_slice")}
    return {"scan": scan.name, "path": target, **row, "scores": result.scores, "scored": result.scored}


def _output_files(paths: Sequence[Path], out: Path) -> list[Path]:
    """Where each scan's result goes; `InputError` where two would share one, or a scan would be overwritten."""
    if not paths:
        raise InputError("no scan given; name one or more .h5 files")
    targets: dict[Path, Path] = {}
    for path in paths:
        target = out / f"{safe_stem(path)}.h5"
        if target in targets:
            raise InputError(
                f"{shown(targets[target])} and {shown(path)} would both be written to {target.name}; rename one, or "
                "reconstruct them into different --out folders"
            )
        targets[target] = path
        if any(target.exists() and source.exists() and target.samefile(source) for source in paths):
            raise InputError(f"--out {out}: {target.name} there is the scan itself; choose another folder")
    return list(targets)


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
    from rsdmri.report.figures import image_grid, reconstruction_figure
    from rsdmri.report.png import png_bytes

    index = len(result.volume) // 2
    if not result.volume[index].any():
        index = int(np.argmax(np.square(result.volume, dtype=np.float64).sum((1, 2))))
    heading = f"{result.name}, slice {index + 1} of {len(result.volume)}, R {result.attrs['acceleration']:.2f}"
    method, image = str(result.attrs["method"]), result.volume[index]
    if result.target is None and result.std is None:
        return png_bytes(image_grid(image, [method], heading=heading, width=5))
    target = None if result.target is None else result.target[index]
    std = None if result.std is None else result.std[index]
    return png_bytes(reconstruction_figure(target, {method: image}, std, heading=heading))


def _remove_if_empty(folder: Path, existed: bool) -> None:
    if not existed:
        with suppress(OSError):
            folder.rmdir()
