"""The training loop: one generator that yields after each optimiser step."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rsdmri.errors import InputError
from rsdmri.training.distributed import ALONE, Processes
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


class TrainingDivergedError(InputError):
    """The loss is no longer a number."""


def run_stage(
    stage: Stage, schedule: Schedule, step: int = 0, elapsed: float = 0.0, processes: Processes = ALONE
) -> Iterator[StepReport]:
    """Take steps until the schedule is done, from ``step`` steps and ``elapsed`` seconds; yield after each.

    All ``processes`` count the time of the slowest, so that they take the same steps at the same rates.

    Errors:
        TrainingDivergedError: a loss or gradient that is not finite; the step is not to be saved.
    """
    while (progress := schedule.progress(step, elapsed)) < 1:
        started = time.monotonic()
        metrics = stage.step(step, progress)
        if not all(math.isfinite(value) for value in metrics.values()):
            raise processes.alike(
                TrainingDivergedError(
                    f"{stage.name}: not a number at step {step + 1}; lower --set {stage.name}.learning_rate and run "
                    "again from the last checkpoint"
                )
            )
        (elapsed,) = processes.largest(elapsed + time.monotonic() - started)
        step += 1
        yield StepReport(step, elapsed, schedule.progress(step, elapsed), metrics)
