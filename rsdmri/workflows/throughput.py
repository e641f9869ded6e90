"""How fast a training runs, and how much of the machine it uses: an observer, and a trial before the start."""

import functools
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch
from rsdmri.priors import build_denoiser
from rsdmri.runtime import available_cores, torch_generator
from rsdmri.training.loop import StepReport
from rsdmri.training.shards import Shards
from rsdmri.training.stage import Stage
from rsdmri.training.teacher import TeacherStage
from rsdmri.workflows.cost import Operations, SliceSize

WINDOW = 10  # steps that a speed is averaged over
PEAK_AFTER = 10.0  # seconds of training before the machine's peak is worth a measurement
TYPICAL_SHARE = 0.35  # of the matrix peak that training reached on CPUs; see the benchmarks


class Throughput:
    """Observer that logs ``images_per_s``, ``gflops_per_s`` and, once a run is not tiny, ``peak_share``.

    Speeds are those of the last ten steps, by the clock of the training; the share is of the machine's matrix peak.

    Args:
        operations: of a step per image, for each stage by name.
        device: of the networks.
        dtype: in which the networks compute.
    """

    def __init__(self, operations: dict[str, Operations], device: torch.device, dtype: torch.dtype = torch.float32):
        self.operations, self.device, self.dtype = operations, device, dtype
        self._marks: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)
        self._begun = 0.0

    def start(self, stage: Stage, report: StepReport) -> None:
        """Begin to count at ``report``."""
        self._marks.clear()
        self._marks.append((report.step, report.elapsed))
        self._begun = report.elapsed

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """The speeds up to ``report``."""
        self._marks.append((report.step, report.elapsed))
        first, since = self._marks[0]
        seconds = report.elapsed - since
        if seconds <= 0:
            return {}
        rate = stage.batch * (report.step - first) / seconds
        speed = rate * self.operations[stage.name].total
        found = {"images_per_s": rate, "gflops_per_s": speed / 1e9}
        if report.elapsed - self._begun >= PEAK_AFTER:
            found["peak_share"] = speed / matrix_peak(self.device, self.dtype)
        return found

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Nothing to do."""

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Nothing to do."""


@functools.cache
def matrix_peak(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.4) -> float:
    """Operations per second of matrix products on ``device``, all cores together; measured once per process.

    On a CPU every core multiplies matrices of its own, as the shares of a training batch do.
    """
    on_cpu = device.type == "cpu"
    size = 512 if on_cpu else 8192
    a = torch.randn(size, size, generator=torch_generator("peak", device=device), device=device).to(dtype)
    together = max(1, available_cores() // torch.get_num_threads()) if on_cpu else 1

    def best(_: int) -> float:
        fastest, end = float("inf"), time.monotonic() + seconds
        while fastest == float("inf") or time.monotonic() < end:
            begun = time.perf_counter()
            torch.mm(a, a)
            wait_for(device)
            fastest = min(fastest, time.perf_counter() - begun)
        return 2 * size**3 / fastest

    best(0)  # the first call prepares kernels
    with ThreadPoolExecutor(together) as pool:
        return sum(pool.map(best, range(together)))


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def trial_step(config: Config, size: SliceSize, device: torch.device, shards: Shards) -> float:
    """Seconds of one step of the teacher on made-up slices of ``size``: the second of two."""
    batch = made_up(config, size, device)

    def batches(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        return batch if positions is None else batch[: len(positions)]

    stage = TeacherStage(config, build_denoiser(config, 1.0, device), batches, shards)
    stage.step(0, 0.0)
    wait_for(device)
    begun = time.perf_counter()
    stage.step(1, 0.0)
    wait_for(device)
    return time.perf_counter() - begun


def made_up(config: Config, size: SliceSize, device: torch.device) -> Batch:
    """Batch of the teacher whose slices are noise."""
    count, generator = config.teacher.batch, torch_generator("made up")
    rows = 1 if size.coils and size.lines else size.height
    mask = torch.rand(count, rows, size.width, generator=generator) < 0.5
    shape = (count, size.coils, size.height, size.width) if size.coils else (count, size.height, size.width)
    kind = torch.complex64 if config.corruption.kind == "fourier" else torch.float32
    measured = torch.randn(shape, dtype=kind, generator=generator)
    maps = torch.full(shape, size.coils**-0.5, dtype=kind) if size.coils else None
    measured = torch.where(mask[:, None] if size.coils else mask, measured, 0)
    return Batch(measured, maps, mask, mask.clone(), torch.zeros(count)).to(device)
