"""Every method on real scans: fully sampled ones undersampled and scored, others by samples held out of them.

    python benchmarks/real_scans.py SCAN... --prior runs/NAME --panels FOLDER --json real.json

Scores are against the root sum of squares of the full data, its noise included; in brackets how much of the object of
these the 90 % band holds that is predicted for them, noise and all, and the rank correlation of standard deviation and
error. The band is widened by held-out lines of the same scan; with ``--calibration`` by simulated gradient echoes with
as many coils and ``--noise``, undersampled alike, whose noise-free images are known.
Settings of the methods are those of ``--options`` (JSON: settings by method), as a search on other scans found them;
their defaults otherwise.
"""

import argparse
import copy
import json
import statistics
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import bands

METHODS = ("sense", "l1-wavelet", "tv", "diffpir", "rsd")
POPULATION = 4711  # seed of the heads that bands are widened by


def measured(
    scan: Any, method: str, acceleration: float | None, seed: int, arguments: argparse.Namespace, prior: Any
) -> Any:
    """The reconstruction, and its row."""
    from rsdmri.workflows.reconstruct import reconstruct

    way = {"samples": arguments.samples, "seed": seed, "options": arguments.options.get(method)}
    sampling = {"acceleration": acceleration, "mask": arguments.mask}
    if method == "rsd" and arguments.calibration and acceleration is not None:
        heads = (arguments.calibration, scan.kspace.shape[1], max(scan.crop), arguments.noise)
        prior = calibrated(prior, heads, **sampling, samples=arguments.samples, options=json.dumps(way["options"]))
    found = reconstruct(scan, method=method, prior=prior, out_of_domain="warn", held_out=0.1, **sampling, **way)
    row = {"scan": scan.name, "method": method, "R": found.attrs["acceleration"], "nominal": acceleration}
    row |= {"seed": seed} if arguments.seeds > 1 else {}
    row |= {name: (found.scores or {}).get(name) for name in ("nrmse", "psnr", "ssim")}
    attributes = ("held_out_residual", "alarm", "interval_factor", "domain_distance", "out_of_domain", "evaluations")
    row |= {name: found.attrs.get(name) for name in attributes}
    if found.target is not None and found.quantiles is not None:
        row |= bands.scores([found])
        row["coverage"] = bands.predicted_coverage(scan, found, prior, way["options"], arguments.samples, seed)
    return found, row | {"seconds": found.attrs["seconds_per_slice"]}


@cache
def calibrated(
    prior: Any, heads: tuple[int, int, int, float], *, acceleration: float, mask: str, samples: int, options: str
) -> Any:
    """The prior with the factor of its bands from the noise-free images of ``heads`` (count, coils, size, noise)."""
    from rsdmri.data.simulate import simulate_scan
    from rsdmri.workflows.calibrate import calibrate

    count, coils, size, noise = heads
    settings = {"slices": 1, "size": size, "coils": coils, "noise": noise, "echo": "gradient", "seed": POPULATION}
    scans = [simulate_scan(head, **settings).as_scan(f"head{head:05d}") for head in range(count)]
    way = {"samples": samples, "seed": 0, "options": json.loads(options)}
    found, factor = copy.copy(prior), calibrate(prior, scans, acceleration=acceleration, mask=mask, **way)
    found.meta = {**prior.meta, "calibration": {"format": 1, **asdict(factor)}}
    return found


def panel(found: dict[str, Any], path: Path) -> None:
    """Images of the middle slice by method, with the full image and errors where there is one."""
    from rsdmri.report.png import png_bytes
    from rsdmri.report.reconstruction import reconstruction_figure

    first = next(iter(found.values()))
    index = len(first.volume) // 2
    target = None if first.target is None else first.target[index]
    std = None if found[list(found)[-1]].std is None else found[list(found)[-1]].std[index]
    heading = f"R {first.attrs['acceleration']:.2f}"
    images = {method: result.volume[index] for method, result in found.items()}
    path.write_bytes(png_bytes(reconstruction_figure(target, images, std, heading=heading)))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each scan and acceleration, a column for each method; of several seeds means."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| scan, R | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for key in dict.fromkeys((row["scan"], row["nominal"]) for row in rows):
        own = [row for row in rows if (row["scan"], row["nominal"]) == key]
        cells = [_cell([row for row in own if row["method"] == method]) for method in methods]
        lines.append(f"| {key[0]}, {_mean(own, 'R'):.2f} | {' | '.join(cells)} |")
    return lines


def differences(rows: list[dict[str, Any]], first: str, second: str) -> list[str]:
    """A line for each scan and acceleration: NRMSE and SSIM of ``first`` less those of ``second``, seed by seed."""
    lines = [f"{first} less {second}: mean and standard deviation over seeds"]
    for key in dict.fromkeys((row["scan"], row["nominal"]) for row in rows):
        one, other = (
            {row["seed"]: row for row in rows if (row["scan"], row["nominal"], row["method"]) == (*key, method)}
            for method in (first, second)
        )
        words = []
        for metric in ("nrmse", "ssim"):
            found = [one[seed][metric] - other[seed][metric] for seed in one]
            words.append(f"{metric} {statistics.fmean(found):+.4f} +- {statistics.stdev(found):.4f}")
        lines.append(f"{key[0]}, {key[1]:g}: {', '.join(words)}, {len(one)} masks")
    return lines


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def _cell(rows: list[dict[str, Any]]) -> str:
    known = {name for name in rows[0] if all(isinstance(row[name], int | float) for row in rows)}
    row = {name: _mean(rows, name) for name in known} | {"nrmse": rows[0]["nrmse"] and _mean(rows, "nrmse")}
    if row["nrmse"] is not None:
        text = f"{row['nrmse']:.4f}, {row['ssim']:.4f}"
        return f"{text} ({100 * row['coverage']:.0f} %, {row['rank']:.2f})" if "coverage" in row else text
    residual = row.get("held_out_residual")
    return "not checked" if residual is None else f"held out {residual:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--prior", type=Path, required=True, help="run or prior folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--accelerations", type=float, nargs="+", default=[2, 3, 4])
    parser.add_argument("--mask", default="random", help="family of the masks, rsdmri.physics.masks.FAMILIES")
    parser.add_argument("--options", type=json.loads, default={}, help="settings by method, JSON")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1, help="masks and draws, from seed 0 on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=0, help="simulated heads that widen the bands of rsd")
    parser.add_argument("--noise", type=float, default=0.01, help="of these heads")
    parser.add_argument("--panels", type=Path, help="folder of pictures")
    parser.add_argument("--json", type=Path, help="file of the rows")
    arguments = parser.parse_args()

    from rsdmri.priors import load_prior
    from rsdmri.progress import progress
    from rsdmri.runtime import prepare_process
    from rsdmri.workflows.reconstruct import load_scan

    prepare_process(arguments.threads)
    prior, rows = load_prior(arguments.prior), []
    scans = [load_scan(path) for path in arguments.scans]
    cases = [
        (scan, acceleration, seed)
        for scan in scans
        for acceleration in ([None] if scan.prospective else arguments.accelerations)
        for seed in range(arguments.seeds)
    ]
    with progress("Reconstructing", total=len(cases) * len(arguments.methods)) as bar:
        for scan, acceleration, seed in cases:
            found = {}
            for method in arguments.methods:
                found[method], row = measured(scan, method, acceleration, seed, arguments, prior)
                rows.append(row)
                bar.advance(scan=scan.name, method=method)
            if arguments.panels is not None and seed == 0:
                arguments.panels.mkdir(parents=True, exist_ok=True)
                panel(found, arguments.panels / f"{scan.name}-R{acceleration or 'own'}.png")
    print(*table(rows), sep="\n")
    if arguments.seeds > 1 and not any(scan.prospective for scan in scans):
        others = [method for method in arguments.methods if method != "rsd"] if "rsd" in arguments.methods else []
        print(*(line for other in others for line in differences(rows, "rsd", other)), sep="\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
