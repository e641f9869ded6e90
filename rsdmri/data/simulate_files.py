"""Folders of simulated scans: fastMRI-shaped files and a manifest, fully sampled or undersampled as some protocol."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsdmri.data.anatomy import LEAST_MARGIN
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.magnitudes import read_magnitudes
from rsdmri.data.manifest import ManifestEntry, file_sha256, write_manifest
from rsdmri.data.scan import Header
from rsdmri.data.simulate import CONTRASTS, check_settings, phase_columns, simulate_scan
from rsdmri.errors import InputError
from rsdmri.files import output_directory
from rsdmri.physics import masks
from rsdmri.runtime import numpy_generator

SAMPLINGS = ("lines", "points")

POINTS_CENTRE = 0.1  # of each axis, fully sampled
_VERSION = 2  # raise when the same settings give other scans: older files are then made again
_ACQUISITIONS = {"T1w": "AXT1", "T2w": "AXT2", "PDw": "AXPD", "FLAIR": "AXFLAIR", "volume": "AX"}


@dataclass(frozen=True)
class _Subject:
    """Who is scanned: a number, the volume if any, and what the manifest says."""

    number: int
    volume: Path | None
    name: str
    split: str
    licence: str


def write_simulated(
    out: str | os.PathLike[str],
    *,
    scans: int = 10,
    slices: int = 8,
    size: int = 128,
    coils: int = 8,
    noise: float = 0.01,
    contrast: str = "mixed",
    seed: int = 0,
    echo: str = "spin",
    volumes: Sequence[Path] = (),
    accelerations: Sequence[float] = (),
    sampling: str = "lines",
    phase_fov: float = 1.0,
    margin: float = LEAST_MARGIN,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``scans`` scans as ``simNNNNN.h5`` with a ``manifest.tsv`` to the folder ``out``; return the manifest.

    Splits are by subject, about 80/10/10, with at least one subject in each from three subjects on. Files that an
    earlier call with the same settings finished are kept, so an interrupted call goes on where it stopped; others are
    replaced. The manifest is written last. ``progress(done, scans)`` is called after every scan.

    Args:
        volumes: NIfTI volumes whose anatomy is scanned, in turn and each time anew; one ``sub-...`` in a name is one
            subject, as in BIDS. None: every scan is another packaged head.
        accelerations: each scan is undersampled by one of them, equally often, with a random mask of its own; what was
            not acquired is not in the file. None: fully sampled.
        sampling: ``lines`` along the readout, or ``points`` of two phase encodings, a Poisson disc denser inside.

    Other arguments: see `simulate_scan`.

    Raises:
        InputError: a setting out of range, a volume that cannot be read, a folder that cannot be written.
    """
    if not 1 <= scans <= 99_999:
        raise InputError(f"--scans {scans}: must be between 1 and 99999")
    settings = {"slices": slices, "size": size, "coils": coils, "noise": noise, "contrast": contrast}
    settings |= {"echo": echo, "phase_fov": phase_fov, "margin": margin}
    check_settings(**settings)  # type: ignore[arg-type]
    for name, value, usual in (("contrast", contrast, "mixed"), ("margin", margin, LEAST_MARGIN)):
        if volumes and value != usual:
            raise InputError(f"--{name} {value}: is of packaged heads, volumes have their own; leave it out")
    if sampling not in SAMPLINGS:
        raise InputError(f"--sampling {sampling}: must be one of {', '.join(SAMPLINGS)}")
    if sampling != "lines" and not accelerations:
        raise InputError(f"--sampling {sampling}: fully sampled scans have no mask; give --acceleration, too")
    shape = size, phase_columns(size, phase_fov)
    laws = [_law(sampling, shape, acceleration) for acceleration in accelerations]
    folder = output_directory(out)
    entries = []
    for subject in _subjects(scans, seed, volumes):
        path = folder / f"sim{subject.number:05d}.h5"
        made = _made(path, subject, settings | {"seed": seed}, _chosen(laws, seed, subject.number))
        entries.append(_entry(path, subject, made, coils, shape))
        if progress is not None:
            progress(subject.number + 1, scans)
    write_manifest(folder / "manifest.tsv", entries)
    return folder / "manifest.tsv"


def _entry(path: Path, subject: _Subject, contrast: str, coils: int, shape: tuple[int, int]) -> ManifestEntry:
    return ManifestEntry(
        path=path,
        sha256=file_sha256(path),
        split=subject.split,
        subject=subject.name,
        anatomy="head",
        contrast=contrast,
        coils=str(coils),
        matrix=f"{shape[0]}x{shape[1]}",
        licence=subject.licence,
    )


def find_volumes(folder: Path) -> list[Path]:
    """NIfTI files below ``folder``, sorted.

    Raises:
        InputError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"--volumes {folder}: no such folder; give one with NIfTI volumes")
    found = sorted(path for path in folder.rglob("*") if path.name.endswith((".nii", ".nii.gz")) and path.is_file())
    if not found:
        raise InputError(f"--volumes {folder}: no .nii or .nii.gz in it; give a folder with NIfTI volumes")
    return found


def _subjects(scans: int, seed: int, volumes: Sequence[Path]) -> list[_Subject]:
    if not volumes:
        licence = "ICBM152 (McConnell Brain Imaging Centre, MNI; free use with notice)"
        return [_Subject(i, None, f"sim-{seed}-{i:05d}", _split(i, scans), licence) for i in range(scans)]
    people = list(dict.fromkeys(_person(path) for path in volumes))
    found = []
    for number in range(scans):
        path = volumes[number % len(volumes)]
        split = _split(people.index(_person(path)), len(people))
        name = "volume-" + hashlib.sha256(_person(path).encode()).hexdigest()[:12]
        found.append(_Subject(number, path, name, split, "that of the volumes"))
    return found


def _person(path: Path) -> str:
    """What tells the subject of a volume: its folder and the ``sub-...`` of its name, else the whole name."""
    match = re.match(r"sub-[A-Za-z0-9]+", path.name)
    return str(path.with_name(match[0] if match else path.name))


def _law(sampling: str, shape: tuple[int, int], acceleration: float) -> masks.SamplingLaw:
    """The masks of one acceleration; ``InputError`` where there are none."""
    if sampling == "lines":
        return masks.SamplingLaw("random", (1, shape[1]), acceleration, masks.center_fraction(shape[1], acceleration))
    return masks.SamplingLaw("poisson", shape, acceleration, POINTS_CENTRE)


def _chosen(laws: Sequence[masks.SamplingLaw], seed: int, number: int) -> masks.SamplingLaw | None:
    """That of scan ``number``: every run of as many scans holds each once; None for fully sampled ones."""
    if not laws:
        return None
    block, place = divmod(number, len(laws))
    shuffled = numpy_generator("simulate", seed, "accelerations", block).permutation(len(laws))
    law = laws[shuffled[place]]
    return None if law.acceleration == 1 else law


def _made(path: Path, subject: _Subject, settings: Mapping[str, object], law: masks.SamplingLaw | None) -> str:
    """Simulate and write one scan, unless that was done; return its contrast."""
    more: dict[str, object] = {}
    if law is not None:
        more |= {"acceleration": law.acceleration} | ({} if law.lines else {"sampling": "points"})
    if subject.volume is not None:
        more["volume"] = file_sha256(subject.volume)
    stamp = json.dumps({**settings, "subject": subject.number, "version": _VERSION, **more}, sort_keys=True)
    made = _finished_contrast(path, stamp)
    if made is not None:
        return made
    volume = None if subject.volume is None else read_magnitudes(subject.volume)
    scan = simulate_scan(subject.number, volume=volume, **settings)  # type: ignore[arg-type]
    (height, width), kspace = scan.image.shape[-2:], scan.kspace
    attrs: dict[str, object] = {
        "acquisition": _ACQUISITIONS[scan.contrast],
        "patient_id": hashlib.sha256(f"rsdmri-simulated {stamp}".encode()).hexdigest(),
        "rsdmri_simulated": stamp,
        "rsdmri_contrast": scan.contrast,
    }
    mask, target = None, None
    if law is None:
        target = scan.target
        attrs |= {"max": float(target.max()), "norm": float(np.linalg.norm(target))}
    else:  # no image of what was not acquired
        drawn = law.draw("simulate", settings["seed"], subject.number, "mask").acquired.numpy()
        mask = drawn[0] if law.lines else drawn
        kspace = np.where(mask, kspace, 0)
    matrix, fov = (height, width, 1), (scan.fov_mm, scan.fov_mm * width / height, 5.0)
    header = Header(matrix, matrix, fov, (0, width))
    write_scan(path, kspace, target=target, mask=mask, header=header, attrs=attrs)
    return scan.contrast


def _finished_contrast(path: Path, stamp: str) -> str | None:
    """Contrast of a file that was made with the same settings, None if there is no such file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            contrast = file.attrs["rsdmri_contrast"] if file.attrs["rsdmri_simulated"] == stamp else None
    except (OSError, KeyError, RuntimeError):
        return None
    return str(contrast) if contrast in (*CONTRASTS, "volume") else None


def _split(subject: int, subjects: int) -> str:
    """Of every ten subjects the ninth is for validation and the tenth for tests; of three to nine the last two."""
    place = subject % 10 if subjects >= 10 else subject + 10 - subjects if subjects >= 3 else 0
    return {8: "val", 9: "test"}.get(place, "train")
