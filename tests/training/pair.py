"""What two processes of a training do, for test_distributed.py: torchrun ... pair.py SCANS OUT. Writes rank?.json."""

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from rsdmri.config import Config, load_config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.errors import InputError, Interrupted
from rsdmri.training import checkpoint
from rsdmri.training.distributed import Processes, joined
from rsdmri.training.prior import PriorStage
from rsdmri.training.teacher import TeacherStage
from rsdmri.workflows.sources import KspaceSource
from rsdmri.workflows.train import train

TINY = (
    *("network.channels=[8,16]", "teacher.batch=5", "prior.batch=5", "workers=1", "steps=4", "checkpoint_every=2"),
    *("teacher.warmup=2", "prior.learning_rate=1e-4", "prior.fake_learning_rate=1e-4"),
)
CPU = torch.device("cpu")


def settings(scans: Path, *more: str) -> Config:
    return load_config(None, [*TINY, f"data.path={scans}", *more])


def raised(function, *arguments) -> list:
    """Type, message and notes of what ``function`` raises."""
    try:
        function(*arguments)
    except (Exception, Interrupted) as error:
        return [type(error).__name__, str(error), getattr(error, "__notes__", [])]
    return []


def exchanged(processes: Processes) -> dict[str, object]:
    """Sums, maxima, what the first sends, and how differences are found."""
    rank = processes.rank
    tensors = [
        torch.arange(6.0).reshape(2, 3).mul(rank + 1),
        torch.ones(2, 3, 4, 5).mul(rank + 1).to(memory_format=torch.channels_last),
        torch.tensor(float(rank)),
        torch.full((9 << 20,), 0.5),  # more than one bucket
    ]
    processes.add(tensors)
    meta, state = processes.of_first(
        {"from": rank, "time": 0.1 + rank}, {"a": torch.full((2, 2), rank, dtype=torch.int64)} if rank == 0 else {}
    )
    moved = {"weight": torch.ones(3), "bias": torch.tensor([0.1 + 0.2]) + rank * 2**-25, "step": torch.tensor(1.0)}
    processes.check_same({"weight": moved["weight"]})
    return {
        "sums": [tensors[0].tolist(), float(tensors[1].max()), float(tensors[2]), float(tensors[3].sum())],
        "largest": processes.largest(rank, -rank, 1.5),
        "of first": [meta, state["a"].tolist()],
        "different": raised(processes.check_same, moved),
        "few": raised(processes.check_batch, "teacher", 1),
    }


def failing(processes: Processes, broken: tuple[int, ...], interrupted: int | None = None) -> None:
    """All leave an inner and an outer body where ``broken`` ranks meet an error, or one a request to stop."""
    with processes.together(), processes.together():
        if processes.rank in broken:
            raise InputError(f"broken file {processes.rank}")
        if processes.rank == interrupted:
            raise Interrupted


def stopped_and_resumed(config: Config, out: Path, rank: int) -> list:
    """A signal that reaches one process alone, once in each stage; then to the end."""
    found = []
    for stage, who in ((TeacherStage, 1), (PriorStage, 0)):
        step = stage.step

        def stopping(self, index, progress, step=step, who=who):
            metrics = step(self, index, progress)
            if index == 2 and rank == who:
                os.kill(os.getpid(), signal.SIGTERM)
            return metrics

        stage.step = stopping
        try:
            train(config, out, device="cpu", say=found.append)
        except Interrupted as stop:
            found.append(str(stop))
        stage.step = step
    train(config, out, device="cpu", say=found.append)
    return found


def one_breaks(config: Config, out: Path, rank: int) -> list:
    """A slice that only process 1 cannot read, in its second step."""
    batches = KspaceSource.batches

    def breaking(self, count, *key, positions=None):
        if rank == 1 and key[-1] == 1:
            raise InputError("scan.h5: slice 3 is damaged")
        return batches(self, count, *key, positions=positions)

    KspaceSource.batches = breaking
    found = raised(lambda: train(config, out, device="cpu", say=lambda line: None))
    KspaceSource.batches = batches
    return found


@contextmanager
def exploding(steps: int = 2, item: int = 2) -> Iterator[None]:
    """K-space of one slice, in batches of the teacher, is multiplied after some steps."""
    batches = KspaceSource.batches

    def reading(self, count, *key, positions=None):
        found = batches(self, count, *key, positions=positions)
        items = self.slices.draw_items(count, *key)
        broken = [items[k] == item and key[1] == "teacher" and key[-1] >= steps for k in positions or ()]
        factor = torch.ones(len(found)).masked_fill(torch.tensor(broken or [False]), 1e30)
        return replace(found, measured=found.measured * factor[:, None, None, None])

    KspaceSource.batches = reading
    yield
    KspaceSource.batches = batches


def disk_full(config: Config, out: Path) -> list:
    """The first process finds no space for its checkpoint."""
    free = checkpoint.shutil.disk_usage
    checkpoint.shutil.disk_usage = lambda folder: SimpleNamespace(free=1000)
    found = raised(lambda: train(config, out, device="cpu", say=lambda line: None))
    checkpoint.shutil.disk_usage = free
    return found


def threads_of_group() -> int:
    """Those of gloo that run what the group was asked."""
    gc.collect()
    return sum("gloo_runloop" in (task / "comm").read_text() for task in Path("/proc/self/task").glob("*"))


def main(scans: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    rank, prepared = dist.get_rank(), []
    one = TrainingSlices._prepared

    def noting(self, item, threads=None):
        prepared.append(item)
        return one(self, item, threads)

    with joined(CPU) as processes:
        found = {"exchanged": exchanged(processes)}
        for name, broken in (("second", (1,)), ("both", (0, 1)), ("none", ())):
            found[name] = raised(failing, processes, broken)
        found["interrupted"] = raised(failing, processes, (), 1)
        found["interrupted and broken"] = raised(failing, processes, (1,), 0)
    TrainingSlices._prepared = noting
    lines = []
    train(settings(scans, "steps=1"), out / "short", stage="teacher", device="cpu", say=lines.append)
    found["prepared"] = prepared
    TrainingSlices._prepared = one
    train(settings(scans), out / "plain", device="cpu", say=lines.append)
    train(settings(scans, "teacher.accumulate=2", "prior.accumulate=3"), out / "parts", device="cpu", say=lines.append)
    found["said"] = lines
    found["stopped"] = stopped_and_resumed(settings(scans), out / "stopped", rank)
    found["one breaks"] = one_breaks(settings(scans), out / "broken", rank)
    found["diverged"] = raised(
        lambda: train(settings(scans, "teacher.learning_rate=1e30", "teacher.clip=1e30"), out / "nan", device="cpu")
    )
    with exploding():
        train(settings(scans), out / "exploded", stage="teacher", device="cpu", say=lines.append)
    found["full"] = disk_full(settings(scans), out / "full")
    found["refused"] = raised(lambda: train(settings(scans, "seed=1"), out / "plain", device="cpu", say=lines.append))
    found["threads before"] = threads_of_group()
    dist.destroy_process_group()
    found["threads after"] = threads_of_group()
    (out / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
