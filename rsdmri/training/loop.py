"""The training loop: one generator that yields after each optimiser step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rsdmri.training.distributed import ALONE, Processes
from rsdmri.training.recovery import Guard, TrainingDivergedError
from rsdmri.training.stage import Metrics, Stage


@dataclass(frozen=True)
class Schedule:
    """How long a stage lasts: at most ``steps`` optimiser steps and ``seconds`` of training time."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the stage that is done, in [0, 1]."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True)
class StepReport:
    """State after a step: ``step`` steps taken, ``elapsed`` seconds of training, share done, the step's metrics."""

    step: int
    elapsed: float
    progress: float
    metrics: Metrics


def run_stage(
    stage: Stage,
    schedule: Schedule,
    step: int = 0,
    elapsed: float = 0.0,
    guard: Guard | None = None,
    processes: Processes = ALONE,
) -> Iterator[StepReport]:
    """Take steps until the schedule is done, from ``step`` steps and ``elapsed`` seconds; yield after each.

    All ``processes`` count the time of the slowest, so that they take the same steps at the same rates.

    Errors:
        TrainingDivergedError: ``guard`` found something wrong with a step, which is not to be saved.
    """
    guard = Guard() if guard is None else guard
    while (progress := schedule.progress(step, elapsed)) < 1:
        started = time.monotonic()
        metrics = stage.step(step, progress)
        problem = guard.problem(metrics)
        elapsed, wrong = processes.largest(elapsed + time.monotonic() - started, problem is not None)
        if wrong:
            raise TrainingDivergedError(stage.name, step + 1, problem or "numbers of another process")
        step += 1
        yield StepReport(step, elapsed, schedule.progress(step, elapsed), metrics)
