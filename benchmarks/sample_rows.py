"""Samples of several runs in one figure, a row each, the same noise and acquisitions in all.

    python benchmarks/sample_rows.py WORK FIGURE --runs edm-full-s0 l1-edm-s0 fourier-ambient-s0

WORK is the folder of ``experiments.py``. Rows: the teacher of each run, and its one-step prior where there is one.
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--columns", type=int, default=10)
    arguments = parser.parse_args()

    from rsdmri.files import atomic_path
    from rsdmri.priors import load_prior
    from rsdmri.report.grid import Grid
    from rsdmri.report.png import common_window, png_bytes
    from rsdmri.runtime import prepare_process

    prepare_process(1)
    rows: list[tuple[str, np.ndarray]] = []
    for run in arguments.runs:
        folder = arguments.work / "runs" / run
        for stage in ("teacher", "prior"):
            if (folder / stage / "config.json").is_file() and (stage == "prior" or "one-step" not in run):
                prior = load_prior(folder / stage, "cpu")
                rows.append((run, prior.sample(arguments.columns, teacher=stage == "teacher").abs().numpy()))
    count, white = arguments.columns, common_window(np.concatenate([images for _, images in rows]))
    heading = f"{count} samples of each, not chosen"
    grid = Grid((len(rows), count), (0.7, 0.7), above=[0.22] * len(rows), heading=heading)
    for row, (run, images) in enumerate(rows):
        for column, image in enumerate(images):
            grid.image(row, column, image, white)
        left, bottom, _, height = grid.box(row, 0)
        grid.text(left, bottom + height + 0.06, run, weight="bold")
    figure = grid.figure
    with atomic_path(arguments.figure) as temporary:
        temporary.write_bytes(png_bytes(figure))


if __name__ == "__main__":
    main()
