"""Trainings for tests: in this process or in one of their own, and how two of them are compared."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.train import train

STAGES = ("teacher", "prior")

CLOCKS = ("time", "elapsed", "images_per_s", "gflops_per_s", "peak_share")


def quiet(line: str) -> None:
    del line


def go(config: Config, out: Path, **options) -> Path:
    return train(config, out, device="cpu", **{"say": quiet, **options})


def go_alone(config: Config, out: Path) -> Path:
    """Train in this process on one thread, as a process started with ``OMP_NUM_THREADS=1`` does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return go(config, out)
    finally:
        torch.set_num_threads(before)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "model.safetensors")[0]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_same_run(left: Path, right: Path, but: tuple[str, ...] = ()) -> None:
    """The same weights, states and metrics to the bit, clocks and metrics called ``but`` excepted."""
    but = (*but, *CLOCKS)
    for stage in STAGES:
        newest = sorted((right / "checkpoints").glob(f"{stage}-0*.safetensors"))[-1]
        pairs = [weights(run / stage) for run in (left, right)]
        states = [load_tensors(run / "checkpoints" / newest.name)[0] for run in (left, right)]
        for a, b in (pairs, states):
            assert a.keys() == b.keys()
            assert [key for key in a if not torch.equal(a[key], b[key])] == []
    rows = [[{k: v for k, v in row.items() if k not in but} for row in read_metrics(run)] for run in (left, right)]
    assert rows[0] == rows[1]


def start(*arguments: object, code: str = "") -> subprocess.Popen:
    """A process of its own on one thread: ``rsdmri ARGUMENTS``, after ``code`` has run in it."""
    script = f"{code}\nfrom rsdmri.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def start_training(config: Config, out: Path, *options: object, code: str = "") -> subprocess.Popen:
    """``rsdmri train`` in a process of its own."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(config.to_toml())
    return start("train", "--recipe", recipe, "--out", out, *options, code=code)


def wait_until(true: Callable[[], object], process: subprocess.Popen, pause: float = 0.005) -> None:
    """Wait for ``true()`` while ``process`` lives; 2 minutes at most."""
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing after two minutes"
        time.sleep(pause)
