"""Every method on scans that were undersampled when they were acquired: no truth, but samples that nobody saw.

    python benchmarks/prospective.py SCAN... --prior runs/NAME --validation runs/NAME/data --settings 12 --json p.json

Of each scan 10 % of the acquired samples are held out. A method's residual there in units of the noise, mean over
slices, is 1 where its image explains them up to noise. Each method tries its defaults and other settings of
`tune_reconstruction` on scans of the validation split, one slice of each, and shows SCAN by those that did best there,
and by its defaults.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_scans import panel
from tune_reconstruction import SPACES, candidates

METHODS = ("sense", "l1-wavelet", "tv", "rsd-amortised")


def main() -> None:
    arguments = _arguments()
    from rsdmri.priors import load_prior
    from rsdmri.progress import progress
    from rsdmri.runtime import prepare_process
    from rsdmri.workflows.reconstruct import load_scan

    prepare_process(arguments.threads)
    prior, rows = load_prior(arguments.prior), []
    asked = argparse.Namespace(settings=arguments.settings, seed=arguments.seed, adps_steps=0)
    plans = {name: candidates(name, asked, generator=prior.generator is not None) for name in METHODS}
    scans, others = [load_scan(path) for path in arguments.scans], validation(arguments.validation, arguments.subjects)
    with progress("Tuning", total=sum(map(len, plans.values()))) as bar:
        for name, plan in plans.items():
            tried = []
            for options in plan:
                tried.append(residual(name, options, others, prior))
                bar.advance(method=name, residual=tried[-1])
            best = plan[min(range(len(plan)), key=tried.__getitem__)]
            for words, options in (("defaults", plan[0]), ("tuned", best)):
                row = {"method": name, "settings": words, "options": options, "tried": len(plan)}
                row |= {"validation": tried[plan.index(options)], "residual": residual(name, options, scans, prior)}
                rows.append(row)
    print("| method | settings | validation scans | these scans | options |", "|---" * 5 + "|", sep="\n")
    for row in rows:
        figures = f"{row['validation']:.3f} | {row['residual']:.3f}"
        print(f"| {row['method']} | {row['settings']} | {figures} | {json.dumps(row['options'])} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.panel is not None:
        chosen = {row["method"]: row["options"] for row in rows if row["settings"] == "tuned"}
        panel(
            {name: reconstructed(name, options, scans[0], prior) for name, options in chosen.items()}, arguments.panel
        )


def validation(folder: Path, subjects: int) -> list[Any]:
    """The middle slice of each of the first scans of the validation split."""
    from rsdmri.data.manifest import read_manifest
    from rsdmri.workflows.reconstruct import load_scan

    paths = [entry.path for entry in read_manifest(folder) if entry.split == "val"]
    found = []
    for path in paths[:subjects]:
        scan = load_scan(path)
        middle = len(scan.kspace) // 2
        found.append(replace(scan, kspace=scan.kspace[middle : middle + 1], target=None))
    return found


def residual(name: str, options: dict[str, Any], scans: Sequence[Any], prior: Any) -> float:
    """Mean over scans of the residual of held-out samples, in noise units."""
    import numpy as np

    found = [reconstructed(name, options, scan, prior).attrs["held_out_residual"] for scan in scans]
    return float(np.mean([np.mean(each) for each in found]))


def reconstructed(name: str, options: dict[str, Any], scan: Any, prior: Any) -> Any:
    """``scan`` by a method of `SPACES`."""
    from rsdmri.workflows.reconstruct import reconstruct

    return reconstruct(scan, method=SPACES[name][0], prior=prior, options=options, out_of_domain="warn", held_out=0.1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--prior", type=Path, required=True, help="run or prior folder")
    parser.add_argument("--validation", type=Path, required=True, help="folder of undersampled scans with a manifest")
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--settings", type=int, default=12, help="tried of each method")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file of the rows")
    parser.add_argument("--panel", type=Path, help="picture of the first scan")
    return parser.parse_args()


if __name__ == "__main__":
    main()
