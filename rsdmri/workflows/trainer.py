"""Runs the stages of a training: steps, progress, logs, checkpoints, and the priors at the end."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from rsdmri import __version__
from rsdmri.config import Config
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.distillation.generator import Generator
from rsdmri.errors import InputError
from rsdmri.priors import build_denoiser, load_prior, save_prior
from rsdmri.progress import progress
from rsdmri.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from rsdmri.training.distributed import ALONE, Processes
from rsdmri.training.loop import Schedule, StepReport, run_stage
from rsdmri.training.prior import PriorStage
from rsdmri.training.shards import Shards
from rsdmri.training.stage import Stage
from rsdmri.training.teacher import TeacherStage
from rsdmri.workflows.plan import Plan
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.sources import Source

StageName = Literal["all", "teacher", "prior"]
Say = Callable[[str], None]

_SHOWN = ("loss", "score_gap", "sample_std", "images_per_s")  # beside the progress bar


class Interrupted(Exception):
    """Training was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Budget:
    """Seconds of training time for the two stages; None: as many steps as the configuration says."""

    teacher: float | None = None
    prior: float | None = None


class Observer(Protocol):
    """Looks on as a stage trains: measures, draws, writes elsewhere; changes nothing that training depends on."""

    def start(self, stage: Stage, report: StepReport) -> None:
        """Called before the first step, with the step that training goes on from."""

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """Called after each step; what it returns joins the metrics that are logged."""

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Called with each row that was logged."""

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Called when the stage ends or is interrupted."""


class Trainer:
    """Runs the stages of one run folder.

    Args:
        config: settings.
        folder: where everything goes.
        source: of training batches.
        plan: worked-out numbers.
        device: of the networks.
        words: what the data are, for the model card.
        say: where lines for the user go.
        observers: look on.
        processes: those that train; the first alone writes, says and is looked at.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        source: Source,
        plan: Plan,
        device: torch.device,
        words: str,
        say: Say,
        observers: Sequence[Observer] = (),
        processes: Processes = ALONE,
    ):
        self.config, self.folder, self.source, self.plan = config, folder, source, plan
        self.device, self.words, self.say, self.processes = device, words, say, processes
        self.observers = observers if processes.first else ()
        self.shards = Shards(config.workers, device, processes)
        self.bank = source.bank(plan.drop) if processes.first else None

    def run(self, stage: StageName, budget: Budget) -> None:
        """Train the stages that ``stage`` names and are not finished."""
        if stage in ("all", "teacher"):
            denoiser = build_denoiser(self.config, self._sigma_data(), self.device)
            teacher_stage = TeacherStage(self.config, denoiser, self.source.batches, self.shards)
            schedule = Schedule(self._steps("teacher", budget.teacher), budget.teacher)
            report = self._train(teacher_stage, schedule, "Training teacher")
            if report is not None:
                self._export("teacher", teacher_stage.average, None, self._facts(report, teacher_stage.batch))
        if stage in ("all", "prior"):
            denoiser, facts = self._teacher()
            prior_stage = PriorStage(self.config, denoiser, self.source.batches, self.shards)
            schedule = Schedule(self._steps("prior", budget.prior), budget.prior)
            report = self._train(prior_stage, schedule, "Distilling prior")
            if report is not None:
                self._export("prior", denoiser, prior_stage.average, self._facts(report, prior_stage.batch) | facts)

    def _train(self, stage: Stage, schedule: Schedule, title: str) -> StepReport | None:
        """Run ``stage`` from its last checkpoint; return the last report, or None when it was finished before."""
        name, every = stage.name, self.config.checkpoint_every
        step, elapsed = 0, 0.0
        saved = self._saved(stage)
        if saved is not None:
            stage.load_state(saved.tensors)  # goes to the device by itself; Adam's step counts stay on the CPU
            step, elapsed = int(saved.meta["step"]), float(saved.meta["elapsed"])
            finished = saved.meta.get("finished") and saved.meta["exported"]
            if finished and (schedule.steps is None or step >= schedule.steps):
                self.say(f"{name}: finished before, after {step} steps")
                return None
            self.say(f"{name}: going on from step {step}")
        if self.processes.first:
            self.folder.rewind_metrics(name, step)
        report = StepReport(step, elapsed, schedule.progress(step, elapsed), {})
        done = report.progress
        for observer in self.observers:
            observer.start(stage, report)
        try:
            with progress(title, total=100, done=100 * done) as bar, stop_on_signal() as stopping:
                for report in run_stage(stage, schedule, step, elapsed, self.processes):
                    extra = self._observed(stage, report)
                    shown = {k: f"{v:.4g}" for k, v in (report.metrics | extra).items() if k in _SHOWN}
                    bar.advance(100 * (report.progress - done), step=str(report.step), **shown)
                    done = report.progress
                    if report.step % 10 == 0 or report.step <= 10:
                        self._log(stage, report, extra)
                    if report.step % every == 0:
                        self._save(stage, report, finished=False)
                    if any(self.processes.largest(stopping())):
                        self._save(stage, report, finished=False)
                        raise Interrupted(f"{name}: stopped after step {report.step}; run the same command to go on")
            self._save(stage, report, finished=True)
        finally:
            for observer in self.observers:
                observer.finish(stage, report)
        return report

    def _observed(self, stage: Stage, report: StepReport) -> dict[str, float]:
        extra: dict[str, float] = {}
        for observer in self.observers:
            extra |= observer.after_step(stage, report)
        return extra

    def _save(self, stage: Stage, report: StepReport, *, finished: bool) -> None:
        meta: dict[str, Any] = {
            "kind": "training-state",
            "elapsed": report.elapsed,
            "finished": finished,
            "config": self.config.to_dict(),
            "version": __version__,
        }
        state = stage.state()
        self.processes.check_same(state)
        with self.processes.together():
            if self.processes.first:
                save_checkpoint(self.folder.checkpoints, stage.name, report.step, state, meta)

    def _log(self, stage: Stage, report: StepReport, extra: dict[str, float]) -> None:
        if not self.processes.first:
            return
        row: dict[str, Any] = {"stage": stage.name, "step": report.step, "images": report.step * stage.batch}
        row |= {"elapsed": round(report.elapsed, 3)} | report.metrics | extra
        self.folder.log(row)
        for observer in self.observers:
            observer.logged(stage, row)

    def _steps(self, name: Literal["teacher", "prior"], seconds: float | None) -> int | None:
        if self.config.steps is not None:
            return self.config.steps
        own = self.config.teacher.steps if name == "teacher" else self.config.prior.steps
        return None if seconds is not None else own

    def _sigma_data(self) -> float:
        """Standard deviation of the images, as the first process finds it."""
        with self.processes.together():
            found = self.source.sigma_data() if self.processes.first else 0.0
        return self.processes.largest(found)[0]

    def _saved(self, stage: Stage) -> Checkpoint | None:
        """Last checkpoint of ``stage``, read by the first process for all; without one, all take its new weights."""
        saved = None
        with self.processes.together():
            if self.processes.first:
                saved = latest_checkpoint(self.folder.checkpoints, stage.name)
        if saved is None:
            meta, tensors = self.processes.of_first({}, stage.state())
        else:
            exported = (self.folder.path / stage.name / "config.json").exists()
            meta, tensors = self.processes.of_first(saved.meta | {"exported": exported}, saved.tensors)
        if meta:
            return Checkpoint(tensors, meta)
        if not self.processes.first:
            stage.load_state(tensors)
        return None

    def _teacher(self) -> tuple[Denoiser, dict[str, Any]]:
        """The finished teacher, which the first process reads for all, and what is told of its training."""
        prior = None
        with self.processes.together():
            try:
                if self.processes.first:
                    prior = load_prior(self.folder.path / "teacher", device=str(self.device))
            except InputError as error:
                raise InputError(f"--stage prior needs a finished teacher in the same run: {error}") from None
        denoiser = build_denoiser(self.config, 1.0, self.device) if prior is None else prior.denoiser
        facts = {} if prior is None else {"teacher_training": prior.meta.get("training", "")}
        facts, weights = self.processes.of_first(facts, denoiser.state_dict())
        if prior is None:
            denoiser.load_state_dict(weights)
        return denoiser, facts

    def _export(self, name: str, denoiser: Denoiser, generator: Generator | None, facts: dict[str, Any]) -> None:
        with self.processes.together():
            if self.bank is not None:
                save_prior(self.folder.path / name, denoiser, generator, self.bank, self.config, facts)

    def _facts(self, report: StepReport, batch: int) -> dict[str, Any]:
        images = report.step * batch
        return {
            "trained_on": self.words,
            "training": f"{report.step} steps, {images} images, {report.elapsed:.0f} s",
            "steps": report.step,
            "seconds": round(report.elapsed, 1),
            "slices": len(self.source),
        }


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """While the body runs, SIGINT and SIGTERM only set the flag that the yielded function returns."""
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
