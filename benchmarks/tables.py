"""Tables of recipes/README.md from the rows of `experiments.py`: python benchmarks/tables.py [RESULTS].

Mean and standard deviation over seeds; for one seed the 95 % interval of that run's samples.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments import RECIPES, runs

Row = dict[str, Any]
LEVELS = ("0.02", "0.1", "0.5", "2")


def table(rows: Sequence[Row], sampler: str) -> list[str]:
    """Lines of a table with a line for each run of ``rows``, of the samples of ``sampler``."""
    names = list(dict.fromkeys(row["run"] for row in rows))
    lines = [
        "| run | seeds | Frechet | kernel | precision, recall | noise | NRMSE at s = " + ", ".join(LEVELS) + " |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        own = [row for row in rows if row["run"] == name]
        found = [row[sampler] for row in own]
        pair = ", ".join(f"{mean(f[key] for f in found):.2f}" for key in ("precision", "recall"))
        cells = [name, str(len(own)), _spread(found, "frechet"), _spread(found, "kernel"), pair]
        cells += [f"{mean(f['noise'] for f in found):.3f}", _errors(own)]
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0][sampler]
    return [*lines, "", f"{first['features'].capitalize()}; two halves of the reference: {rows[0]['floor']:.0f}."]


def _spread(found: Sequence[Row], key: str) -> str:
    values = [f[key] for f in found]
    if len(values) > 1:
        return f"{mean(values):.0f} ± {stdev(values):.0f}"
    return f"{values[0]:.0f} ({found[0][key + ' low']:.0f} to {found[0][key + ' high']:.0f})"


def _errors(rows: Sequence[Row]) -> str:
    if not all("denoiser NRMSE" in row for row in rows):
        return ""
    return ", ".join(f"{mean(row['denoiser NRMSE'][level] for row in rows):.3f}" for level in LEVELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RECIPES / "results" / "experiments.jsonl")
    known = [json.loads(line) for line in parser.parse_args().results.read_text(encoding="utf-8").splitlines()]
    for group in dict.fromkeys(run.group for run in runs()):
        wanted = [(run.name, run.seed) for run in runs() if run.group == group]
        rows = sorted(
            (r for r in known if (r["run"], r["seed"]) in wanted), key=lambda r: wanted.index((r["run"], r["seed"]))
        )
        for sampler in ("teacher", "prior"):
            if rows and all(sampler in row for row in rows):
                print(f"\n{group}: {sampler}\n", *table(rows, sampler), sep="\n")


if __name__ == "__main__":
    main()
