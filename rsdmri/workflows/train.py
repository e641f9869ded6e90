"""Training: scans to teacher to one-step prior, resumable at any time by the same call."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rsdmri import __version__
from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import Location, is_uri, refuse_secrets
from rsdmri.data.simulate import write_simulated
from rsdmri.diffusion.objectives import Batch
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.priors import BANK_BYTES, Acquisitions, Prior, build_denoiser, load_prior, save_prior
from rsdmri.privacy import pseudonymous_path
from rsdmri.progress import progress
from rsdmri.runtime import numpy_generator, prepare_process, select_device, torch_generator
from rsdmri.training.checkpoint import latest_checkpoint, save_checkpoint
from rsdmri.training.loop import Schedule, StepReport, run_stage
from rsdmri.training.shards import Shards
from rsdmri.training.stages import PriorStage, Stage, TeacherStage
from rsdmri.workflows.plan import Plan, mask_law, open_slices, plan_training
from rsdmri.workflows.run_folder import RunFolder

StageName = Literal["all", "teacher", "prior"]
Say = Callable[[str], None]


class Interrupted(Exception):
    """Training was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Budget:
    """Seconds of training time for the two stages; None: as many steps as the configuration says."""

    teacher: float | None = None
    prior: float | None = None


def train(
    config: Config,
    out: Path,
    *,
    stage: StageName = "all",
    budget: float | None = None,
    device: str = "auto",
    dry_run: bool = False,
    say: Say = print,
) -> Path:
    """Train the teacher and the one-step prior into the run folder ``out`` and return it.

    Args:
        config: settings; without ``data.path`` scans are simulated under ``out/data``.
        out: run folder; a run with the same settings there goes on where it stopped.
        stage: which of the two stages.
        budget: wall-clock seconds for everything; the schedule is fitted to it.
        device: ``auto``, or a torch device.
        dry_run: print the plan and stop.
        say: where lines for the user go.
    """
    started = time.monotonic()
    prepare_process()
    target = select_device(device)
    if dry_run and not config.data.path:
        return _dry_run_simulated(config, out, say)
    folder = None if dry_run else RunFolder(out)
    with folder.lock() if folder is not None else _nothing():
        if folder is not None:
            folder.adopt(_recorded(config))
        try:
            _check_before(config, out, stage)
            slices, plan, source = _open(config, out, say)
            if folder is None:
                return out
            _prepare(slices)
        except InputError:
            if folder is not None:
                folder.give_up()
            raise
        trainer = Trainer(_recorded(config), folder, slices, plan, target, source, say)
        left = None if budget is None else max(1.0, budget - (time.monotonic() - started))
        trainer.run(stage, split_budget(left, config.teacher.share, stage))
    return out


def split_budget(seconds: float | None, share: float, stage: StageName) -> Budget:
    """Divide ``seconds`` between the stages that will run."""
    if seconds is None:
        return Budget()
    if stage == "teacher":
        return Budget(teacher=seconds)
    if stage == "prior":
        return Budget(prior=seconds)
    return Budget(share * seconds, (1 - share) * seconds)


class Trainer:
    """Runs the stages of one run folder.

    Args:
        config: settings.
        folder: where everything goes.
        slices: prepared training data.
        plan: worked-out numbers.
        device: of the networks.
        source: what the data are, for the model card.
        say: where lines for the user go.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        slices: TrainingSlices,
        plan: Plan,
        device: torch.device,
        source: str,
        say: Say,
    ):
        self.config, self.folder, self.slices, self.plan = config, folder, slices, plan
        self.device, self.source, self.say = device, source, say
        self.shards = Shards(config.workers, device)
        self.bank = self._bank()

    def run(self, stage: StageName, budget: Budget) -> None:
        """Train the stages that ``stage`` names and are not finished."""
        if stage in ("all", "teacher"):
            denoiser = build_denoiser(self.config, self.slices.sigma_data(), self.device)
            teacher_stage = TeacherStage(self.config, denoiser, self.batches, self.shards)
            schedule = Schedule(self._steps("teacher", budget.teacher), budget.teacher)
            report = self._train(teacher_stage, schedule, "Training teacher")
            if report is not None:
                facts = self._facts(report, teacher_stage.batch)
                save_prior(self.folder.path / "teacher", teacher_stage.average, None, self.bank, self.config, facts)
        if stage in ("all", "prior"):
            teacher = self._teacher()
            prior_stage = PriorStage(self.config, teacher.denoiser, self.batches, self.shards)
            schedule = Schedule(self._steps("prior", budget.prior), budget.prior)
            report = self._train(prior_stage, schedule, "Distilling prior")
            if report is not None:
                save_prior(
                    self.folder.path / "prior",
                    teacher.denoiser,
                    prior_stage.average,
                    self.bank,
                    self.config,
                    self._facts(report, prior_stage.batch) | {"teacher_training": teacher.meta.get("training", "")},
                )

    def batches(self, count: int, *key: object) -> Batch:
        """Batch of ``count`` slices determined by ``key``, with fresh further masks, on the device."""
        items = self.slices.draw_items(count, *key)
        prepared = [self.slices[item] for item in items]
        if self.config.data.workers and key and isinstance(key[-1], int):  # the next step's, while this one is taken
            self.slices.prefetch(self.slices.draw_items(count, *key[:-1], key[-1] + 1))
        mask = torch.stack([p.mask.reshape(-1, p.mask.shape[-1]) for p in prepared])
        ref = self.slices.slices[items[0]]
        drop, acs = self.slices.further_drop(ref), self.slices.acs_of(ref)
        shown = masks.further_mask(mask, drop, acs=acs, generator=torch_generator("further", *key))
        batch = Batch(torch.stack([p.kspace for p in prepared]), torch.stack([p.maps for p in prepared]), mask, shown)
        return batch.to(self.device)

    def _train(self, stage: Stage, schedule: Schedule, title: str) -> StepReport | None:
        """Run ``stage`` from its last checkpoint; return the last report, or None when it was finished before."""
        name, every = stage.name, self.config.checkpoint_every
        step, elapsed = 0, 0.0
        saved = latest_checkpoint(self.folder.checkpoints, name)
        if saved is not None:
            stage.load_state(saved.tensors)  # goes to the device by itself; Adam's step counts stay on the CPU
            step, elapsed = int(saved.meta["step"]), float(saved.meta["elapsed"])
            finished = saved.meta.get("finished") and (self.folder.path / name / "config.json").exists()
            if finished and (schedule.steps is None or step >= schedule.steps):
                self.say(f"{name}: finished before, after {step} steps")
                return None
            self.say(f"{name}: going on from step {step}")
        self.folder.rewind_metrics(name, step)
        report = StepReport(step, elapsed, schedule.progress(step, elapsed), {})
        done = report.progress
        with progress(title, total=100, done=100 * done) as bar, stop_on_signal() as stopping:
            for report in run_stage(stage, schedule, step, elapsed):
                shown = {k: f"{v:.4g}" for k, v in report.metrics.items() if k in ("loss", "score_gap", "sample_std")}
                bar.advance(100 * (report.progress - done), step=str(report.step), **shown)
                done = report.progress
                if report.step % 10 == 0 or report.step <= 10:
                    self._log(stage, report)
                if report.step % every == 0:
                    self._save(stage, report, finished=False)
                if stopping():
                    self._save(stage, report, finished=False)
                    raise Interrupted(f"{name}: stopped after step {report.step}; run the same command to go on")
        self._save(stage, report, finished=True)
        return report

    def _save(self, stage: Stage, report: StepReport, *, finished: bool) -> None:
        meta: dict[str, Any] = {
            "kind": "training-state",
            "elapsed": report.elapsed,
            "finished": finished,
            "config": self.config.to_dict(),
            "version": __version__,
        }
        save_checkpoint(self.folder.checkpoints, stage.name, report.step, stage.state(), meta)

    def _log(self, stage: Stage, report: StepReport) -> None:
        row = {"stage": stage.name, "step": report.step, "images": report.step * stage.batch}
        self.folder.log(row | {"elapsed": round(report.elapsed, 3)} | report.metrics)

    def _steps(self, name: Literal["teacher", "prior"], seconds: float | None) -> int | None:
        if self.config.steps is not None:
            return self.config.steps
        own = self.config.teacher.steps if name == "teacher" else self.config.prior.steps
        return None if seconds is not None else own

    def _teacher(self) -> Prior:
        try:
            return load_prior(self.folder.path / "teacher", device=str(self.device))
        except InputError as error:
            raise InputError(f"--stage prior needs a finished teacher in the same run: {error}") from None

    def _facts(self, report: StepReport, batch: int) -> dict[str, Any]:
        images = report.step * batch
        return {
            "trained_on": self.source,
            "training": f"{report.step} steps, {images} images, {report.elapsed:.0f} s",
            "steps": report.step,
            "seconds": round(report.elapsed, 1),
            "slices": len(self.slices),
        }

    def _bank(self) -> Acquisitions:
        """Acquisitions of up to 64 slices of the commonest shape, within 48 MB."""
        group = self.slices.commonest()
        size = 8 * self.slices[group[0]].maps.numel()
        count = max(1, min(len(group), 64, int(BANK_BYTES // size)))
        chosen = sorted(numpy_generator(self.config.seed, "bank").choice(group, count, replace=False).tolist())
        prepared = [self.slices[item] for item in chosen]
        mask = torch.stack([p.mask.reshape(-1, p.mask.shape[-1]) for p in prepared])
        maps = torch.stack([p.maps for p in prepared])
        return Acquisitions(maps.to(self.device), mask.to(self.device), self.plan.drop)


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


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _recorded(config: Config) -> Config:
    """The configuration as files may keep it: folders that tell of a person become pseudonyms."""
    if not config.data.path:
        return config
    return config.model_copy(
        update={"data": config.data.model_copy(update={"path": pseudonymous_path(config.data.path)})}
    )


def _check_before(config: Config, out: Path, stage: StageName) -> None:
    """Refuse at once what would otherwise fail after minutes of simulating and preparing."""
    law = mask_law(config)
    if not config.data.path:
        law.check(config.simulate.size, config.simulate.coils)
    if stage == "prior" and not (out / "teacher" / "config.json").is_file():
        raise InputError(f"--stage prior: {out} holds no finished teacher; run --stage teacher there first, or all")


def _open(config: Config, out: Path, say: Say) -> tuple[TrainingSlices, Plan, str]:
    if config.data.path:
        words = config.data.path
        if is_uri(words):
            refuse_secrets(words, "--data")
        source: Location = words if is_uri(words) else Path(words)
        words = words if is_uri(words) else pseudonymous_path(words)
    else:
        say("no --data given: training on simulated scans (warped ICBM152 anatomy)")
        source, words = simulate_into(config, out / "data"), "simulated scans"
    slices = open_slices(config, source)
    plan = plan_training(config, slices, words)
    for line in plan.lines:
        say(line)
    return slices, plan, words


def simulate_into(config: Config, folder: Path) -> Path:
    """Write the configuration's simulated scans into ``folder``, those already there excepted."""
    settings = config.simulate
    with progress("Simulating scans", total=settings.scans) as bar:
        return write_simulated(folder, **settings.model_dump(), progress=lambda *_: bar.advance())


def _prepare(slices: TrainingSlices) -> None:
    with progress("Preparing coil maps", total=len(slices)) as bar:
        slices.prepare(bar.advance)


def _dry_run_simulated(config: Config, out: Path, say: Say) -> Path:
    """Plan for simulated data without writing anything where the run would go."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        few = config.model_copy(update={"simulate": config.simulate.model_copy(update={"scans": 3, "slices": 1})})
        say(f"dry run: figures from 3 sample slices; the run would simulate {config.simulate.scans} scans")
        _open(few, Path(scratch), say)
    return out


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``2h`` or ``1h30m``."""
    import re

    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total > 0 or not math.isfinite(total):
        raise InputError(f"--budget {text}: expected a time such as 90s, 30m or 2h")
    return total
