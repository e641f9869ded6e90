"""Train the teachers and priors whose figures stand in recipes/README.md, and measure them.

    python benchmarks/experiments.py WORK --jobs 2               # all of them, two side by side, a thread each
    python benchmarks/experiments.py WORK --only noise --list    # the commands of one group

A run is a recipe with settings, of a teacher or of a prior distilled from one of these teachers; its row in RESULTS
(JSON lines) has the settings beside the figures. Rows that are there are not made again and interrupted runs go on: the
same command continues a long day. Heads of the reference are warped with another seed than those of the training set,
and have hardly any noise.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
SAMPLES = 384
REFERENCE = {"scans": 96, "slices": 4, "noise": 0.001, "seed": 1000}

BASELINES = ("edm-full", "l1-edm", "edm-zero-filled")  # are compared with, not distilled
COMPARED_RECIPE = "teacher-r4-fourier-ambient.toml"  # its own prior is the one that these settings differ from
COMPARED = (
    "prior.objective=dmd",
    "prior.objective=sds",
    "prior.alpha=0.8",
    "prior.alpha=1.2",
    "prior.sigma_init=1",
    "prior.sigma_init=5",
    "prior.fake_residual=further",
    "prior.mask_free=true",
    "prior.learning_rate=3e-5",
    "prior.t_max=0.5",
    "prior.adversarial=0.01",
)
AMBIENT_GAN_RATES = ({"": "5e-5", "discriminator_": "2e-4"}, {"": "5e-5", "discriminator_": "5e-5"})
# Where the settings of all fell short, from the same teacher. (Teacher, seed, recipe, settings.)
TRIED = (
    ("inpainting-80", 0, "inpainting-80.toml", ("prior.learning_rate=5e-5", "prior.steps=400")),
    ("fourier-ambient", 0, COMPARED_RECIPE, ("prior.t_max=0.5", "prior.mask_free=true")),
    ("fourier-ambient", 1, COMPARED_RECIPE, ("prior.t_max=0.5",)),
    ("r2", 0, COMPARED_RECIPE, ("acquisition.acceleration=2", "prior.t_max=0.5")),
    ("denoising-0.2", 0, "denoising-0.2.toml", ("prior.t_max=0.5", "prior.steps=640")),
)
CHECKPOINT = {"images": "images", "proximal": "validation", "error": "validation_error", "clean": "clean"}


@dataclass(frozen=True)
class Run:
    """One training: a recipe of this project, settings that differ from it, and a seed.

    ``of`` names the run whose teacher, of the same seed, is distilled; None trains a teacher.
    """

    group: str
    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    of: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name}-s{self.seed}"

    def options(self) -> list[str]:
        settings = [word for setting in self.settings for word in ("--set", setting)]
        return ["--recipe", f"recipes/{self.recipe}", *settings, "--seed", str(self.seed)]


def runs() -> Iterator[Run]:
    """All runs, each after what it needs."""
    yield from teachers()
    yield from priors()


def teachers() -> Iterator[Run]:
    """Teachers alone, in the order in which they are wanted."""
    yield Run("multicoil", "ambient", "teacher-r4-ambient.toml")
    yield Run("multicoil", "fourier-ambient", "teacher-r4-fourier-ambient.toml")
    for choice in ("published", "consistent"):
        settings = (f"network.preconditioning={choice}",)
        yield Run("preconditioning", f"ambient-{choice}", "teacher-r4-ambient.toml", settings)
    for name in ("edm-full", "l1-edm", "edm-zero-filled"):
        yield Run("multicoil", name, f"teacher-r4-{name}.toml")
    for noise in (0.1, 0.05):
        for name in ("ambient", "fourier-ambient"):
            settings = (f"simulate.noise={noise}", "teacher.steps=2000")
            yield Run("noise", f"{name}-noise-{noise}", f"teacher-r4-{name}.toml", settings)
    for name in ("denoising-0.2", "inpainting-60", "inpainting-80", "blur", "super-resolution-2"):
        yield Run("corruptions", name, f"{name}.toml")
    for seed in (1, 2):
        for name in ("ambient", "fourier-ambient"):
            yield Run("multicoil", name, f"teacher-r4-{name}.toml", (), seed)
    for weight in (0, 1):
        settings = (f"teacher.equivariance={weight}", "data.allow_gaps=true")
        yield Run("equivariance", f"equivariance-{weight}", "equivariance.toml", settings)
    for name in ("ambient", "edm-full"):
        settings = ("simulate.size=64", "acquisition.center_fraction=0.08", "teacher.steps=1200")
        yield Run("64x64", f"{name}-64", f"teacher-r4-{name}.toml", settings)
    yield Run("corruptions", "inpainting-60-noise-0.1", "inpainting-60-noise-0.1.toml")
    yield Run("accelerations", "r2", "teacher-r4-fourier-ambient.toml", ("acquisition.acceleration=2",))
    for acceleration in (8, 6):  # of 32 lines the calibration alone would take all
        wider = ("simulate.size=48", "acquisition.center_fraction=0.084", "teacher.steps=2000")
        settings = (f"acquisition.acceleration={acceleration}", *wider)
        yield Run("accelerations", f"r{acceleration}", "teacher-r4-fourier-ambient.toml", settings)


def priors() -> Iterator[Run]:
    """One-step priors of some of these teachers."""
    groups = ("multicoil", "corruptions", "accelerations", "64x64")
    for run in teachers():
        if run.group in groups and not run.name.startswith(BASELINES):
            yield replace(run, group=f"one-step-{run.group}", name=f"one-step-{run.name}", of=run.name)
    yield Run("comparison", "ambient-gan", "ambient-gan.toml", ("prior.steps=1000",), of="fourier-ambient")
    for rates in AMBIENT_GAN_RATES:
        settings = ("prior.steps=1000", *(f"prior.{name}learning_rate={rate}" for name, rate in rates.items()))
        title = "-".join(rates.values())
        yield Run("comparison", f"ambient-gan-{title}", "ambient-gan.toml", settings, of="fourier-ambient")
    for setting in COMPARED:
        name = "one-step-" + setting.removeprefix("prior.").replace("=", "-")
        yield Run("comparison", name, COMPARED_RECIPE, (setting,), of="fourier-ambient")
    for name, seed, recipe, settings in TRIED:
        yield Run("tried", f"one-step-{name}-tried", recipe, settings, seed, of=name)


class Work:
    """Folder of data and runs, and the file of results; several threads use one."""

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder, self.results = folder, results
        self._lock = threading.Lock()

    def done(self) -> set[tuple[str, int]]:
        if not self.results.exists():
            return set()
        rows = map(json.loads, self.results.read_text(encoding="utf-8").splitlines())
        return {(row["run"], row["seed"]) for row in rows}

    def data(self, run: Run) -> tuple[Path, Path]:
        """Folders of the training set and of clean scans of other heads; simulated where they are not yet."""
        from rsdmri.config import load_config
        from rsdmri.workflows.train import simulate_into

        config = load_config(RECIPES / run.recipe, list(run.settings))
        folders = []
        with self._lock:
            for changes in ({}, REFERENCE):
                settings = config.simulate.model_copy(update=changes)
                words = [f"{key}-{value}" for key, value in settings.model_dump().items()]
                folders.append(self.folder / "data" / "_".join(words))
                simulate_into(config.model_copy(update={"simulate": settings}), folders[-1])
        return folders[0], folders[1]

    def train(self, run: Run, teacher: Future[None] | None = None) -> None:
        """Train, measure and record one run, after its ``teacher`` if that is trained too; its log lies beside it."""
        if teacher is not None:
            teacher.result()
        data, reference = self.data(run)
        out = self.folder / "runs" / run.title
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        with (self.folder / "logs" / f"{run.title}.log").open("a", encoding="utf-8") as log:
            stage = "teacher" if run.of is None else "prior"
            report = ("--set", f"logging.reference={reference}")
            if run.of is not None and not (out / "teacher").exists():
                shutil.copytree(self.folder / "runs" / f"{run.of}-s{run.seed}" / "teacher", out / "teacher")
            _rsdmri(log, "train", "--stage", stage, *run.options(), *report, "--data", str(data), "--out", str(out))
            if not (out / stage / "config.json").is_file():
                raise KeyboardInterrupt  # a signal ended it, with its state saved
            assessed = out / "assessment"
            words = ["--reference", str(reference), "--samples", str(SAMPLES), "-o", str(assessed)]
            _rsdmri(log, "assess", str(out), *words)
            row = {"run": run.name, "settings": " ".join(run.settings), **_row(assessed / "assessment.json")}
            if run.of is not None:
                row["checkpoints"] = _checkpoints(out / "metrics.jsonl")
            if run.group == "equivariance":
                script = [sys.executable, str(ROOT / "benchmarks" / "missing_lines.py"), str(out)]
                environment = _environment()
                found = subprocess.run(script, env=environment, stdout=subprocess.PIPE, stderr=log, check=True)
                row |= {key: value for key, value in json.loads(found.stdout).items() if key.startswith("NRMSE")}
        with self._lock, self.results.open("a", encoding="utf-8") as results:
            results.write(json.dumps(row) + "\n")


def _row(assessment: Path) -> dict[str, Any]:
    """Figures of an assessment without its curves."""
    row = json.loads(assessment.read_text(encoding="utf-8"))
    row.pop("spectrum")
    return dict(row)


def _checkpoints(metrics: Path) -> list[dict[str, Any]]:
    """Of a prior: images it was trained on, proximal distance to what was measured, Frechet distance to clean images.

    Only the first of these two, with its standard error, picks the checkpoint that is kept.
    """
    rows = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    found = [row for row in rows if row.get("stage") == "prior" and "clean" in row]
    return [{name: row[key] for name, key in CHECKPOINT.items() if key in row} for row in found]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _rsdmri(log: Any, *words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "rsdmri", *words], stdout=log, stderr=log, env=_environment(), cwd=ROOT, check=True
    )


def main() -> None:
    arguments = _arguments()
    sys.path.insert(0, str(ROOT))
    work = Work(arguments.work.resolve(), arguments.results.resolve())
    chosen = [run for run in runs() if not arguments.only or run.group in arguments.only]
    if arguments.list:
        for run in chosen:
            stage = "teacher" if run.of is None else f"prior  # with the teacher of {run.of};"
            print(f"{run.group}: rsdmri train {shlex.join(run.options())} --stage {stage}")
        return
    done = work.done()
    todo = [run for run in chosen if (run.name, run.seed) not in done]
    training: dict[tuple[str, int], Future[None]] = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for run in todo:
            training[run.name, run.seed] = pool.submit(work.train, run, training.get((run.of or "", run.seed)))
        for run, future in zip(todo, training.values(), strict=True):
            try:
                future.result()
                print(f"{run.title}: done", flush=True)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                print(f"{run.title}: interrupted; the same command goes on", flush=True)
                break
            except subprocess.CalledProcessError as error:
                print(f"{run.title}: stopped with exit code {error.returncode}; see {work.folder / 'logs'}", flush=True)
    print(f"processor seconds: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.0f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for data, runs and logs")
    parser.add_argument(
        "--only", action="append", choices=sorted({run.group for run in runs()}), help="a group of runs"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--results", type=Path, default=RECIPES / "results" / "experiments.jsonl")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    return parser.parse_args()


if __name__ == "__main__":
    main()
