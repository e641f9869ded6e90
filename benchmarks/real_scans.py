"""Every method on real scans: fully sampled ones undersampled and scored, others by samples held out of them.

    python benchmarks/real_scans.py SCAN... --prior runs/NAME --panels FOLDER --json real.json

Scores are against the root sum of squares of the full data, its noise included; in brackets how much of the object the
90 % band holds, and the rank correlation of standard deviation and error. The band is widened by held-out lines of the
same scan; with ``--calibration`` by full scans, such as simulated ones with as many coils and as much noise, that are
undersampled like it.
Settings of the methods are those of ``--options`` (JSON: settings by method), as a search on other scans found them;
their defaults otherwise.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bands

METHODS = ("sense", "l1-wavelet", "tv", "diffpir", "rsd")


def measured(scan: Any, method: str, acceleration: float | None, arguments: argparse.Namespace, prior: Any) -> Any:
    """The reconstruction, and its row."""
    from rsdmri.workflows.reconstruct import reconstruct

    way = {"samples": arguments.samples, "seed": arguments.seed, "options": arguments.options.get(method)}
    if method == "rsd" and arguments.calibration and acceleration is not None:
        prior = calibrated(prior, arguments.calibration, acceleration, way)
    found = reconstruct(
        scan, method=method, prior=prior, acceleration=acceleration, out_of_domain="warn", held_out=0.1, **way
    )
    row = {"scan": scan.name, "method": method, "R": found.attrs["acceleration"], "nominal": acceleration}
    row |= {name: (found.scores or {}).get(name) for name in ("nrmse", "psnr", "ssim")}
    attributes = ("held_out_residual", "alarm", "interval_factor", "domain_distance", "out_of_domain", "evaluations")
    row |= {name: found.attrs.get(name) for name in attributes}
    if found.target is not None and found.quantiles is not None:
        row |= bands.scores([found])
    return found, row | {"seconds": found.attrs["seconds_per_slice"]}


def calibrated(prior: Any, scans: Sequence[Path], acceleration: float, way: dict[str, Any]) -> Any:
    """The prior with the factor of its bands from full ``scans``."""
    from rsdmri.workflows.calibrate import calibrate

    found, factor = copy.copy(prior), calibrate(prior, scans, acceleration=acceleration, **way)
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
    """A line for each scan and acceleration, a column for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| scan, R | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for key in dict.fromkeys((row["scan"], row["R"]) for row in rows):
        own = {row["method"]: row for row in rows if (row["scan"], row["R"]) == key}
        lines.append(f"| {key[0]}, {key[1]:.2f} | {' | '.join(_cell(own[method]) for method in methods)} |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    if row["nrmse"] is not None:
        text = f"{row['nrmse']:.4f}, {row['ssim']:.4f}"
        return f"{text} ({100 * row['coverage']:.0f} %, {row['rank']:.2f})" if "coverage" in row else text
    residual = row["held_out_residual"]
    return "not checked" if residual is None else f"held out {residual:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--prior", type=Path, required=True, help="run or prior folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--accelerations", type=float, nargs="+", default=[2, 3, 4])
    parser.add_argument("--options", type=json.loads, default={}, help="settings by method, JSON")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration", type=Path, nargs="+", help="full scans that widen the bands of rsd")
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
    cases = [(s, r) for s in scans for r in ([None] if s.prospective else arguments.accelerations)]
    with progress("Reconstructing", total=len(cases) * len(arguments.methods)) as bar:
        for scan, acceleration in cases:
            found = {}
            for method in arguments.methods:
                found[method], row = measured(scan, method, acceleration, arguments, prior)
                rows.append(row)
                bar.advance(scan=scan.name, method=method)
            if arguments.panels is not None:
                arguments.panels.mkdir(parents=True, exist_ok=True)
                panel(found, arguments.panels / f"{scan.name}-R{acceleration or 'own'}.png")
    print(*table(rows), sep="\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
