"""Runs the stages of a training: steps, progress, logs, checkpoints, and the priors at the end."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rsdmri import __version__
from rsdmri.config import Config
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.distillation.generator import Generator
from rsdmri.errors import InputError, Interrupted
from rsdmri.priors import Prior, build_denoiser, load_prior, save_prior
from rsdmri.progress import Bar, progress
from rsdmri.training.distributed import ALONE, Processes
from rsdmri.training.loop import Schedule, StepReport, run_stage
from rsdmri.training.posterior import PosteriorStage
from rsdmri.training.prior import PriorStage
from rsdmri.training.recovery import Draws, TrainingDivergedError
from rsdmri.training.shards import Shards
from rsdmri.training.stage import Stage
from rsdmri.training.teacher import TeacherStage
from rsdmri.workflows.domain import domain_facts
from rsdmri.workflows.keeper import Keeper
from rsdmri.workflows.plan import Plan
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.signals import Stop
from rsdmri.workflows.sources import KspaceSource, Source

StageName = Literal["all", "teacher", "prior", "posterior"]
Say = Callable[[str], None]

_SHOWN = ("loss", "score_gap", "sample_std", "images_per_s")  # beside the progress bar


@dataclass(frozen=True)
class Budget:
    """Seconds of training time for the stages; None: as many steps as the configuration says."""

    teacher: float | None = None
    prior: float | None = None
    posterior: float | None = None


class Observer(Protocol):
    """Looks on as a stage trains: measures, draws, writes elsewhere; changes nothing that training depends on."""

    def start(self, stage: Stage, report: StepReport) -> None:
        """Called before the first step, with the step that training goes on from."""

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """Called after each step; what it returns joins the metrics that are logged."""

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Called with each row that was logged."""

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Called when the stage ends or is interrupted; then it must be quick."""


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
        held_out: of the batches that checkpoints are validated on; the training's own source if there is none.
        stop: asked for by signals.
        processes: those that train; the first alone reads and writes the folder, says, validates and is looked at.
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
        held_out: Source | None = None,
        stop: Stop | None = None,
        processes: Processes = ALONE,
    ):
        self.config, self.folder, self.source, self.plan = config, folder, source, plan
        self.device, self.words, self.say, self.processes = device, words, say, processes
        self.observers = observers if processes.first else ()
        self.shards = Shards(config.workers, device, processes)
        self.bank = self._bank()
        self.held_out, self.stop = held_out or source, stop or Stop()
        self._draws = Draws()

    def run(self, stage: StageName, budget: Budget) -> None:
        """Train the stages that ``stage`` names and are not finished; a prior without a teacher needs none.

        ``all`` leaves out the posterior network where `Config.trains_posterior` says so.
        """
        distils = self.config.prior.distils
        if stage in (("all", "teacher") if distils else ("teacher",)):
            denoiser = self._untrained()
            teacher_stage = TeacherStage(self.config, denoiser, self._batches, self.shards, self.held_out.batches)
            schedule = Schedule(self._steps("teacher", budget.teacher), budget.teacher)
            facts = self._train(teacher_stage, schedule, "Training teacher", self.config.teacher.keep)
            if facts is not None:
                self._export("teacher", teacher_stage.average, None, facts)
        if stage in ("all", "prior"):
            denoiser, training = self._teacher() if distils else (self._untrained(), {})
            prior_stage = PriorStage(self.config, denoiser, self._batches, self.shards, self.source.batches)
            schedule = Schedule(self._steps("prior", budget.prior), budget.prior)
            title = "Distilling prior" if distils else "Training prior"
            facts = self._train(prior_stage, schedule, title, self.config.prior.keep)
            if facts is not None:
                self._export("prior", denoiser, prior_stage.average, facts | training)
        if stage == "posterior" or (stage == "all" and self.config.trains_posterior):
            self._run_posterior(budget)

    def _run_posterior(self, budget: Budget) -> None:
        """Fine-tune what the finished prior or teacher left, on slices whose noise is known."""
        settings = self.config.posterior
        denoiser, training = self._teacher() if settings.start == "teacher" else self._generator()
        self.source, self.held_out = _for_posterior(self.source), _for_posterior(self.held_out)
        stage = PosteriorStage(self.config, denoiser, self._batches, self.shards, self.held_out.batches)
        schedule = Schedule(self._steps("posterior", budget.posterior), budget.posterior)
        facts = self._train(stage, schedule, "Training posterior", settings.keep)
        if facts is not None:
            spread = {f"spread.{name}": tensor for name, tensor in stage.average.spread.state_dict().items()}
            self._export("posterior", stage.average.denoiser, None, facts | training, spread)

    def _train(
        self, stage: Stage, schedule: Schedule, title: str, keep: Literal["last", "best"]
    ) -> dict[str, Any] | None:
        """Run ``stage`` from its last checkpoint; return facts of the result, or None when it was finished before."""
        meta = {"kind": "training-state", "config": self.config.to_dict(), "version": __version__}
        keeper = Keeper(self.folder, stage, schedule, self.source.slices, meta, self.say, self.processes)
        report = keeper.resume()
        if report.step:
            ended = schedule.steps is None or report.step >= schedule.steps or self._at_a_loss(stage, keeper, report)
            if self._finished(keeper) and ended:
                self.say(f"{stage.name}: finished before, after {report.step} steps")
                return None
            self.say(f"{stage.name}: going on from step {report.step}")
        with self.processes.together():
            for observer in self.observers:
                observer.start(stage, report)
        try:
            with progress(title, total=100, done=100 * report.progress) as bar, self.stop.held():
                report = self._run(stage, keeper, report, bar)
        finally:
            for observer in self.observers:
                observer.finish(stage, report)
        with self.processes.together():
            return self._facts(report, stage, keeper, keep) if self.processes.first else {}

    def _run(self, stage: Stage, keeper: Keeper, report: StepReport, bar: Bar) -> StepReport:
        """Take the steps that are left, some again where they diverge; save and stop where that is asked."""
        done, every = report.progress, self.config.checkpoints(stage.name)
        while True:
            self._draws = keeper.draws
            try:
                with self.processes.together():
                    self._leave_out(report.step)
                    if report.step and report.step % every == 0:
                        self._catch_up(stage, keeper, report)
                where = report.step, report.elapsed
                for report in run_stage(stage, keeper.schedule, *where, keeper.guard, self.processes):
                    extra = self._after_step(stage, keeper, report)
                    shown = {k: f"{v:.4g}" for k, v in (report.metrics | extra).items() if k in _SHOWN}
                    bar.advance(100 * (report.progress - done), step=str(report.step), **shown)
                    done = report.progress
                    if self._at_a_loss(stage, keeper, report):
                        break
                keeper.save(report, finished=True)
                return report
            except TrainingDivergedError as error:
                report = keeper.roll_back(report, error)
            except Interrupted:
                raise Interrupted(self._save_at_stop(stage, keeper, report)) from None

    def _leave_out(self, index: int) -> None:
        """Draw no more of the slices that step ``index`` must not, and make the bank without them, too."""
        left_out = self._draws.left_out(index)
        if left_out != self.source.slices.left_out:
            self.source.slices.left_out = left_out
            self.bank = self._bank()

    def _bank(self) -> Acquisitions | None:
        return self.source.bank(self.plan.drop) if self.processes.first else None

    def _batches(self, count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        """A batch to train on, the last part of the key being its step; a signal need not wait for it."""
        with self.stop.at_once():
            self.source.slices.left_out = self._draws.left_out(key[-1] if isinstance(key[-1], int) else 0)
            return self.source.batches(count, *key, positions=positions)

    def _validate(self, stage: Stage, keeper: Keeper, report: StepReport) -> dict[str, float]:
        """The validation loss and the step to keep so far, for the log; a signal need not wait for it."""
        with self.stop.at_once():
            self.source.slices.left_out = self._draws.left_out(max(0, report.step - 1))
            found = stage.validate()
        if "validation" not in found:
            return found
        best, error = keeper.best(), found.get("validation_error", 0.0)
        beaten = best is None or best.step >= report.step or best.gives_way(found["validation"], error)
        return found | {"best": report.step if beaten or best is None else best.step}

    def _at_a_loss(self, stage: Stage, keeper: Keeper, report: StepReport) -> bool:
        """Whether ``prior.patience`` checkpoints passed without a better one, as the first process finds it."""
        patience, every = self.config.prior.patience, self.config.checkpoints(stage.name)
        if stage.name != "prior" or patience == 0 or report.step % every:
            return False
        best = keeper.best() if self.processes.first else None
        lowest = None if best is None else best.lowest_step or best.step
        over = lowest is not None and report.step - lowest >= patience * every
        if over and report.metrics:
            self.say(f"{stage.name}: no better than at step {lowest} for {patience} checkpoints; ending here")
        return any(self.processes.largest(over))

    def _catch_up(self, stage: Stage, keeper: Keeper, report: StepReport) -> None:
        """Validate the checkpoint that a stop kept from it."""
        if not self.processes.first or not keeper.unvalidated(report.step):
            return
        found = self._validate(stage, keeper, report)
        if found:
            self._log(stage, report, found)
        if "validation" in found:
            keeper.note_validation(found["validation"], found.get("validation_error", 0.0))

    def _save_at_stop(self, stage: Stage, keeper: Keeper, report: StepReport) -> str:
        try:
            keeper.save(report)
        except TrainingDivergedError as error:  # the checkpoint before is what the run goes on from
            return f"{error.stage}: stopped as it diverged after step {error.step}; run the same command to go on"
        return f"{stage.name}: stopped after step {report.step}; run the same command to go on"

    def _after_step(self, stage: Stage, keeper: Keeper, report: StepReport) -> dict[str, float]:
        """Let observers look, log, and, where it is time, validate and save; end where a signal asked for it."""
        last = report.progress >= 1
        due = last or report.step % self.config.checkpoints(stage.name) == 0
        extra: dict[str, float] = {}
        with self.processes.together():
            try:
                with self.stop.at_once():
                    for observer in self.observers:
                        extra |= observer.after_step(stage, report)
                if due and self.processes.first:
                    extra |= self._validate(stage, keeper, report)
            finally:
                if due or report.step % 10 == 0 or report.step <= 10:
                    self._log(stage, report, extra)
            if not due:
                self.stop.check()
        if due:
            keeper.save(report, extra.get("validation"), extra.get("validation_error", 0.0), finished=last)
            with self.processes.together():
                self.stop.check()
        return extra

    def _log(self, stage: Stage, report: StepReport, extra: dict[str, float]) -> None:
        if not self.processes.first:
            return
        row: dict[str, Any] = {"stage": stage.name, "step": report.step, "images": report.step * stage.batch}
        row |= {"time": round(time.time(), 3), "elapsed": round(report.elapsed, 3)} | report.metrics | extra
        self.folder.log(row)
        with self.stop.at_once():
            for observer in self.observers:
                observer.logged(stage, row)

    def _steps(self, name: Literal["teacher", "prior", "posterior"], seconds: float | None) -> int | None:
        if self.config.steps is not None:
            return self.config.steps
        return None if seconds is not None else int(getattr(self.config, name).steps)

    def _sigma_data(self) -> float:
        """Standard deviation of the images, as the first process finds it."""
        with self.processes.together(), self.stop.at_once():
            found = self.source.sigma_data() if self.processes.first else 0.0
        return self.processes.largest(found)[0]

    def _untrained(self) -> Denoiser:
        return build_denoiser(self.config, self._sigma_data(), self.device)

    def _finished(self, keeper: Keeper) -> bool:
        """Whether the stage ended before and its prior was written, as the first process finds it."""
        written = self.processes.first and (self.folder.path / keeper.stage.name / "config.json").exists()
        return any(self.processes.largest(keeper.finished and written))

    def _teacher(self) -> tuple[Denoiser, dict[str, Any]]:
        """The finished teacher, and what is told of its training."""
        return self._finished_network("teacher", lambda prior: prior.denoiser)

    def _generator(self) -> tuple[Denoiser, dict[str, Any]]:
        """The network of the finished generator, and what is told of its training."""
        return self._finished_network("prior", lambda prior: (prior.generator or prior).denoiser)

    def _finished_network(self, name: str, of: Callable[[Prior], Denoiser]) -> tuple[Denoiser, dict[str, Any]]:
        """A network of the finished stage ``name``, which the first process reads for all."""
        prior = None
        with self.processes.together():
            try:
                if self.processes.first:
                    prior = load_prior(self.folder.path / name, device=str(self.device))
            except InputError as error:
                raise InputError(f"this stage needs a finished {name} in the same run: {error}") from None
        denoiser = build_denoiser(self.config, 1.0, self.device) if prior is None else of(prior)
        facts = {} if prior is None else {f"{name}_training": prior.meta.get("training", "")}
        facts, weights = self.processes.of_first(facts, denoiser.state_dict())
        if prior is None:
            denoiser.load_state_dict(weights)
        return denoiser, facts

    def _export(
        self,
        name: str,
        denoiser: Denoiser,
        generator: Generator | None,
        facts: dict[str, Any],
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        with self.processes.together(), self.stop.at_once():
            if self.bank is not None:
                noise = self.config.posterior.noise
                facts = facts | domain_facts(self.source.slices, self.bank, self.say, noise)
                save_prior(
                    self.folder.path / name, denoiser, generator, self.bank, self.config, facts, kind=name, more=more
                )

    def _facts(self, report: StepReport, stage: Stage, keeper: Keeper, keep: Literal["last", "best"]) -> dict[str, Any]:
        """What is written beside the weights; those of ``stage`` become the best ones where these are to be kept."""
        best = keeper.load_best() if keep == "best" else keeper.best()
        kept = report.step if keep == "last" or best is None else best.step
        images = report.step * stage.batch
        facts = {
            "trained_on": self.words,
            "training": f"{report.step} steps, {images} images, {report.elapsed:.0f} s",
            "steps": report.step,
            "kept_step": kept,
            "seconds": round(report.elapsed, 1),
            "slices": len(self.source),
        }
        return facts if best is None else facts | {"best_step": best.step, "best_validation": best.validation}


def _for_posterior(source: Source) -> Source:
    return source.for_posterior() if isinstance(source, KspaceSource) else source
