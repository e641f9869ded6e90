"""The report of the demo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rsdmri import RESEARCH_ONLY
from rsdmri.config import Config
from rsdmri.report.figures import image_grid, kspace_figure, loss_figure, reconstruction_figure, save_png
from rsdmri.report.html import Picture, Section, Table, write_report


@dataclass(frozen=True)
class ReconstructedScan:
    """A held-out scan by every method: volumes ``(s, h, w)`` in file units, scores and seconds per slice by method."""

    name: str
    kspace: np.ndarray
    mask: np.ndarray
    target: np.ndarray
    volumes: Mapping[str, np.ndarray]
    std: np.ndarray | None
    scores: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    coverage: float | None = None
    """Share of the object in the band of rsd."""


@dataclass(frozen=True)
class DemoResults:
    """Everything that the demo measured."""

    config: Config
    quick: bool
    metrics: Sequence[Mapping[str, Any]]
    prior_meta: Mapping[str, Any]
    samples: Mapping[str, Any]
    scans: Sequence[ReconstructedScan]
    seconds: float
    command: str

    def score_rows(self) -> list[dict[str, Any]]:
        """Mean and standard deviation over scans of each method's scores."""
        rows = []
        for method in self.scans[0].volumes:
            row: dict[str, Any] = {"method": method}
            for name in ("nmse", "psnr", "ssim"):
                values = [scan.scores[method][name] for scan in self.scans]
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                row[name.upper()] = f"{np.mean(values):.4g} ± {spread:.2g}"
            row["s/slice"] = float(np.mean([scan.seconds[method] for scan in self.scans]))
            rows.append(row)
        return rows


def write_demo_report(path: Path, results: DemoResults) -> None:
    """Write the report to ``path``, and ``reconstruction.png`` and ``samples.png`` beside it."""
    sections = [_data(results), _training(results), _sampling(results), _reconstruction(results), _limits(results)]
    warnings = [RESEARCH_ONLY]
    if results.quick:
        warnings.append("Quick demo: little training on small images. Run rsdmri demo for better pictures.")
    write_report(
        path,
        sections,
        title="rsdmri demo",
        summary=(
            "A generative prior for MRI, learnt from undersampled k-space alone: simulated multicoil scans were "
            "undersampled, a diffusion teacher learnt from what was acquired, a one-step generator was distilled from "
            "the teacher, a copy of the teacher learnt to draw images given a scan, and all were used on scans that "
            "training never opened."
        ),
        warnings=warnings,
    )
    save_png(_reconstructed(results.scans[0]), path.parent / "reconstruction.png")
    save_png(_grid("one-step prior, 1 evaluation", results.samples["prior"]), path.parent / "samples.png")


def _data(results: DemoResults) -> Section:
    settings, scan = results.config.simulate, results.scans[0]
    acceleration = results.config.acquisition.acceleration
    return Section(
        "Scans",
        text=(
            f"{settings.scans} simulated heads, {settings.slices} slices each, {settings.size} x {settings.size}, "
            f"{settings.coils} coils. Every training slice keeps one random mask of nominal acceleration "
            f"{acceleration:g}; nothing else of it is ever read. Subjects of the reference and of the reconstructions "
            "are not in the training set."
        ),
        pictures=[Picture(kspace_figure(scan.kspace, scan.mask), "K-space of a held-out slice with what was skipped.")],
    )


def _training(results: DemoResults) -> Section:
    meta = results.prior_meta
    steps = max((row["step"] for row in results.metrics if row.get("stage") == "posterior"), default=0)
    posterior = f" Posterior network: {steps} steps." if steps else ""
    return Section(
        "Training",
        text=f"Teacher: {meta.get('teacher_training', '')}. One-step prior: {meta.get('training', '')}.{posterior}",
        pictures=[Picture(loss_figure(results.metrics), "Losses over optimiser steps.")],
    )


def _sampling(results: DemoResults) -> Section:
    samples = results.samples
    rows = {"clean, held out": samples["reference"][:: max(1, len(samples["reference"]) // 16)]}
    rows |= {"teacher, 35 evaluations": samples["teacher"], "one-step prior, 1 evaluation": samples["prior"]}
    pictures = [
        Picture(_grid(name, images), f"{name}: evenly spaced or the first ones, not selected.")
        for name, images in rows.items()
    ]
    return Section(
        "Samples",
        text=(
            f"Frechet distance to clean held-out images by {samples['features']}. Two halves of the reference are "
            f"{samples['floor']:.1f} apart. One-step over teacher: distance {samples['distance_ratio']:.2f}, "
            f"speed {samples['speed_ratio']:.1f}."
        ),
        tables=[Table([_sampler_row(row) for row in samples["rows"]])],
        pictures=pictures,
    )


def _reconstruction(results: DemoResults) -> Section:
    pictures = []
    for scan in results.scans[:2]:
        pictures.append(Picture(_reconstructed(scan), f"Held-out scan {scan.name}, middle slice."))
    return Section(
        "Reconstruction",
        text=(
            f"{len(results.scans)} held-out scans at acceleration {results.config.acquisition.acceleration:g}, scored "
            "per volume against the fully sampled root-sum-of-squares image by fastMRI's convention; mean and standard "
            f"deviation over scans.{_band(results)}"
        ),
        tables=[Table(results.score_rows())],
        pictures=pictures,
    )


def _band(results: DemoResults) -> str:
    """How much the bands of rsd hold, a sentence."""
    held = [scan.coverage for scan in results.scans if scan.coverage is not None]
    return f" The 90 % bands of rsd hold {100 * np.mean(held):.0f} % of the object, uncalibrated." if held else ""


def _grid(name: str, images: np.ndarray) -> Figure:
    return image_grid(np.abs(images[:16]), columns=8, heading=name, window=1.2)


def _sampler_row(row: Mapping[str, Any]) -> dict[str, Any]:
    distance = f"{row['Frechet distance']:.0f} ({row['95 % low']:.0f} to {row['95 % high']:.0f})"
    return {
        "sampler": row["sampler"],
        "evaluations": row["evaluations"],
        "Frechet distance (95 %)": distance,
        "kernel distance": row["kernel distance"],
        "images/s": row["images/s"],
    }


def _reconstructed(scan: ReconstructedScan) -> Figure:
    middle = scan.target.shape[0] // 2
    images = {method: volume[middle] for method, volume in scan.volumes.items()}
    return reconstruction_figure(scan.target[middle], images, None if scan.std is None else scan.std[middle])


def _limits(results: DemoResults) -> Section:
    return Section(
        "What this shows and what not",
        text=(
            "The scans are simulated and small, and training lasted minutes: the pictures show that the chain works, "
            "not what it reaches. The standard deviation over draws is not calibrated; within the head it hardly shows "
            "where the image is wrong. Numbers vary with the seed and with the speed of the machine, because the time "
            "is fixed and the number of steps is not."
        ),
        key_figures={"minutes in this run": results.seconds / 60},
        command=results.command,
    )
