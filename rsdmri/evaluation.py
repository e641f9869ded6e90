"""Scoring reconstructions against targets by fastMRI's convention, file by file or folder by folder."""

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.volumes import read_volume
from rsdmri.errors import InputError
from rsdmri.files import safe_stem, write_text
from rsdmri.metrics.image import CONVENTION, evaluate_volume

METRICS = ("nmse", "nrmse", "psnr", "ssim")

# A single-coil fastMRI file holds both targets; its challenge is scored against the emulated single coil.
TARGET_NAMES = ("reconstruction_esc", "reconstruction_rss", "reconstruction")
RECONSTRUCTION_NAMES = ("reconstruction",)


def evaluate(
    reconstruction: str | os.PathLike[str], target: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Score ``reconstruction`` against ``target``; write the result to ``out`` (JSON) if given.

    Each may be a file or a folder of ``.h5`` files, matched by file name (by its pseudonym where it tells of a person,
    see `rsdmri.privacy`). The result holds ``volumes`` (per file:
    nmse, nrmse, psnr in dB, ssim, slices, target), their ``mean`` and ``two_std`` (twice the sample standard
    deviation; ``None`` for one volume), ``count``, ``targets_without_reconstruction``, ``convention``, ``versions``.
    `InputError` when a reconstruction has no target, or a pair cannot be scored.
    """
    pairs, missing = _pairs(Path(reconstruction), Path(target))
    volumes = {name: evaluate_files(*pair) for name, pair in sorted(pairs.items())}
    result = {
        "volumes": volumes,
        "mean": {m: statistics.fmean(v[m] for v in volumes.values()) for m in METRICS},
        "two_std": {m: _two_std([v[m] for v in volumes.values()]) for m in METRICS},
        "count": {"volumes": len(volumes), "slices": sum(v["slices"] for v in volumes.values())},
        "targets_without_reconstruction": missing,
        "convention": dict(CONVENTION),
        "versions": _versions(),
        "note": RESEARCH_ONLY,
    }
    if out is not None:
        write_metrics(out, result)
    return result


def evaluate_files(reconstruction: str | os.PathLike[str], target: str | os.PathLike[str]) -> dict[str, Any]:
    """Score one reconstruction file against one target file: its metrics, ``slices`` and the ``target`` data set."""
    t, name = read_volume(target, TARGET_NAMES)
    r, _ = read_volume(reconstruction, RECONSTRUCTION_NAMES)
    try:
        metrics = evaluate_volume(t, r)
    except InputError as error:
        raise InputError(f"{reconstruction} against {target}: {error}") from None
    return {**metrics, "slices": len(t), "target": name}


def write_metrics(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write ``result`` as strict JSON, atomically; an infinite PSNR (equal volumes) becomes ``null``."""
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); choose another") from None


def format_table(result: Mapping[str, Any]) -> str:
    """Table to print: one line per volume, their mean +/- 2 std where there are several, the convention below."""
    header = ["volume", *(m.upper() + (" dB" if m == "psnr" else "") for m in METRICS), "slices"]
    rows = [[name, *(f"{v[m]:.4g}" for m in METRICS), str(v["slices"])] for name, v in result["volumes"].items()]
    if len(rows) > 1:
        mean, spread = result["mean"], result["two_std"]
        cells = [f"{mean[m]:.4g}" + ("" if spread[m] is None else f" +/- {spread[m]:.2g}") for m in METRICS]
        rows.append(["mean +/- 2 std", *cells, str(result["count"]["slices"])])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)]
    if result["targets_without_reconstruction"]:
        lines.append(f"{len(result['targets_without_reconstruction'])} targets have no reconstruction and do not count")
    lines.append("fastMRI convention: crop to target width, data range = volume maximum, SSIM 7x7 mean over slices")
    return "\n".join(lines)


def _pairs(reconstruction: Path, target: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    for path in (reconstruction, target):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if not reconstruction.is_dir():
        name = _told_name(reconstruction)
        partner = _by_name(target).get(name) if target.is_dir() else target
        if partner is None or not partner.is_file():
            raise InputError(f"{target}: holds no {reconstruction.name}; targets are matched by file name")
        return {name: (reconstruction, partner)}, []
    targets = _by_name(target)
    found = _by_name(reconstruction)
    if not target.is_dir():
        found = {name: p for name, p in found.items() if name in targets}
    if not found:
        wanted = "no .h5 file" if target.is_dir() else f"no {_told_name(target)}"
        raise InputError(f"{reconstruction}: holds {wanted} to score; give a folder of reconstructions")
    orphans = sorted(found.keys() - targets.keys())
    if orphans:
        raise InputError(
            f"{target}: no target for {len(orphans)} reconstructions ({', '.join(orphans[:3])}"
            f"{', ...' if len(orphans) > 3 else ''}); they are matched by file name"
        )
    return {n: (p, targets[n]) for n, p in found.items()}, sorted(targets.keys() - found.keys())


def _by_name(path: Path) -> dict[str, Path]:
    """Files of a folder, or the one file, by the names that `reconstruct` gives to results."""
    named: dict[str, Path] = {}
    for file in sorted(path.glob("*.h5")) if path.is_dir() else [path]:
        first = named.setdefault(_told_name(file), file)
        if first != file:
            raise InputError(f"{path}: {first.name} and {file.name} have results of one name; rename one")
    return named


def _told_name(path: Path) -> str:
    return f"{safe_stem(path)}{path.suffix}"


def _two_std(values: list[float]) -> float | None:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return 2 * statistics.stdev(values)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "scikit-image", "h5py")}
    return {"rsdmri": __version__, **packages, "python": platform.python_version()}
