"""How one-step priors got better as they were trained, and whether measurements alone pick the right checkpoint.

    python benchmarks/checkpoints.py [RESULTS] [--figure FILE]    # table on stdout, figure into recipes/results

From the rows of ``experiments.py``. The proximal distance (generated against measured slices, both corrupted) picks the
checkpoint, as `Entry.gives_way` says; the distance to clean images only says afterwards how well. Rank correlation is
Spearman's over the checkpoints of a run.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments import RECIPES, runs
from scipy.stats import spearmanr

Row = dict[str, Any]
LEAST = 4  # checkpoints that a rank correlation is made of


def table(rows: Sequence[Row]) -> list[str]:
    """A line for each run: its distance over the teacher's, and how the proximal distance ranks its checkpoints."""
    lines = [
        "| run | seed | teacher | one-step | ratio | rank correlation | kept, best of the run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        prior, teacher = row["prior"]["frechet"], row.get("teacher", {}).get("frechet")
        clean = [point["clean"] for point in row["checkpoints"]]
        ratio = (
            ["", f"{prior:.0f}", ""]
            if teacher is None
            else [f"{teacher:.0f}", f"{prior:.0f}", f"{prior / teacher:.2f}"]
        )
        cells = [row["run"], str(row["seed"]), *ratio]
        cells += [f"{correlation(row):.2f}", f"{kept(row):.0f}, {min(clean):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    found = [correlation(row) for row in rows]
    lost = [kept(row) / min(point["clean"] for point in row["checkpoints"]) - 1 for row in rows]
    spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
    return [
        *lines,
        "",
        f"Rank correlation {mean(found):.2f}{spread} over {len(rows)} runs; the checkpoint that the proximal distance"
        f" keeps is {100 * mean(lost):.0f} % further from clean images than the best, at most {100 * max(lost):.0f} %.",
        *_rules([row for row in rows if all("error" in point for point in row["checkpoints"])]),
    ]


def _rules(rows: Sequence[Row]) -> list[str]:
    """What keeping the lowest proximal distance would have cost in the runs that kept the latest within its error."""
    if not rows:
        return []
    best = [min(point["clean"] for point in row["checkpoints"]) for row in rows]
    lowest = [min(row["checkpoints"], key=lambda point: point["proximal"])["clean"] for row in rows]
    found = [mean(v / b - 1 for v, b in zip(values, best, strict=True)) for values in (map(kept, rows), lowest)]
    return [
        f"In the {len(rows)} runs with the error of each distance: {100 * found[0]:.0f} %, and {100 * found[1]:.0f} % "
        "if the lowest had been kept."
    ]


def correlation(row: Row) -> float:
    """Of the proximal and the clean distance over the checkpoints of a run."""
    points = row["checkpoints"]
    return float(spearmanr([p["proximal"] for p in points], [p["clean"] for p in points]).statistic)


def kept(row: Row) -> float:
    """Distance to clean images of the checkpoint that was kept.

    That is the latest within its error of the least proximal distance. Rows without errors are of runs that kept the
    least.
    """
    lowest, found = float("inf"), 0.0
    for point in row["checkpoints"]:
        if point["proximal"] < lowest + point.get("error", 0.0):
            found = point["clean"]
        lowest = min(lowest, point["proximal"])
    return found


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of k-space, of corrupted images, and those that compare settings."""
    groups = {(run.name, run.seed): run.group for run in runs()}
    found: dict[str, list[Row]] = {"k-space": [], "images": [], "settings": []}
    for row in rows:
        group = groups[row["run"], row["seed"]]
        kind = "settings" if group == "comparison" else "k-space" if row["corruption"] == "fourier" else "images"
        found[kind].append(row)
        if row["run"] == "one-step-fourier-ambient" and row["seed"] == 0:  # what the settings differ from
            found["settings"].append(row)
    return found


def figure(rows: Sequence[Row], path: Path) -> None:
    """Distance over the teacher's against training images, and the proximal against the clean distance."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 8.5), layout="constrained")
    axes = drawn.subplots(2, 2)
    for axis, (kind, own) in zip(axes.flat, panels(rows).items(), strict=False):
        colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
        for row, colour in zip(own, colours, strict=False):
            points, teacher = row["checkpoints"], row.get("teacher", {}).get("frechet", own[0]["teacher"]["frechet"])
            label = f"{row['run'].removeprefix('one-step-')}, seed {row['seed']}"
            clean = [p["clean"] / teacher for p in points]
            axis.plot([p["images"] for p in points], clean, marker="o", markersize=3, label=label, color=colour)
        axis.axhline(1, color="0.5", linewidth=1)
        axis.set(title=kind, xlabel="training images", ylabel="Frechet distance over the teacher's", ylim=(0, 1.6))
        axis.legend(fontsize=6, ncols=2)
    for row in rows:
        clean, near = ([p[key] for p in row["checkpoints"]] for key in ("clean", "proximal"))
        axes[1, 1].loglog([v / min(near) for v in near], [v / min(clean) for v in clean], "o", markersize=3)
    axes[1, 1].set(title="how the proximal distance ranks", xlabel="proximal distance over the run's least")
    axes[1, 1].set(ylabel="distance to clean images over the run's least")
    drawn.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RECIPES / "results" / "experiments.jsonl")
    parser.add_argument("--figure", type=Path, default=RECIPES / "results" / "checkpoints.png")
    arguments = parser.parse_args()
    rows = map(json.loads, arguments.results.read_text(encoding="utf-8").splitlines())
    order = [(run.name, run.seed) for run in runs()]
    usable = [r for r in rows if len(r.get("checkpoints", ())) >= LEAST and (r["run"], r["seed"]) in order]
    usable.sort(key=lambda row: order.index((row["run"], row["seed"])))
    if not usable:
        raise SystemExit(f"{arguments.results}: no prior with {LEAST} checkpoints; run experiments.py first")
    print(*table(usable), sep="\n")
    figure(usable, arguments.figure)


if __name__ == "__main__":
    main()
