"""How one-step priors got better as they were trained, and whether measurements alone pick the right checkpoint.

    python benchmarks/checkpoints.py [RESULTS] [--figure FILE]    # table on stdout, figure into recipes/results

From the rows of ``experiments.py``. The proximal distance (generated against measured slices, both corrupted) picks the
checkpoint; the distance to clean images only says afterwards how well. Rank correlation is Spearman's over the
checkpoints of a run.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments import RECIPES
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
        teacher, prior = row["teacher"]["frechet"], row["prior"]["frechet"]
        clean = [point["clean"] for point in row["checkpoints"]]
        cells = [row["run"], str(row["seed"]), f"{teacher:.0f}", f"{prior:.0f}", f"{prior / teacher:.2f}"]
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
    ]


def correlation(row: Row) -> float:
    """Of the proximal and the clean distance over the checkpoints of a run."""
    points = row["checkpoints"]
    return float(spearmanr([p["proximal"] for p in points], [p["clean"] for p in points]).statistic)


def kept(row: Row) -> float:
    """Distance to clean images of the checkpoint with the least proximal distance."""
    return float(min(row["checkpoints"], key=lambda point: point["proximal"])["clean"])


def figure(rows: Sequence[Row], path: Path) -> None:
    """Distance over the teacher's against training images, and the proximal against the clean distance."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for row in rows:
        points, teacher = row["checkpoints"], row["teacher"]["frechet"]
        label = f"{row['run'].removeprefix('one-step-')}, seed {row['seed']}"
        clean, images = [p["clean"] for p in points], [p["images"] for p in points]
        left.plot(images, [value / teacher for value in clean], marker="o", markersize=3, label=label)
        near = [p["proximal"] for p in points]
        right.plot([v / min(near) for v in near], [v / min(clean) for v in clean], "o", markersize=4)
    left.axhline(1, color="0.5", linewidth=1)
    left.annotate("teacher, 35 evaluations", (0.02, 1), xycoords=("axes fraction", "data"), va="bottom", color="0.4")
    left.set(xlabel="training images", ylabel="Frechet distance over the teacher's", ylim=(0, 1.12))
    right.set(xlabel="proximal distance over the run's least", ylabel="distance to clean images over the run's least")
    left.legend(fontsize=6, ncols=2)
    drawn.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RECIPES / "results" / "experiments.jsonl")
    parser.add_argument("--figure", type=Path, default=RECIPES / "results" / "checkpoints.png")
    arguments = parser.parse_args()
    rows = map(json.loads, arguments.results.read_text(encoding="utf-8").splitlines())
    usable = [row for row in rows if len(row.get("checkpoints", ())) >= LEAST and "teacher" in row]
    if not usable:
        raise SystemExit(f"{arguments.results}: no prior with {LEAST} checkpoints; run experiments.py first")
    print(*table(usable), sep="\n")
    figure(usable, arguments.figure)


if __name__ == "__main__":
    main()
