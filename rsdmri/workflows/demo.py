"""The demo: every room of the package in one run, from simulated scans to a report."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.config import Config, load_config
from rsdmri.data.fastmri import read_scan
from rsdmri.data.manifest import read_manifest
from rsdmri.files import write_text
from rsdmri.metrics.distribution import bootstrap, frechet_distance, image_features, kernel_distance
from rsdmri.metrics.features import describe_features
from rsdmri.metrics.magnitude_features import MagnitudeFeatures
from rsdmri.priors import Prior, load_prior
from rsdmri.progress import progress
from rsdmri.report.demo_report import DemoResults, ReconstructedScan, write_demo_report
from rsdmri.runtime import numpy_generator, prepare_process, seed_of
from rsdmri.workflows.plan import mask_law
from rsdmri.workflows.reconstruct import reconstruct, reference_images
from rsdmri.workflows.result import Reconstruction
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.sample import timed_samples
from rsdmri.workflows.train import simulate_into, train

METHODS = ("zero-filled", "sense", "l1-wavelet", "ambient-one-step", "rsd")

# What differs from the defaults; recipes/demo.toml is the same as a file.
SETTINGS: dict[str, Any] = {
    "simulate": {"scans": 72, "slices": 6, "size": 48, "coils": 8, "contrast": "T2w"},
    "acquisition": {"acceleration": 4.0},
    "network": {"channels": [16, 48, 96]},
    "teacher": {"batch": 16, "learning_rate": 1.5e-3, "ema_images": 8000.0, "share": 0.5},
    "prior": {
        "batch": 8,
        "alpha": 1.0,
        "t_max": 0.5,
        "learning_rate": 1e-4,
        "fake_learning_rate": 3e-4,
        "ema_images": 3000.0,
    },
    "posterior": {"noise": 0.0, "phase": 0.0, "learning_rate": 4e-4, "ema_images": 2000.0},
}


@dataclass(frozen=True)
class Pace:
    """How much the demo does.

    Attributes:
        training: seconds for all stages.
        images: samples of each sampler that the distances rest on, at most.
        teacher_seconds: time that the teacher's samples may take.
        reference: clean scans, of other subjects, that samples are compared with.
    """

    training: float
    images: int
    teacher_seconds: float
    reference: int


FULL = Pace(training=690.0, images=256, teacher_seconds=60.0, reference=40)
QUICK = Pace(training=130.0, images=64, teacher_seconds=12.0, reference=12)


def demo_config(quick: bool = False, seed: int = 0) -> Config:
    """Configuration of the demo."""
    config = load_config().model_validate({**SETTINGS, "seed": seed})
    if not quick:
        return config
    return config.model_copy(
        update={
            "simulate": config.simulate.model_copy(update={"scans": 30, "slices": 4, "size": 32}),
            "network": config.network.model_copy(update={"channels": (16, 32, 64)}),
            "teacher": config.teacher.model_copy(update={"warmup": 30, "share": 0.4}),
        }
    )


def demo(
    out: Path | None = None,
    *,
    quick: bool = False,
    device: str = "auto",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Simulate, train, distil, sample, reconstruct held-out scans and write ``report.html``; return its path.

    Run again, it goes on where it stopped.

    Args:
        out: run folder; ``runs/demo`` or ``runs/demo-quick`` if not given.
        quick: a shorter run with worse pictures.
        device: ``auto``, or a torch device.
        seed: of everything random.
        say: where lines for the user go.
    """
    started = time.monotonic()
    prepare_process()
    pace = QUICK if quick else FULL
    name = ("demo-quick" if quick else "demo") + (f"-seed{seed}" if seed else "")
    folder = Path("runs") / name if out is None else out
    config = demo_config(quick, seed)
    if quick:
        say("quick demo: little training at 32 x 32, so the pictures are worse than the full demo's")
    train(config, folder, budget=pace.training, device=device, say=say)
    prior = load_prior(folder / "prior", device)
    samples = compare_samples(prior, config, folder, pace)
    for line in samples["lines"]:
        say(line)
    scans = held_out_scans(config, folder)
    reconstructed = reconstruct_held_out(prior, config, scans[: 2 if quick else 6])
    results = DemoResults(
        config=config,
        quick=quick,
        metrics=read_metrics(folder),
        prior_meta=prior.meta,
        samples=samples,
        scans=reconstructed,
        seconds=time.monotonic() - started,
        command="rsdmri demo" + (" --quick" if quick else "") + (f" --seed {seed}" if seed else ""),
    )
    report = folder / "report.html"
    write_demo_report(report, results)
    write_text(folder / "report.json", json.dumps(_figures(results), indent=1) + "\n")
    say(f"written: {report} after {time.monotonic() - started:.0f} s. {RESEARCH_ONLY}")
    return report


def held_out_scans(config: Config, folder: Path) -> list[Path]:
    """Scans of the demo that training never opens: those of the test and validation splits."""
    entries = read_manifest(simulate_into(config, folder / "data"))
    test = [Path(entry.path) for entry in entries if entry.split == "test"]
    return test + [Path(entry.path) for entry in entries if entry.split == "val"]


def clean_reference(config: Config, folder: Path, scans: int) -> np.ndarray:
    """Magnitudes ``(n, y, x)`` of ``scans`` full scans of subjects that are in no split, in a prior's units."""
    settings = config.simulate
    others = settings.model_copy(update={"scans": scans, "seed": seed_of("reference", settings.seed) % 2**31})
    manifest = simulate_into(config.model_copy(update={"simulate": others}), folder / "reference")
    law = mask_law(config)
    entries = read_manifest(manifest)
    with progress("Reading reference scans", total=len(entries)) as bar:
        parts = []
        for entry in entries:
            parts.append(np.abs(reference_images(read_scan(entry.path), law)))
            bar.advance()
    return np.concatenate(parts)


def compare_samples(prior: Prior, config: Config, folder: Path, pace: Pace) -> dict[str, Any]:
    """Samples of the teacher and the one-step prior, their speeds, and their distances to clean held-out images."""
    reference = clean_reference(config, folder, pace.reference)
    _, rate = timed_samples(prior, 8, teacher=True, seed=config.seed)
    count = int(np.clip(pace.teacher_seconds * rate, 32, pace.images))
    drawn = {"teacher": timed_samples(prior, count, teacher=True, seed=config.seed)}
    drawn["prior"] = timed_samples(prior, count, seed=config.seed)
    target = image_features(reference)
    rows: list[dict[str, Any]] = []
    lines = []
    for name, (images, speed) in drawn.items():
        features = image_features(np.abs(images))
        distance = frechet_distance(features, target)
        low, high = bootstrap(
            frechet_distance, features, target, generator=numpy_generator(config.seed, "bootstrap"), repeats=50
        )
        rows.append(
            {
                "sampler": "teacher, 18 Heun steps" if name == "teacher" else "one-step prior",
                "evaluations": 35 if name == "teacher" else 1,
                "Frechet distance": distance,
                "95 % low": low,
                "95 % high": high,
                "kernel distance": kernel_distance(features, target),
                "images/s": speed,
            }
        )
        lines.append(f"{rows[-1]['sampler']}: Frechet distance {distance:.1f}, {speed:.1f} images/s")
    half = np.arange(len(reference)) % 2 == 0
    floor = frechet_distance(target[half], target[~half])
    return {
        "rows": rows,
        "lines": lines,
        "features": describe_features(MagnitudeFeatures(), features, target),
        "floor": floor,
        "reference": reference,
        "teacher": drawn["teacher"][0],
        "prior": drawn["prior"][0],
        "distance_ratio": rows[1]["Frechet distance"] / rows[0]["Frechet distance"],
        "speed_ratio": rows[1]["images/s"] / rows[0]["images/s"],
    }


def reconstruct_held_out(prior: Prior, config: Config, scans: list[Path]) -> list[ReconstructedScan]:
    """Reconstruct each held-out scan at the demo's acceleration by every method."""
    found = []
    with progress("Reconstructing", total=len(scans) * len(METHODS)) as bar:
        for path in scans:
            scan = read_scan(path)
            results: dict[str, Reconstruction] = {}
            for method in METHODS:
                results[method] = reconstruct(
                    scan,
                    method=method,
                    prior=prior,
                    acceleration=config.acquisition.acceleration,
                    samples=8,
                    seed=config.seed,
                    device=str(prior.device),
                )
                bar.advance(method=method)
            first, drawn = next(iter(results.values())), results["rsd"]
            found.append(
                ReconstructedScan(
                    name=scan.name,
                    kspace=scan.kspace[scan.kspace.shape[0] // 2],
                    mask=np.asarray(first.mask),
                    target=np.asarray(scan.target),
                    volumes={method: result.volume for method, result in results.items()},
                    std=drawn.std,
                    scores={method: dict(result.scores or {}) for method, result in results.items()},
                    seconds={method: float(result.attrs["seconds_per_slice"]) for method, result in results.items()},
                    coverage=drawn.coverage,
                )
            )
    return found


def _figures(results: DemoResults) -> dict[str, Any]:
    samples = {k: v for k, v in results.samples.items() if isinstance(v, float | str | list)}
    return {
        "version": __version__,
        "note": RESEARCH_ONLY,
        "command": results.command,
        "seconds": round(results.seconds, 1),
        "samples": samples,
        "reconstruction": results.score_rows(),
        "coverage": [scan.coverage for scan in results.scans],
    }
