"""Images per second of one-step priors over those of their teachers, timed in turns.

    python benchmarks/one_step.py RUN [RUN ...] --threads 1

The teacher takes 18 Heun steps, 35 evaluations, unless ``--steps`` says otherwise. Both draw the same acquisitions.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from timing import interleaved, use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs")
    parser.add_argument("--images", type=int, default=32, help="drawn at once")
    parser.add_argument("--steps", type=int, default=18, help="of the teacher's sampler")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    from rich.console import Console
    from rich.table import Table

    from rsdmri.priors import load_prior

    table, rows = Table(title=f"{arguments.images} images at once, {arguments.threads} thread(s)"), []
    for column in ("run", "matrix", "teacher, images/s", "one step, images/s", "ratio"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for run in arguments.runs:
        prior = load_prior(run, "cpu")
        sample = partial(prior.sample, arguments.images, batch=arguments.images)
        ways = {"teacher": partial(sample, teacher=True, steps=arguments.steps), "one step": sample}
        seconds = interleaved(ways, arguments.repeats)
        rates = {name: arguments.images / taken for name, taken in seconds.items()}
        ratio = rates["one step"] / rates["teacher"]
        matrix = " x ".join(map(str, sample(seed=1).shape[-2:]))
        rows.append({"run": run.name, "matrix": matrix, **rates, "ratio": ratio})
        table.add_row(run.name, matrix, *(f"{rate:.1f}" for rate in rates.values()), f"{ratio:.1f}")
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": arguments.threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
