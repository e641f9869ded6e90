"""Time training steps of a fixed network against the machine's limits, and against another checkout, in one run.

    python benchmarks/training.py --json training.json
    git worktree add ../before v0.1.0 && python benchmarks/training.py --against ../before

The step is the teacher's: objective ``ambient``, 8 coils, R = 4, batch 8, the default network (four levels of 32 to 128
channels, 2.0 million weights, 6 conjugate-gradient steps). Versions run in processes of their own and take turns.
Times of the processor are given beside those of the clock: on a machine that others use, too, only they are steady.
Rates and shares are per core and rest on them; the limits are measured between the steps. Floor: every operation as
fast as its arithmetic or its memory traffic allows, whichever is slower, nothing fused.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent


class Child:
    """A training in a process of its own."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root.resolve()), str(HERE)])}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "training_child.py"), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **more: float) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a training stopped; its message is above")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    arguments = _arguments()
    from rich.console import Console

    console, record = Console(width=110), {}
    for size in (32,) if arguments.quick else arguments.sizes:
        record[str(size)] = compared(size, arguments, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def compared(size: int, arguments: argparse.Namespace, console: Any) -> dict[str, Any]:
    """Steps, limits, floor and parts of every version at ``size``."""
    settings = {"size": size, "coils": 8, "batch": arguments.batch, "device": arguments.device}
    settings |= {"workers": arguments.workers, "threads": arguments.threads, "set": arguments.set}
    roots = {"now": HERE.parent} | ({"before": arguments.against} if arguments.against else {})
    children = {name: Child(root, settings) for name, root in roots.items()}
    measuring = Child(HERE.parent, settings | {"size": 32})
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    limits: list[dict[str, float]] = []
    for number in range(arguments.repeats + 2):
        for name, child in children.items():
            found = child.ask("step")
            if number >= 2:
                steps[name].append(found)
        if number % 4 == 2:
            limits.append(measuring.ask("limits"))
    best = {key: max(one[key] for one in limits) for key in limits[0]}
    peak = max(best["matrix"], best["convolution"])
    floor = children["now"].ask("floor", peak=peak, bandwidth=best["copy"])
    parts = {name: child.ask("parts") for name, child in children.items()} if arguments.device == "cpu" else {}
    for child in (*children.values(), measuring):
        child.close()
    times = {
        name: {key: median(step[key] for step in taken) for key in taken[0]}
        | {"processor, least": min(step["processor"] for step in taken)}
        for name, taken in steps.items()
    }
    _show(console, size, arguments.batch, times, best, floor, parts)
    return {"times": times, "limits": best, "floor": floor, "parts": parts}


def _show(console: Any, size: int, batch: int, times: Any, best: Any, floor: Any, parts: Any) -> None:
    from rich.table import Table

    peak = max(best["matrix"], best["convolution"])
    console.print(
        f"{size} x {size}: one core {best['matrix'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{best['convolution'] / 1e9:.0f} in convolutions, {best['copy'] / 1e9:.1f} GB/s copying; an image takes "
        f"{floor['operations'] / batch / 1e9:.2f} GFLOP and moves {floor['bytes'] / batch / 1e9:.2f} GB: at least "
        f"{1000 * floor['operations'] / peak / batch:.0f} ms, {1000 * floor['bytes'] / best['copy'] / batch:.0f} ms, "
        f"operation by operation {1000 * floor['seconds'] / batch:.0f} ms"
    )
    rows = {
        "clock, ms per image": lambda t: f"{1000 * t['wall'] / batch:.1f}",
        "processor, ms per image, median": lambda t: f"{1000 * t['processor'] / batch:.1f}",
        "processor, ms per image, least": lambda t: f"{1000 * t['processor, least'] / batch:.1f}",
        "of it in the kernel": lambda t: f"{100 * t['kernel'] / t['processor']:.0f} %",
        "images/s a core": lambda t: f"{batch / t['processor']:.1f}",
        "GFLOP/s a core": lambda t: f"{floor['operations'] / t['processor'] / 1e9:.0f}",
        "share of the peak": lambda t: f"{100 * floor['operations'] / t['processor'] / peak:.0f} %",
        "over the floor": lambda t: f"{t['processor'] / floor['seconds']:.2f}",
        "peak memory, MB": lambda t: f"{t['memory']:.0f}",
    }
    table = Table(title=f"training at {size} x {size}, batch {batch}")
    for heading in ("", *times):
        table.add_column(heading, justify="right" if heading else "left")
    for name, shown in rows.items():
        table.add_row(name, *(shown(t) for t in times.values()))
    ordered = sorted(next(iter(parts.values()), {}).items(), key=lambda item: -item[1])
    for part, _ in ordered:
        table.add_row(part, *(f"{100 * found.get(part, 0):.1f} %" for found in parts.values()))
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="shares of the batch; 0: one per core")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--set", action="append", default=[], help="a setting, key=value; repeatable")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
