"""Every method on scans that were undersampled when they were acquired: no truth, but samples that nobody saw.

    python benchmarks/prospective.py SCAN... --prior runs/NAME --validation runs/NAME/data --settings 12 --json p.json

Of each scan 10 % of the acquired samples are held out. A method's residual there in units of the noise, mean over
slices, is 1 where its image explains them up to noise. SCAN is shown by each method's defaults and by two choices among
these and other settings of `tune_reconstruction`: "simulated", what did best on a slice each of scans of the validation
split, and "own", what did best on further samples of SCAN that were held out, too. These are drawn from what is left
when the samples that judge are gone, so that the choice never saw them, and every draw of those has its own choice.
Figures are means over ``--splits`` draws.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from real_scans import panel
from tune_reconstruction import SPACES, candidates

SHARE = 0.1  # of the acquired samples that is held out
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
    splits = range(arguments.splits)
    shown = [[without_held_out(scan, split) for scan in scans] for split in splits]
    with progress("Tuning", total=(1 + len(splits)) * sum(map(len, plans.values()))) as bar:

        def best(name: str, some: Sequence[Any]) -> tuple[dict[str, Any], list[float]]:
            tried = []
            for options in plans[name]:
                tried.append(residual(name, options, some, prior))
                bar.advance(method=name, residual=tried[-1])
            return plans[name][min(range(len(tried)), key=tried.__getitem__)], tried

        for name, plan in plans.items():
            simulated, tried = best(name, others)
            own = [best(name, some)[0] for some in shown]
            for words, chosen in (
                ("defaults", [plan[0]] * len(own)),
                ("simulated", [simulated] * len(own)),
                ("own", own),
            ):
                found = [residual(name, options, scans, prior, split) for split, options in enumerate(chosen)]
                row = {"method": name, "settings": words, "options": most_frequent(chosen), "tried": len(plan)}
                row |= {"validation": tried[plan.index(row["options"])], "residual": mean(found), "splits": found}
                rows.append(row)
    print("| method | settings | validation scans | these scans | options |", "|---" * 5 + "|", sep="\n")
    for row in rows:
        figures = f"{row['validation']:.3f} | {row['residual']:.3f}"
        print(f"| {row['method']} | {row['settings']} | {figures} | {json.dumps(row['options'])} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.panel is not None:
        chosen = {row["method"]: row["options"] for row in rows if row["settings"] == "own"}
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


def without_held_out(scan: Any, seed: int) -> Any:
    """``scan`` as if the samples that `reconstruct` with this seed holds out had not been acquired."""
    import numpy as np
    import torch

    from rsdmri.workflows.trust import held_out_split

    shown = held_out_split(scan, torch.from_numpy(scan.mask), seed, SHARE)[0].numpy()
    return replace(scan, mask=shown, kspace=np.where(shown, scan.kspace, 0))


def most_frequent(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of those settings that most splits chose."""
    return max(chosen, key=chosen.count)


def residual(name: str, options: dict[str, Any], scans: Sequence[Any], prior: Any, seed: int = 0) -> float:
    """Mean over scans of the residual of held-out samples, in noise units."""
    return mean(reconstructed(name, options, scan, prior, seed).attrs["held_out_residual"] for scan in scans)


def reconstructed(name: str, options: dict[str, Any], scan: Any, prior: Any, seed: int = 0) -> Any:
    """``scan`` by a method of `SPACES`."""
    from rsdmri.workflows.reconstruct import reconstruct

    fixed: dict[str, Any] = {"out_of_domain": "warn", "held_out": SHARE}
    return reconstruct(scan, method=SPACES[name][0], prior=prior, options=options, seed=seed, **fixed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--prior", type=Path, required=True, help="run or prior folder")
    parser.add_argument("--validation", type=Path, required=True, help="folder of undersampled scans with a manifest")
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--settings", type=int, default=12, help="tried of each method")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--splits", type=int, default=5, help="draws of the held-out samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file of the rows")
    parser.add_argument("--panel", type=Path, help="picture of the first scan")
    return parser.parse_args()


if __name__ == "__main__":
    main()
