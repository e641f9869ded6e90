"""Evaluation of one method or several, with tables, JSON and figures."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri.data.volumes import read_volume
from rsdmri.errors import InputError
from rsdmri.evaluation import Selection, compare, evaluate, format_comparison, format_table, write_metrics
from rsdmri.evaluation.comparison import common_pairs
from rsdmri.evaluation.scoring import RECONSTRUCTION_NAMES, TARGET_NAMES
from rsdmri.files import output_directory
from rsdmri.metrics.image import common_crop


def evaluate_methods(
    reconstructions: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    acquisition: str | None = None,
    acceleration: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score one method (`rsdmri.evaluation.evaluate`) or compare several (`rsdmri.evaluation.compare`).

    Args:
        reconstructions: a file or folder for each method.
        target: file or folder.
        out: a JSON file, or a folder for ``metrics.json``, ``metrics.png`` (every metric by volume and method) and
            ``images.png`` (target, methods and errors of the volume whose error is the median).
        acquisition, acceleration: see `Selection`.
        say: takes the tables.

    Raises:
        InputError: one line on what cannot be scored and why.
    """
    selection = Selection(acquisition, acceleration)
    several = len(reconstructions) > 1
    result = (
        compare(reconstructions, target, selection=selection)
        if several
        else evaluate(reconstructions[0], target, selection=selection)
    )
    say(format_comparison(result) if several else format_table(result))
    if out is not None:
        folder = Path(out)
        if folder.suffix and not folder.is_dir():
            write_metrics(folder, result)
            return result
        output_directory(folder)
        found = common_pairs(reconstructions, target, selection)
        methods = result["methods"] if several else {next(iter(found)): result}
        _draw(folder, methods, {name: shared for name, (shared, _) in found.items()})
        write_metrics(folder / "metrics.json", result)
    return result


def _draw(folder: Path, methods: Mapping[str, Any], found: Mapping[str, Mapping[str, tuple[Path, Path]]]) -> None:
    from rsdmri.report.evaluation import methods_figure
    from rsdmri.report.figures import reconstruction_figure
    from rsdmri.report.png import save_png

    volume = median_volume(methods)
    target, images = None, {}
    for name, pairs in found.items():
        path, target_path = pairs[volume]
        full, _ = read_volume(target_path, TARGET_NAMES)
        own, _ = read_volume(path, RECONSTRUCTION_NAMES)
        cropped, image = common_crop(full, own)
        index = len(cropped) // 2
        if not cropped[index].any():
            index = int(np.argmax(np.square(cropped, dtype=np.float64).sum((1, 2))))
        target, images[name] = cropped[index], image[index]
        heading = f"{Path(volume).stem}, slice {index + 1} of {len(cropped)}, the volume of median error"
    save_png(methods_figure(methods), folder / "metrics.png")
    save_png(reconstruction_figure(target, images, heading=heading), folder / "images.png")


def median_volume(methods: Mapping[str, Any]) -> str:
    """Name of the volume whose NMSE, averaged over the methods, is the (lower) median."""
    first = next(iter(methods.values()))["volumes"]
    error = {name: statistics.fmean(each["volumes"][name]["nmse"] for each in methods.values()) for name in first}
    return sorted(error, key=lambda name: error[name])[(len(error) - 1) // 2]


def split_arguments(paths: Sequence[Path], target: Path | None) -> tuple[list[Path], Path]:
    """Reconstructions and target of a command line: ``RECON TARGET``, or ``RECON... --target TARGET``.

    Raises:
        InputError: no target, or several reconstructions without ``--target``.
    """
    if target is not None:
        return list(paths), target
    if len(paths) == 2:
        return [paths[0]], paths[1]
    missing = "no target" if len(paths) == 1 else f"{len(paths)} folders"
    raise InputError(f"{missing}: which holds the targets? give --target, or RECON TARGET")
