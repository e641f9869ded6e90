"""Training: scans to teacher to one-step prior, resumable at any time by the same call."""

import math
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import Location, is_uri, refuse_secrets
from rsdmri.data.simulate import write_simulated
from rsdmri.errors import InputError, Interrupted
from rsdmri.files import output_directory
from rsdmri.priors import runs_in_bfloat16
from rsdmri.privacy import pseudonymous_path
from rsdmri.progress import progress
from rsdmri.runtime import keep_freed_memory, prepare_process, process_rank, select_device
from rsdmri.training.distributed import ALONE, Processes, joined
from rsdmri.workflows.grids import Grids
from rsdmri.workflows.held_out import open_held_out
from rsdmri.workflows.plan import Plan, check_coverage, mask_law, open_slices, plan_training, time_line
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.signals import Stop, stop_on_signal
from rsdmri.workflows.snapshots import Snapshots
from rsdmri.workflows.sources import Source, check_objective, open_source
from rsdmri.workflows.tensorboard import TensorBoard, tensorboard_wanted
from rsdmri.workflows.throughput import Throughput
from rsdmri.workflows.trainer import Budget, Observer, Say, StageName, Trainer


def train(
    config: Config,
    out: Path,
    *,
    stage: StageName = "all",
    budget: float | None = None,
    device: str = "auto",
    dry_run: bool = False,
    allow_changes: bool = False,
    draw: bool = True,
    say: Say = print,
) -> Path:
    """Train the teacher and the one-step prior into the run folder ``out`` and return it.

    In each of several processes that torchrun started, the call does its share.

    Args:
        config: settings; without ``data.path`` scans are simulated under ``out/data``.
        out: run folder; a run with the same settings there goes on where it stopped.
        stage: which of the two stages.
        budget: wall-clock seconds for everything; the schedule is fitted to it.
        device: ``auto``, or a torch device.
        dry_run: print the plan and stop.
        allow_changes: go on with other settings than those of the run in ``out``, which is recorded there.
        draw: in a dry run, draw ``out/coverage.png`` too; a training always does.
        say: where lines for the user go.

    Errors:
        InputError: what a user can mend; nothing that was trained is touched.
        DiskFullError: the disk is full; the last checkpoint stays.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    started = time.monotonic()
    say = say if process_rank() == 0 else _nothing
    prepare_process()
    keep_freed_memory()
    target = select_device(device)
    if dry_run and not config.data.path:
        _check_before(config, out, stage)
        return _dry_run_simulated(config, out, target, say)
    with joined(target) as processes, ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal(held=processes.count > 1))
        folder = None if dry_run else _entered(stack, config, out, processes, allow_changes, say)
        try:
            with processes.together(), stop.at_once():
                if processes.first:
                    _check_before(config, out, stage)
            slices, location, plan, words = _open(config, out, target, say, processes, stop)
            stack.callback(slices.close)
            with processes.together(), stop.at_once():
                if dry_run and draw and processes.first:
                    _draw_coverage(plan, out)
                for line in check_coverage(config, plan.coverage):
                    say(line)
                source = open_source(_recorded(config), slices, target)
                if folder is None:
                    say(time_line(config, plan, target))
                    return out
                _prepare(source, processes)
                if processes.first:
                    _draw_coverage(plan, out)
                held_out = open_held_out(_recorded(config), location, target, say) if processes.first else None
        except (InputError, Interrupted):
            if folder is not None and processes.first:
                folder.give_up()
            raise
        with processes.together(), stop.at_once():
            if processes.first:
                folder.accept_changes(_recorded(config))
            looking = _observers(config, folder, source, plan, target, say) if processes.first else ()
            own = _recorded(config)
            trainer = Trainer(own, folder, source, plan, target, words, say, looking, held_out, stop, processes)
        say(f"to follow: {out}/metrics.jsonl, curves.png, samples/ (docs/training.md); tensorboard --logdir {out}")
        (used,) = processes.largest(time.monotonic() - started)
        left = None if budget is None else max(1.0, budget - used)
        trainer.run(stage, split_budget(left, config.teacher.share, stage))
    return out


def _nothing(line: str) -> None:
    del line


def _observers(
    config: Config, folder: RunFolder, source: Source, plan: Plan, device: torch.device, say: Say
) -> tuple[Observer, ...]:
    dtype = torch.bfloat16 if runs_in_bfloat16(config, device) else torch.float32
    return (
        Throughput(plan.operations, device, dtype),
        Snapshots(config, folder, say),
        Grids(config, folder, lambda: source.bank(plan.drop), say),
        TensorBoard(_recorded(config), folder, say),  # after the grids, which it shows
    )


def _entered(
    stack: ExitStack, config: Config, out: Path, processes: Processes, allow_changes: bool, say: Say
) -> RunFolder:
    """The run folder, which the first process locks until ``stack`` ends and gives the configuration."""
    with processes.together():
        if processes.first:
            folder = RunFolder(out)
            stack.enter_context(folder.lock())
            folder.adopt(_recorded(config), allow_changes=allow_changes, say=say)
    return folder if processes.first else RunFolder(out)


def split_budget(seconds: float | None, share: float, stage: StageName) -> Budget:
    """Divide ``seconds`` between the stages that will run."""
    if seconds is None:
        return Budget()
    if stage == "teacher":
        return Budget(teacher=seconds)
    if stage == "prior":
        return Budget(prior=seconds)
    return Budget(share * seconds, (1 - share) * seconds)


def _recorded(config: Config) -> Config:
    """The configuration as files may keep it: folders that tell of a person become pseudonyms."""
    if not config.data.path:
        return config
    return config.model_copy(
        update={"data": config.data.model_copy(update={"path": pseudonymous_path(config.data.path)})}
    )


def _check_before(config: Config, out: Path, stage: StageName) -> None:
    """Refuse at once what would otherwise fail after minutes of simulating and preparing."""
    check_objective(config)
    tensorboard_wanted(config)
    if not config.data.path:
        mask_law(config).check(config.simulate.size, config.simulate.coils, ambient=config.trains_on_kspace)
    if stage == "prior" and not (out / "teacher" / "config.json").is_file():
        raise InputError(f"--stage prior: {out} holds no finished teacher; run --stage teacher there first, or all")


def _open(
    config: Config, out: Path, device: torch.device, say: Say, processes: Processes, stop: Stop
) -> tuple[TrainingSlices, Location, Plan, str]:
    if config.data.path:
        words = config.data.path
        if is_uri(words):
            refuse_secrets(words, "--data")
        source: Location = words if is_uri(words) else Path(words)
        words = words if is_uri(words) else pseudonymous_path(words)
    else:
        say("no --data given: training on simulated scans (warped ICBM152 anatomy)")
        source, words = out / "data", "simulated scans"
        with processes.together(), stop.at_once():
            if processes.first:
                simulate_into(config, out / "data")
    with processes.together(), stop.at_once():
        slices = open_slices(config, source)
        plan = plan_training(config, slices, words, device, processes.count)
    for line in plan.lines:
        say(line)
    return slices, source, plan, words


def simulate_into(config: Config, folder: Path) -> Path:
    """Write the configuration's simulated scans into ``folder``, those already there excepted."""
    settings = config.simulate
    with progress("Simulating scans", total=settings.scans) as bar:
        return write_simulated(folder, **settings.model_dump(), progress=lambda *_: bar.advance())


def _prepare(source: Source, processes: Processes) -> None:
    """Each process prepares its share of the slices; what it has not is prepared as it is drawn."""
    with progress("Preparing coil maps", total=len(range(len(source))[processes.share])) as bar:
        source.prepare(bar.advance, processes.share)


def _draw_coverage(plan: Plan, out: Path) -> None:
    from rsdmri.report.coverage import coverage_figure
    from rsdmri.report.png import save_png

    save_png(coverage_figure(plan.coverage), output_directory(out) / "coverage.png")


def _dry_run_simulated(config: Config, out: Path, device: torch.device, say: Say) -> Path:
    """Plan for simulated data without writing anything where the run would go."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        few = config.model_copy(update={"simulate": config.simulate.model_copy(update={"scans": 3, "slices": 1})})
        say(f"dry run: figures from 3 sample slices; the run would simulate {config.simulate.scans} scans")
        _, _, plan, _ = _open(few, Path(scratch), device, say, ALONE, Stop())
        for line in check_coverage(few, plan.coverage):
            say(line)
        say(time_line(config, plan, device))
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
