"""Training: scans to teacher to one-step prior, resumable at any time by the same call."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import Location, is_uri, refuse_secrets
from rsdmri.data.simulate import write_simulated
from rsdmri.errors import InputError
from rsdmri.files import output_directory
from rsdmri.privacy import pseudonymous_path
from rsdmri.progress import progress
from rsdmri.runtime import prepare_process, select_device
from rsdmri.workflows.plan import Plan, check_coverage, mask_law, open_slices, plan_training
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.sources import open_source
from rsdmri.workflows.trainer import Budget, Say, StageName, Trainer


def train(
    config: Config,
    out: Path,
    *,
    stage: StageName = "all",
    budget: float | None = None,
    device: str = "auto",
    dry_run: bool = False,
    draw: bool = True,
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
        draw: in a dry run, draw ``out/coverage.png`` too; a training always does.
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
            slices, plan, words = _open(config, out, say)
            if dry_run and draw:
                _draw_coverage(plan, out)
            for line in check_coverage(config, plan.coverage):
                say(line)
            if folder is None:
                return out
            _prepare(slices)
            _draw_coverage(plan, out)
        except InputError:
            if folder is not None:
                folder.give_up()
            raise
        source = open_source(_recorded(config), slices, target)
        trainer = Trainer(_recorded(config), folder, source, plan, target, words, say)
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


def _draw_coverage(plan: Plan, out: Path) -> None:
    from rsdmri.report.coverage import coverage_figure
    from rsdmri.report.png import save_png

    save_png(coverage_figure(plan.coverage), output_directory(out) / "coverage.png")


def _dry_run_simulated(config: Config, out: Path, say: Say) -> Path:
    """Plan for simulated data without writing anything where the run would go."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        few = config.model_copy(update={"simulate": config.simulate.model_copy(update={"scans": 3, "slices": 1})})
        say(f"dry run: figures from 3 sample slices; the run would simulate {config.simulate.scans} scans")
        _, plan, _ = _open(few, Path(scratch), say)
        for line in check_coverage(few, plan.coverage):
            say(line)
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
