"""What each reconstruction method does where something is wrong with the scan, and whether it says so.

    python benchmarks/failures.py --prior runs/NAME --json failures.json

Simulated heads of subjects that no training set has, undersampled at R, with one thing wrong at a time: the noise
level told 3 times too high or too low, coil maps of a head an eighth of the field of view away, an acquired line that
the head moved in, another object (an ellipse), and a lesion, a round spot of twice the brightness, which must survive.
NRMSE is against the noise-free image of what was scanned. In brackets: share of scans with the alarm of held-out lines,
and of those found unlike the training data; the prior is used on these all the same. Lesion: its contrast against the
ring around it over the true one, 1 where it survives as it is; mean and standard deviation over scans.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np

METHODS = ("sense", "l1-wavelet", "tv", "ambient-one-step", "diffpir", "rsd")
RADIUS, RING = 0.06, 0.12  # of the lesion and of the ring around it, over the field of view
BRIGHTER = 2.0

Array = np.ndarray


def heads(arguments: argparse.Namespace) -> Iterator[tuple[Any, Array, Array]]:
    """Fully sampled scans with their noise and true coil maps, and noise-free images (slice, y, x)."""
    from rsdmri.data.simulate import simulate_scan

    for subject in range(arguments.subjects):
        settings = {name: getattr(arguments, name) for name in ("slices", "size", "coils", "noise", "contrast")}
        made = simulate_scan(subject, seed=arguments.population, **settings)
        scan = replace(made.as_scan(f"head{subject:05d}"), noise_cov=made.noise_covariance)
        yield scan, made.maps, made.image


def as_it_is(scan: Any, maps: Array, image: Array, rng: np.random.Generator) -> Any:
    """Nothing wrong."""
    return scan


def noise_told(factor: float) -> Callable[..., Any]:
    """The scan brings a noise level ``factor`` times the true one."""
    return lambda scan, maps, image, rng: replace(scan, noise_cov=scan.noise_cov * factor**2)


def wrong_maps(scan: Any, maps: Array, image: Array, rng: np.random.Generator) -> Any:
    """Coil maps as of a head an eighth of the field of view to the side."""
    shift = image.shape[-1] // 8
    return replace(scan, maps=np.ascontiguousarray(np.roll(maps, shift, axis=-1)).astype(np.complex64))


def moved_line(scan: Any, maps: Array, image: Array, rng: np.random.Generator) -> Any:
    """The head was a tenth of the field of view further along the readout in a line beside the centre."""
    size = image.shape[-2]
    ramp = np.exp(-2j * np.pi * 0.1 * (np.arange(size) - size // 2)).astype(np.complex64)
    kspace = scan.kspace.copy()
    kspace[..., image.shape[-1] // 2 + 1] *= ramp
    return replace(scan, kspace=kspace)


def another_object(scan: Any, maps: Array, image: Array, rng: np.random.Generator) -> Any:
    """An ellipse with a hole, in the same coils and of the same brightness."""
    y, x = np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in image.shape[-2:]), indexing="ij")
    shape = ((x / 0.3) ** 2 + (y / 0.2) ** 2 < 1) & ((x - 0.1) ** 2 + y**2 > 0.05**2)
    made = np.broadcast_to(shape * np.quantile(np.abs(image), 0.99), image.shape)
    return _scanned(scan, maps, made.astype(np.complex64), image)


def lesion(scan: Any, maps: Array, image: Array, rng: np.random.Generator) -> Any:
    """A round spot inside the head, twice as bright as the tissue there."""
    return _scanned(scan, maps, image * (1 + (BRIGHTER - 1) * spot(scan, image)), image)


def spot(scan: Any, image: Array) -> Array:
    """Mask (y, x) of the lesion of a scan: a random place where every slice has tissue around it."""
    return _distance(scan, image) < RADIUS


def _distance(scan: Any, image: Array) -> Array:
    """Distance (y, x) from the lesion's centre over the field of view."""
    from rsdmri.runtime import numpy_generator

    y, x = np.meshgrid(*(np.arange(n) / n - 0.5 for n in image.shape[-2:]), indexing="ij")
    tissue = (np.abs(image) > 0.2 * np.quantile(np.abs(image), 0.99)).mean(0)
    inside = np.argwhere((tissue >= 0.75) & (np.hypot(x, y) < 0.2))
    row, column = inside[numpy_generator("lesion", scan.name).integers(len(inside))]
    return np.hypot(x - x[row, column], y - y[row, column])


def _scanned(scan: Any, maps: Array, made: Array, image: Array) -> Any:
    """``scan`` with ``made`` in place of ``image``, the same noise."""
    from torch import from_numpy

    from rsdmri.physics.fourier import fft2c

    change = fft2c(from_numpy((maps * (made - image)[:, None]).astype(np.complex64))).numpy()
    return replace(scan, kspace=scan.kspace + change, target=np.abs(made).astype(np.float32))


def contrast(volume: Array, scan: Any, image: Array) -> float:
    """Mean in the lesion less that of the ring around it, over all slices."""
    away = _distance(scan, image)
    ring = (away > RADIUS * 1.3) & (away < RING)
    return float(volume[:, away < RADIUS].mean() - volume[:, ring].mean())


CASES: dict[str, Callable[..., Any]] = {
    "as it is": as_it_is,
    "noise told x3": noise_told(3),
    "noise told /3": noise_told(1 / 3),
    "wrong maps": wrong_maps,
    "a moved line": moved_line,
    "another object": another_object,
    "lesion": lesion,
}


def measured(method: str, case: str, arguments: argparse.Namespace, prior: Any) -> dict[str, Any]:
    """Figures of one method in one case."""
    from rsdmri.runtime import numpy_generator
    from rsdmri.workflows.reconstruct import reconstruct

    errors, alarms, foreign, survived = [], [], [], []
    way = {"acceleration": arguments.acceleration, "samples": arguments.samples, "seed": arguments.seed}
    for scan, maps, image in heads(arguments):
        changed = CASES[case](scan, maps, image, numpy_generator(case, scan.name))
        found = reconstruct(changed, method=method, prior=prior, held_out=0.1, out_of_domain="warn", **way)
        errors.append(float(np.linalg.norm(found.volume - changed.target) / np.linalg.norm(changed.target)))
        alarms.append(found.alarm is not None)
        foreign.append("out_of_domain" in found.attrs)
        if case == "lesion":
            survived.append(contrast(found.volume, scan, image) / contrast(changed.target, scan, image))
    row = {"method": method, "case": case, "nrmse": mean(errors), "nrmse_sd": pstdev(errors)}
    row |= {"alarm": mean(alarms), "foreign": mean(foreign), "scans": len(errors)}
    return row | ({"contrast": mean(survived), "contrast_sd": pstdev(survived)} if survived else {})


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each method, a column for each case."""
    lines = [f"| | {' | '.join(CASES)} | contrast of the lesion |", "|---" * (len(CASES) + 2) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["case"]: row for row in rows if row["method"] == method}
        cells = [f"{r['nrmse']:.3f} ({100 * r['alarm']:.0f}, {100 * r['foreign']:.0f} %)" for r in own.values()]
        spot = own["lesion"]
        lines.append(f"| {method} | {' | '.join(cells)} | {spot['contrast']:.2f} ± {spot['contrast_sd']:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, required=True, help="run or prior folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--coils", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--contrast", default="T2w")
    parser.add_argument("--population", type=int, default=3000, help="seed of the subjects")
    parser.add_argument("--acceleration", type=float, default=4.0)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file of the rows")
    arguments = parser.parse_args()

    from rsdmri.priors import load_prior
    from rsdmri.progress import progress
    from rsdmri.runtime import prepare_process

    prepare_process(arguments.threads)
    prior, rows = load_prior(arguments.prior), []
    with progress("Breaking things", total=len(arguments.methods) * len(CASES)) as bar:
        for method in arguments.methods:
            for case in CASES:
                rows.append(measured(method, case, arguments, prior))
                bar.advance(method=method, case=case)
    print(*table(rows), sep="\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
