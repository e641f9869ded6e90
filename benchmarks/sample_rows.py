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
    from rsdmri.report.figures import image_grid
    from rsdmri.report.png import png_bytes
    from rsdmri.runtime import prepare_process

    prepare_process(1)
    rows, titles = [], []
    for run in arguments.runs:
        folder = arguments.work / "runs" / run
        for stage in ("teacher", "prior"):
            if (folder / stage / "config.json").is_file() and (stage == "prior" or "one-step" not in run):
                prior = load_prior(folder / stage, "cpu")
                rows.append(prior.sample(arguments.columns, teacher=stage == "teacher").abs().numpy())
                titles += [run, *[" "] * (arguments.columns - 1)]
    heading = f"{arguments.columns} samples of each, not chosen"
    figure = image_grid(np.concatenate(rows), titles, columns=arguments.columns, heading=heading)
    with atomic_path(arguments.figure) as temporary:
        temporary.write_bytes(png_bytes(figure))


if __name__ == "__main__":
    main()
