"""A reconstruction written in the forms that were asked for: all of them, or none."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.bart import write_cfl
from rsdmri.data.derived import contrast, provenance
from rsdmri.data.fastmri_write import write_reconstruction
from rsdmri.data.nifti import bids_label, bids_path, dataset_description, sidecar_of, sidecar_path, write_nifti
from rsdmri.data.stack import voxel_of
from rsdmri.errors import InputError
from rsdmri.files import atomic_path, move, write_text
from rsdmri.runtime import process_rank
from rsdmri.workflows.result import Reconstruction

FORMATS = ("h5", "nifti", "nifti-quantiles", "dicom", "parametric-map", "png", "cfl")
DEFAULT = ("h5", "png")
_QUANTILES = ("q05", "q50", "q95")
_SUFFIXES = {".h5": "h5", ".nii.gz": "nifti", ".nii": "nifti", ".dcm": "dicom", ".png": "png", ".cfl": "cfl"}


@dataclass(frozen=True)
class Destination:
    """Where the results of one scan go, and in which forms."""

    folder: Path
    stem: str
    formats: tuple[str, ...]
    file: str | None = None
    """Name that the user gave to one of the results, None in a folder of results."""

    def paths(self, method: str, spread: bool, acquisition: str, *, checked: bool = False) -> dict[str, Path]:
        """Files and DICOM folders below ``folder`` by what they hold; maps and sidecars only where there is one.

        ``spread``: there are draws; ``checked``: there is a map of what the samples do not determine.
        """
        found: dict[str, Path] = {}
        for name in self.formats:
            match name:
                case "nifti" | "nifti-quantiles":
                    found |= self._nifti(method, spread, acquisition)
                    kinds = _QUANTILES if spread and name == "nifti-quantiles" else ()
                    for kind in (*kinds, *(("undetermined",) if checked else ())):
                        found |= self._nifti_map(kind, method, acquisition)
                case "dicom":
                    named = self.file is not None and format_of(self.file) == "dicom"
                    found["dicom"] = Path(f"{self.stem}{'.dcm' if named else '_dicom'}")
                case "parametric-map":
                    found["parametric-map"] = Path(f"{self.stem}_parametric-map")
                case "cfl":
                    found |= {"cfl": Path(f"{self.stem}.cfl"), "cfl header": Path(f"{self.stem}.hdr")}
                case _:
                    found[name] = Path(f"{self.stem}.{name}")
        return found

    def _nifti(self, method: str, spread: bool, acquisition: str) -> dict[str, Path]:
        if self.file is None:
            image = bids_path(self.stem, method, _kind(spread), contrast(acquisition))
        else:
            image = Path(f"{self.stem}{self._nifti_suffix()}")
        found = {"nifti": image, "nifti sidecar": sidecar_path(image)}
        return found | (self._nifti_map("std", method, acquisition) if spread else {})

    def _nifti_map(self, kind: str, method: str, acquisition: str) -> dict[str, Path]:
        if self.file is None:
            path = bids_path(self.stem, method, kind, contrast(acquisition))
        else:
            path = Path(f"{self.stem}_{kind}{self._nifti_suffix()}")
        return {f"nifti {kind}": path, f"nifti {kind} sidecar": sidecar_path(path)}

    def _nifti_suffix(self) -> str:
        return ".nii" if self.file is not None and self.file.endswith(".nii") else ".nii.gz"


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Format that the suffix of a file name asks for, None for a folder."""
    name = Path(path).name.lower()
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix) and name != suffix), None)


def chosen_formats(given: Sequence[str] | None, out: str | os.PathLike[str]) -> tuple[str, ...]:
    """Formats of ``--format`` (names, also several joined by commas) or of the suffix of ``out``; else h5 and png.

    Raises:
        InputError: a format that does not exist, or ``out`` names a file of a format that is not among them.
    """
    named = format_of(out)
    if not given:
        return DEFAULT if named is None else (named,)
    names = [name.strip().lower() for text in given for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise InputError(f"--format {','.join(unknown)}: expected some of {', '.join(FORMATS)}")
    if named is not None and named not in names:
        raise InputError(f"--out {Path(out).name} is a {named} file, --format asks for {', '.join(names)}; drop one")
    return tuple(dict.fromkeys(names))


def destinations(stems: Sequence[str], out: Path, formats: Sequence[str] | None) -> list[Destination]:
    """Where the results of each stem go: into the folder ``out``, or to it and beside it where it names a file.

    Raises:
        InputError: a file name for several scans; see `chosen_formats`.
    """
    chosen = chosen_formats(formats, out)
    named = format_of(out)
    if named is None:
        return [Destination(out, stem, chosen) for stem in stems]
    if len(stems) > 1:
        raise InputError(f"--out {out}: one file for {len(stems)} scans; name a folder")
    suffix = next(suffix for suffix in _SUFFIXES if out.name.lower().endswith(suffix))
    return [Destination(out.parent, out.name[: -len(suffix)], chosen, out.name)]


def identity(destination: Destination) -> set[Path]:
    """Names that no other scan's results may have."""
    names = [destination.stem, *([f"sub-{bids_label(destination.stem)}"] if _bids(destination.formats) else [])]
    return {destination.folder / name for name in names}


def _bids(formats: Sequence[str]) -> bool:
    return any(name.startswith("nifti") for name in formats)


def check_free(folder: Path, paths: Sequence[Path], force: bool) -> None:
    """`InputError` where a result exists and may not be replaced, or would lie outside ``folder``."""
    for path in paths:
        target = folder / path
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{target}: a link there leads out of {folder}; remove it")
        if target.exists() and not force:
            raise InputError(f"{target} exists; --force replaces it, or choose another --out")
        if target.is_dir() and not _ours(target):
            raise InputError(f"{target} is a folder with other files in it; choose another --out")


def export(
    result: Reconstruction,
    destination: Destination,
    *,
    source: str | os.PathLike[str] | None = None,
    force: bool = False,
    picture: Callable[[Reconstruction], bytes] | None = None,
) -> dict[str, Path]:
    """Write ``result`` in every format of ``destination`` and return the paths; nothing is left where one fails.

    Args:
        result: of `rsdmri.reconstruct`.
        destination: see `destinations`.
        source: DICOM file of the same examination, see `rsdmri.data.dicom.write_dicom`.
        force: replace results that exist.
        picture: what the PNG shows; needed for that format.

    Raises:
        InputError: a result exists and ``force`` is not given, a format cannot hold this scan, or the disk refuses.
    """
    folder = destination.folder
    there = {"spread": result.std is not None, "checked": result.undetermined is not None}
    paths = destination.paths(result.attrs["method"], acquisition=result.acquisition, **there)
    check_free(folder, list(paths.values()), force)
    try:
        with _staging(folder) as staging:
            for path in paths.values():
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
            _write(result, {name: staging / path for name, path in paths.items()}, source, picture)
            for path in paths.values():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                move(staging / path, folder / path)
            description = folder / "dataset_description.json"
            if _bids(destination.formats) and destination.file is None and not description.exists():
                write_text(description, json.dumps(dataset_description(), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another --out") from None
    return {name: folder / path for name, path in paths.items()}


def complex_volume(result: Reconstruction) -> np.ndarray:
    """(slice, h, w) complex64: ``volume`` with the phase of the complex mean, in the units of the file.

    The phase is that against the low-resolution image, which the coil maps carry (see `prepare_slice`).
    """
    matrix, size = result.complex_images.shape[-2:], result.volume.shape[-2:]
    top, left = ((n - m) // 2 for n, m in zip(matrix, size, strict=True))
    phase = np.angle(result.complex_images[:, top : top + size[0], left : left + size[1]])
    return np.asarray(result.volume * np.exp(1j * phase), np.complex64)


def _write(
    result: Reconstruction,
    paths: dict[str, Path],
    source: str | os.PathLike[str] | None,
    picture: Callable[[Reconstruction], bytes] | None,
) -> None:
    voxel = voxel_of(result.header)
    placed = {"geometry": result.geometry, "voxel_mm": voxel}
    stated = {**placed, "header": result.header, "attrs": result.attrs, "source": source}
    for name, path in paths.items():
        match name:
            case "h5":
                maps = {"std": result.std, "quantiles": result.quantiles, "undetermined": result.undetermined}
                write_reconstruction(path, result.volume, **maps, attrs=result.attrs)
            case _ if name.startswith("nifti") and not name.endswith("sidecar"):
                kind = name.removeprefix("nifti").strip() or _kind(result.std is not None)
                array = _map(result, kind)
                sidecar = sidecar_of(provenance(result.attrs), result.header, _DESCRIPTIONS[kind])
                write_nifti(path, array, geometry=result.geometry, voxel_mm=voxel, sidecar=sidecar)
            case "dicom":
                from rsdmri.data.dicom import write_dicom

                write_dicom(path, result.volume, result.std, **stated)
            case "parametric-map":
                from rsdmri.data.parametric_map import write_parametric_maps

                write_parametric_maps(path, result.volume, result.std, **stated)
            case "png" if picture is not None:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(picture(result))
            case "cfl":
                _write_cfl(path, result)


def _map(result: Reconstruction, kind: str) -> np.ndarray:
    """The volume of ``result`` that a file of ``kind`` holds."""
    if kind in _QUANTILES and result.quantiles is not None:
        return np.asarray(result.quantiles[_QUANTILES.index(kind)])
    maps = {"std": result.std, "undetermined": result.undetermined}
    found = maps.get(kind)
    return result.volume if found is None else found


_DESCRIPTIONS = {
    "mean": "mean of posterior draws, magnitude",
    "magnitude": "magnitude",
    "std": "standard deviation of the magnitude over posterior draws",
    "undetermined": "share of the magnitude around each place that the acquired samples do not determine, 0 to 1",
    "q05": "lower end of the band that should hold the magnitude with 90 %",
    "q50": "median of the magnitude over posterior draws",
    "q95": "upper end of the band that should hold the magnitude with 90 %",
}


def _write_cfl(path: Path, result: Reconstruction) -> None:
    """BART's files, the note in a section of its own of the header."""
    write_cfl(path, complex_volume(result)[:, None])
    with open(path.with_suffix(".hdr"), "a", encoding="ascii") as header:
        header.write(f"# Creator\nrsdmri {__version__}. {RESEARCH_ONLY}\n")


def _kind(spread: bool) -> str:
    return "mean" if spread else "magnitude"


def _ours(folder: Path) -> bool:
    """Whether a folder holds nothing but DICOM files under the names that are given here."""
    names = {"mean", "magnitude", "std", "mean.dcm", "magnitude.dcm", "std.dcm"}
    inside = list(folder.iterdir())
    series = [file for item in inside if item.is_dir() for file in item.iterdir()]
    numbered = all(file.suffix == ".dcm" and file.stem.isdigit() and file.is_file() for file in series)
    return not folder.is_symlink() and numbered and {item.name for item in inside} <= names


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder``, removed at the end."""
    staging = folder / f".tmp-{os.getpid()}-{process_rank()}-results"  # nodes may give the same process number
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
