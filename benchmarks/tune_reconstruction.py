"""Tune every reconstruction method with one budget on some subjects, then score it on others.

    python benchmarks/tune_reconstruction.py RESULTS.jsonl --prior runs/NAME --settings 12

Each method, and BART's `pics` where installed, gets the same number of settings, its defaults and others drawn from
SPACES by ``--seed``; the one of least NRMSE times (1 - SSIM) on the validation subjects is scored on the test subjects.
Subjects are simulated heads, of another population than a training set of the same seed, scored against their
noise-free images, or with ``--noisy`` against the full data with its noise, as real scans must be; with ``--points``
each is sampled by points of a Poisson disc of its own instead of lines, as a 3-D scan is.
Every result is a line of JSON: settings, NRMSE, PSNR and SSIM (means over scans), seconds and network evaluations per
image; of the tests of `rsd` also the coverage of its 90 % bands, as drawn and widened by the factor that makes them
cover 90 % of further subjects (``--calibration``), and the rank correlation of standard deviation and error. Lines that
are there are not made again: the same command goes on where it stopped.
"""

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bands
import bart_pics
from real_scans import panel

Options = dict[str, Any]
Space = dict[str, list[Any]]

FLOORS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
LINES = ["all", "acquired"]
NETWORKS = ["teacher", "generator"]
WITHOUT = ("sense", "l1-wavelet", "tv", "bart")  # a prior
# The first is the method's name; several spaces of one method are joined.
SPACES: dict[str, tuple[str, list[Space]]] = {
    "sense": ("sense", [{"factor": [1, 3, 10, 30, 100, 300, 1000]}]),
    "l1-wavelet": ("l1-wavelet", [{"factor": [0.05, 0.1, 0.2, 0.4, 0.8, 1.6], "floor": FLOORS}]),
    "tv": ("tv", [{"factor": [0.1, 0.2, 0.3, 0.5, 0.8, 1.6], "floor": FLOORS}]),
    "bart": ("bart", [{"strength": [5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05], "wavelet": ["dau2", "haar"]}]),
    "ambient-one-step": ("ambient-one-step", [{"level": [0.02, 0.05, 0.1, 0.2, 0.4], "trust": [0.03, 0.1, 0.3]}]),
    "adps": (
        "adps",
        [
            {"guidance": ["norm"], "scale": [0.01, 0.03, 0.1, 0.3, 1.0], "lines": LINES},
            {"guidance": ["variance"], "scale": [0.3, 1.0, 3.0], "lines": LINES, "sigma_max": [3.0, 80.0]},
        ],
    ),
    "diffpir": (
        "diffpir",
        [
            {
                "sigma_max": [0.2, 0.5, 1.0, 3.0],
                "sigma_min": [0.02, 0.05, 0.1],
                "weight": [0.3, 1.0, 3.0],
                "renewal": [0.1, 0.3, 1.0],
                "start": ["noise", "l1-wavelet"],
                "lines": LINES,
            }
        ],
    ),
    "rsd-latent": (
        "rsd",
        [
            {
                "variant": ["latent"],
                "rate": [0.05, 0.1, 0.2],
                "error": [0.02, 0.05, 0.1, 0.2],
                "spread": [0.0, 0.5, 1.0],
                "trust": [0.02, 0.05, 0.1, 0.3],
                "start": ["noise", "sense", "l1-wavelet"],
            }
        ],
    ),
    "rsd-amortised": (
        "rsd",
        [
            {"variant": ["amortised"], "trust": [0.0, 0.05, 0.1, 0.2]},
            {
                "variant": ["amortised"],
                "trust": [0.0, 0.1],
                "agree": [10],
                "factor": [0.05, 0.1, 0.2],
                "floor": FLOORS[1:3],
                "warm": [None, 40],
            },
        ],
    ),
    "rsd-proximal": (
        "rsd",
        [
            {
                "variant": ["proximal"],
                "levels": [[0.1], [0.2], [0.1, 0.05], [0.2, 0.1], [0.2, 0.1, 0.05], [0.4, 0.2, 0.1, 0.05]],
                "trust": [0.02, 0.05, 0.1, 0.2],
                "jitter": [0.0, 0.5, 1.0],
                "network": NETWORKS,
                "start": ["sense", "l1-wavelet"],
            }
        ],
    ),
}


def main() -> None:
    arguments = _arguments()
    from rsdmri.priors import load_prior
    from rsdmri.progress import progress
    from rsdmri.runtime import prepare_process

    prepare_process(arguments.threads)
    prior = load_prior(arguments.prior, arguments.device)
    names = [name for name in SPACES if name in arguments.only] if arguments.only else list(SPACES)
    for name in lacking(prior, arguments):
        if name in names:
            names.remove(name)
            print(f"{name} is left out: this run has no network, or this machine no program, for it")
    book = Book(arguments.results, problem(arguments), networks(prior))
    plans = {name: candidates(name, arguments, generator=prior.generator is not None) for name in names}
    sets = {stage: list(subjects(arguments, stage)) for stage in ("validation", "test")}
    with progress("Tuning", total=sum(len(plan) + 1 for plan in plans.values())) as bar:
        for name, plan in plans.items():
            for options in plan:
                row = book.row("validation", name, options, sets["validation"], arguments, prior)
                bar.advance(method=name, nrmse=row["nrmse"])
            best = book.best(name)["options"]
            several = SPACES[name][0] == "rsd" and arguments.samples > 1
            known = trusted(best, sets["test"], arguments, prior) if several else dict
            book.row("test", name, best, sets["test"], arguments, prior, known)
            bar.advance()
    book.show(names)
    if arguments.panel is not None:
        shown = sorted((name for name in names if name != "bart"), key="rsd-amortised".__eq__)  # its std is drawn
        best = {name: book.best(name)["options"] for name in shown}
        way = arguments, prior
        panel({n: _reconstructed(SPACES[n][0], o, sets["test"][0], *way) for n, o in best.items()}, arguments.panel)


def lacking(prior: Any, arguments: argparse.Namespace) -> list[str]:
    """Methods that the run has no network, or the machine or `bart_pics` no program, for."""
    names = [] if prior.generator is not None else ["rsd-latent"]
    names += [] if shutil.which("bart") and not arguments.points else ["bart"]
    return names if prior.has_posterior else [*names, "rsd-amortised"]


def problem(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row must agree in to count."""
    names = ("subjects", "slices", "size", "coils", "noise", "contrast", "population", "acceleration", "samples")
    more = {} if arguments.echo == "spin" else {"echo": arguments.echo}
    more |= {"noisy": True} if arguments.noisy else {}
    if arguments.points:
        more |= {"points": True, "phase_fov": arguments.phase_fov, "margin": arguments.margin}
    return {name: getattr(arguments, name) for name in names} | more


def networks(prior: Any) -> dict[str, str]:
    """The same of a method that has them."""
    posterior = {"posterior": prior.posterior.digest[:12]} if prior.has_posterior else {}
    return {"prior": prior.digest[:12]} | posterior


def candidates(name: str, arguments: argparse.Namespace, *, generator: bool) -> list[Options]:
    """The defaults of a method, then others of its spaces in a random order, ``arguments.settings`` in all."""
    from rsdmri.runtime import numpy_generator

    method, spaces = SPACES[name]
    fixed: Options = {"adps": {"steps": arguments.adps_steps}, "bart": {"strength": 0.005}}.get(method, {})
    every = [fixed | options for space in spaces for options in _grid(space)]
    if not generator:
        every = [options for options in every if options.get("network") != "generator"]
    order = numpy_generator("tune", arguments.seed, name).permutation(len(every))
    variant = {"variant": name.partition("-")[2]} if method == "rsd" else {}
    return [fixed | variant, *(every[index] for index in order)][: arguments.settings]


def _grid(space: Space) -> Iterator[Options]:
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def subjects(arguments: argparse.Namespace, stage: str) -> Iterator[Any]:
    """Scans of one stage, fully sampled but with ``--points``, with their noise-free images as targets."""
    from rsdmri.data.simulate import simulate_scan

    first = {"validation": 0, "test": 1, "calibration": 2}[stage] * arguments.subjects
    for subject in range(first, first + (arguments.calibration if stage == "calibration" else arguments.subjects)):
        names = ("slices", "size", "coils", "noise", "contrast", "echo")
        settings = {name: getattr(arguments, name) for name in (*names, "phase_fov")}
        settings |= {} if arguments.margin is None else {"margin": arguments.margin}
        made = simulate_scan(subject, seed=arguments.population, **settings)
        scan = made.as_scan(f"head{subject:05d}")
        scan = replace(scan, target=made.target, target_source="the full data") if arguments.noisy else scan
        yield _by_points(scan, arguments) if arguments.points else scan


def _by_points(scan: Any, arguments: argparse.Namespace) -> Any:
    """The scan as it were if it had been undersampled by points when it was acquired."""
    import numpy as np

    from rsdmri.data.simulate_files import POINTS_CENTRE
    from rsdmri.physics.masks import SamplingLaw

    law = SamplingLaw("poisson", scan.kspace.shape[-2:], arguments.acceleration, POINTS_CENTRE)
    mask = law.draw("tune", arguments.seed, scan.name).acquired.numpy()
    return replace(scan, kspace=np.where(mask, scan.kspace, 0), mask=mask, prospective=True)


class Book:
    """Results in a file of JSON lines, of one problem."""

    def __init__(self, path: Path, of: dict[str, Any], networks: dict[str, str]) -> None:
        self.path, self.rows, self._of, self._networks = path, {}, of, networks
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for row in map(json.loads, lines):
            if row["problem"] == self._problem(row["name"]):
                self.rows[_key(row["stage"], row["name"], row["options"])] = row

    def row(
        self,
        stage: str,
        name: str,
        options: Options,
        scans: list,
        arguments: argparse.Namespace,
        prior: Any,
        more: Callable[[], dict] = dict,
    ) -> dict:
        """The result of one setting, from the file or made and added to it, with ``more``."""
        key = _key(stage, name, options)
        if key not in self.rows:
            found = score(SPACES[name][0], options, scans, arguments, prior) | more()
            row = {"stage": stage, "name": name, "options": options, **found, "problem": self._problem(name)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.rows[key] = row
        return self.rows[key]

    def _problem(self, name: str) -> dict[str, Any]:
        return self._of if name in WITHOUT else self._of | self._networks

    def tried(self, name: str) -> list[dict]:
        """Rows of the settings that were tried on the validation subjects, the defaults first."""
        return [row for (stage, who, _), row in self.rows.items() if stage == "validation" and who == name]

    def best(self, name: str) -> dict:
        """The one of these that is nearest, by NRMSE times (1 - SSIM)."""
        return min(self.tried(name), key=lambda row: row["nrmse"] * (1 - row["ssim"]))

    def show(self, names: list[str]) -> None:
        """Print the best setting of each method with its scores on the test subjects."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title="Test subjects, settings chosen on others")
        for column in ("method", "NRMSE", "PSNR", "SSIM", "s/image", "evaluations", "default's NRMSE*", "settings"):
            table.add_column(column, justify="left" if column in ("method", "settings") else "right")
        for name in names:
            tried = self.tried(name)
            row = self.rows[_key("test", name, self.best(name)["options"])]
            figures = (f"{row['nrmse']:.4f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['seconds']:.3f}")
            chosen = " ".join(f"{k}={v}" for k, v in row["options"].items() if k != "variant") or "defaults"
            table.add_row(name, *figures, str(row["evaluations"]), f"{tried[0]['nrmse']:.4f}", chosen)
        Console(width=140).print(table)
        print("* on the validation subjects, as the settings were chosen")


def trusted(options: Options, scans: list, arguments: argparse.Namespace, prior: Any) -> Callable[[], dict[str, float]]:
    """Gives coverage, as drawn and calibrated on the subjects for that, and rank correlation on the test ``scans``."""

    def measured() -> dict[str, float]:
        others, test = (
            [_reconstructed("rsd", options, scan, arguments, prior) for scan in each]
            for each in (subjects(arguments, "calibration"), scans)
        )
        drawn, factor = bands.scores(test), bands.factor(others)
        widened = None if factor is None else bands.scores(test, factor)["coverage"]
        return drawn | {"coverage_calibrated": widened, "factor": factor}

    return measured


def score(
    method: str, options: Options, scans: list, arguments: argparse.Namespace, prior: Any
) -> dict[str, float | int]:
    """Mean scores over ``scans``, seconds and evaluations per image."""
    started, scores, evaluations = time.perf_counter(), [], 0
    for scan in scans:
        if method == "bart":
            scores.append(bart_pics.scores(scan, arguments.acceleration, arguments.seed, options))
            continue
        result = _reconstructed(method, options, scan, arguments, prior)
        evaluations = result.attrs["evaluations"]
        scores.append(result.scores)
    images = sum(len(scan.kspace) for scan in scans)
    means = {name: sum(s[name] for s in scores) / len(scores) for name in ("nrmse", "psnr", "ssim")}
    seconds = (time.perf_counter() - started) / images
    return {**means, "seconds": seconds, "evaluations": evaluations, "images": images}


def _reconstructed(method: str, options: Options, scan: Any, arguments: argparse.Namespace, prior: Any) -> Any:
    from rsdmri.metrics.image import evaluate_volume
    from rsdmri.workflows.reconstruct import reconstruct

    way = {name: getattr(arguments, name) for name in ("acceleration", "samples", "seed", "device")}
    way |= {"acceleration": None} if scan.prospective else {}
    found = reconstruct(scan, method=method, prior=prior, options=options, out_of_domain="warn", **way)
    if scan.prospective:  # scans have no truth when they are acquired so, simulated ones do
        found = replace(found, target=scan.target, scores=evaluate_volume(scan.target, found.volume))
    return found


def _key(stage: str, name: str, options: Options) -> tuple[str, str, str]:
    return stage, name, json.dumps(options, sort_keys=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file of JSON lines, made or gone on with")
    parser.add_argument("--prior", type=Path, required=True, help="run or prior folder")
    parser.add_argument("--settings", type=int, default=12, help="settings tried of each method")
    parser.add_argument("--only", nargs="+", choices=list(SPACES), help="some of the methods")
    parser.add_argument("--subjects", type=int, default=8, help="of validation, and as many others of the test")
    parser.add_argument("--slices", type=int, default=4, help="of each subject")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--coils", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--contrast", default="mixed")
    parser.add_argument("--echo", default="spin")
    parser.add_argument("--points", action="store_true", help="sample by points in place of lines")
    parser.add_argument("--phase-fov", type=float, default=1.0, help="see rsdmri simulate")
    parser.add_argument("--margin", type=float, help="see rsdmri simulate")
    parser.add_argument("--noisy", action="store_true", help="score against the full data, its noise included")
    parser.add_argument("--calibration", type=int, default=40, help="subjects that bands are widened by")
    parser.add_argument("--population", type=int, default=2000, help="seed of the subjects")
    parser.add_argument("--acceleration", type=float, default=4.0)
    parser.add_argument("--samples", type=int, default=4, help="draws whose mean is the image")
    parser.add_argument("--adps-steps", type=int, default=500, help="steps of adps in every setting")
    parser.add_argument("--seed", type=int, default=0, help="of the settings tried, the masks and the draws")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--panel", type=Path, help="picture of the first test subject by every method's best settings")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
