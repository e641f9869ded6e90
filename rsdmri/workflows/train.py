"""Training: scans to teacher to one-step prior, resumable at any time by the same call."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import Location, is_uri, refuse_secrets
from rsdmri.data.simulate import phase_columns
from rsdmri.data.simulate_files import write_simulated
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.errors import InputError, Interrupted
from rsdmri.files import output_directory
from rsdmri.priors import runs_in_bfloat16
from rsdmri.privacy import pseudonymous_path
from rsdmri.progress import progress
from rsdmri.runtime import keep_freed_memory, prepare_process, process_rank, select_device
from rsdmri.training.distributed import ALONE, Processes, joined
from rsdmri.workflows.clean_report import CleanReport
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
    draw: bool = False,
    say: Say = print,
) -> Path:
    """Train teacher, one-step prior and posterior network into the run folder ``out`` and return it.

    In each of several processes that torchrun started, the call does its share.

    Args:
        config: settings; without ``data.path`` scans are simulated under ``out/data``.
        out: run folder; a run with the same settings there goes on where it stopped.
        stage: which; ``all``: each that the data and the settings allow.
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
        ground = _Ground(config, out, target, processes, stop, say)
        try:
            _check_first(config, out, stage, processes, stop)
            found = ground.opened(draw=draw if dry_run else None)
            stack.callback(found.slices.close)
            if folder is None:
                return out
            held_out = ground.prepared(found)
        except (InputError, Interrupted):
            if folder is not None and processes.first:
                folder.give_up()
            raise
        trainer = ground.trainer(folder, found, held_out)
        (used,) = processes.largest(time.monotonic() - started)
        left = None if budget is None else max(1.0, budget - used)
        trainer.run(stage, split_budget(left, *_shares(config), stage=stage))
    return out


@dataclass(frozen=True)
class _Found:
    """The data of a training, opened: slices, where they are, batches, what is planned, and words for the data."""

    slices: TrainingSlices
    location: Location
    source: Source
    plan: Plan
    words: str


@dataclass(frozen=True)
class _Ground:
    """What the data of a training are opened and prepared for."""

    config: Config
    out: Path
    device: torch.device
    processes: Processes
    stop: Stop
    say: Say

    def opened(self, *, draw: bool | None) -> _Found:
        """Open the data and say the plan; ``draw`` is None in a training, and in a dry run whether to draw."""
        config = self.config
        slices, location, plan, words = _open(config, self.out, self.device, self.say, self.processes, self.stop)
        with self.processes.together(), self.stop.at_once():
            if draw:
                _draw_coverage(plan, self.out, self.processes)
            for line in check_coverage(config, plan.coverage):
                self.say(line)
            source = open_source(_recorded(config), slices, self.device)
            if draw is not None:
                self.say(time_line(config, plan, self.device))
        return _Found(slices, location, source, plan, words)

    def prepared(self, found: _Found) -> Source | None:
        """Prepare the slices, draw their coverage, and return what to validate on, for the first process."""
        with self.processes.together(), self.stop.at_once():
            _prepare(found.source, self.processes)
            _draw_coverage(found.plan, self.out, self.processes)
            if not self.processes.first:
                return None
            return open_held_out(_recorded(self.config), found.location, self.device, self.say)

    def trainer(self, folder: RunFolder, found: _Found, held_out: Source | None) -> Trainer:
        """What trains in ``folder``, the first process with those that look on."""
        config, first, say = _recorded(self.config), self.processes.first, self.say
        with self.processes.together(), self.stop.at_once():
            looking = _looking(self.config, folder, found, self.device, say) if first else ()
            parts = config, folder, found.source, found.plan, self.device, found.words
            return Trainer(*parts, say, looking, held_out, self.stop, self.processes)


def _check_first(config: Config, out: Path, stage: StageName, processes: Processes, stop: Stop) -> None:
    with processes.together(), stop.at_once():
        if processes.first:
            _check_before(config, out, stage)


def _nothing(line: str) -> None:
    del line


def _looking(config: Config, folder: RunFolder, found: _Found, device: torch.device, say: Say) -> tuple[Observer, ...]:
    """The observers of a training that begins, whose changes of settings are accepted."""
    folder.accept_changes(_recorded(config))
    say(
        f"to follow: {folder.path}/metrics.jsonl, curves.png, samples/ (docs/training.md); "
        f"tensorboard --logdir {folder.path}"
    )
    dtype = torch.bfloat16 if runs_in_bfloat16(config, device) else torch.float32

    def bank() -> Acquisitions:
        return found.source.bank(found.plan.drop)

    return (
        Throughput(found.plan.operations, device, dtype),
        Snapshots(config, folder, say),
        Grids(config, folder, bank, say),
        *((CleanReport(config, bank),) if config.logging.reference else ()),
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


def _shares(config: Config) -> tuple[float, float]:
    """Of the time budget: the teacher's in both phases, the posterior network's in all."""
    teacher = config.teacher.share if config.prior.distils else 0.0
    return teacher, config.posterior.share if config.trains_posterior else 0.0


def split_budget(seconds: float | None, share: float, posterior: float = 0.0, *, stage: StageName) -> Budget:
    """Divide ``seconds`` between the stages that will run.

    The posterior network gets the share ``posterior`` of all, the teacher ``share`` of what is left.
    """
    if seconds is None:
        return Budget()
    if stage == "teacher":
        return Budget(teacher=seconds)
    if stage == "prior":
        return Budget(prior=seconds)
    if stage == "posterior":
        return Budget(posterior=seconds)
    both = (1 - posterior) * seconds
    return Budget(share * both, (1 - share) * both, posterior * seconds if posterior else None)


def _recorded(config: Config) -> Config:
    """The configuration as files may keep it: folders that tell of a person become pseudonyms."""
    data, logging = config.data, config.logging
    if data.path:
        data = data.model_copy(update={"path": pseudonymous_path(data.path)})
    if logging.reference:
        logging = logging.model_copy(update={"reference": pseudonymous_path(logging.reference)})
    return config.model_copy(update={"data": data, "logging": logging})


def _check_before(config: Config, out: Path, stage: StageName) -> None:
    """Refuse at once what would otherwise fail after minutes of simulating and preparing."""
    check_objective(config)
    tensorboard_wanted(config)
    if not config.data.path:
        columns = phase_columns(config.simulate.size, config.simulate.phase_fov)
        mask_law(config).check(columns, config.simulate.coils, ambient=config.trains_on_kspace)
    if stage == "prior" and config.prior.distils and not (out / "teacher" / "config.json").is_file():
        raise InputError(f"--stage prior: {out} holds no finished teacher; run --stage teacher there first, or all")
    if stage == "posterior":
        _check_posterior(config, out)


def _check_posterior(config: Config, out: Path) -> None:
    """Refuse a posterior network without scans that hold lines out, or without weights to start from."""
    if not config.trains_on_kspace or config.preconditioning != "operator":
        found = f"objective {config.objective}, {config.preconditioning} preconditioning"
        raise InputError(
            f"--stage posterior: needs k-space of coils with teacher.objective ambient or fourier-ambient and "
            f"network.preconditioning operator, this run has {found}; train such a teacher first"
        )
    stage = "teacher" if config.posterior.start == "teacher" else "prior"
    if not (out / stage / "config.json").is_file():
        raise InputError(f"--stage posterior: {out} holds no finished {stage}; run --stage {stage} there first")


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


def _draw_coverage(plan: Plan, out: Path, processes: Processes) -> None:
    if not processes.first:
        return
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
