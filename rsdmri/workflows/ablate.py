"""Ablations: one setting varied over values and seeds, everything else alike, with a row of figures for each run.

Resumable at any time by the same call, which goes on with the run that was interrupted; more values and seeds may be
asked for later.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.config import Config
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location, is_uri, refuse_secrets
from rsdmri.errors import InputError
from rsdmri.metrics.feature_sets import select_features
from rsdmri.privacy import pseudonymous_path
from rsdmri.report.ablation import short_number
from rsdmri.runtime import prepare_process, select_device
from rsdmri.training.recovery import TrainingDivergedError
from rsdmri.workflows.ablation_folder import AblationFolder, Row, teacher_digest
from rsdmri.workflows.ablation_grid import (
    Axis,
    Cell,
    axis_named,
    base_of_recipe,
    base_of_teacher,
    cells_of,
    with_data,
)
from rsdmri.workflows.assess import assess
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.run_lock import lock_folder
from rsdmri.workflows.signals import Stop, stop_on_signal
from rsdmri.workflows.train import simulate_into, train
from rsdmri.workflows.trainer import Say, StageName

_LEAST_SAMPLES = 12  # that distances are computed of


@dataclass(frozen=True)
class Measures:
    """What priors are measured against: clean scans of other subjects, by samples and features; None: not at all."""

    reference: Location | None = None
    samples: int = 256
    features: tuple[str, ...] = ("mr-magnitude-v1",)

    def check(self, device: str) -> None:
        """Raise `InputError` where `assess` would, after hours of training."""
        if self.reference is None:
            return
        if self.samples < _LEAST_SAMPLES:
            raise InputError(f"--samples {self.samples}: must be at least {_LEAST_SAMPLES}")
        if isinstance(self.reference, str) and is_uri(self.reference):
            refuse_secrets(self.reference, "--reference")
        read_manifest(self.reference)
        for name in self.features:
            select_features(name, device)

    def words(self) -> Row | None:
        """The same as files may keep it."""
        if self.reference is None:
            return None
        where = str(self.reference)
        features = [pseudonymous_path(name) for name in self.features]
        where = where if is_uri(where) else pseudonymous_path(where)
        return {"samples": self.samples, "features": features, "reference": where}


def ablate(
    axis: str,
    out: Path,
    *,
    teacher: Path | None = None,
    recipe: Path | None = None,
    data: str | None = None,
    values: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    budget: float | None = None,
    overrides: Sequence[str] = (),
    measures: Measures = Measures(),
    device: str = "auto",
    say: Say = print,
) -> list[Row]:
    """Train a prior for each value and seed, one after the other, and return the rows of ``out/ablation.jsonl``.

    ``out/ablation.md`` has them as a table, ``out/ablation.png`` as a figure. What is finished is not done again.

    Args:
        axis: ``alpha``, ``t_max``, ``sigma_init``, ``objective``, all distilled from one teacher, or ``further-mask``,
            for which teachers are trained, too.
        out: folder.
        teacher: run folder with the finished teacher, which is not changed; not for ``further-mask``.
        recipe: of teachers and priors; only for ``further-mask``.
        data: scans; None: the run's or the recipe's.
        values: of the axis, as text; none: its defaults.
        seeds: see `cells_of`.
        steps: optimiser steps of each stage; None: as the configuration says.
        budget: seconds of each training in place of steps.
        overrides: other settings, ``key=value``.
        measures: distances to clean images.
        device: ``auto``, or a torch device.
        say: where lines for the user go.

    Errors:
        InputError: what a user can mend.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    varied = axis_named(axis)
    prepare_process()
    select_device(device)
    base = _base(varied, teacher, recipe, data, overrides, steps, budget)
    cells = cells_of(varied, base, values, seeds)
    measures.check(device)
    digest = None if teacher is None else teacher_digest(teacher / "teacher", device)
    about = {"axis": axis, "teacher": digest, "settings": _recorded(base), "budget": budget}
    about["measured"] = measures.words()
    folder = AblationFolder(out)
    folder.check(about)
    out.mkdir(parents=True, exist_ok=True)
    with stop_on_signal() as stop, lock_folder(out):
        folder.begin(about)
        if teacher is not None:
            folder.take_teacher(teacher / "teacher", str(digest))
        shared = "each run has a teacher of its own" if digest is None else f"one teacher, weights sha256 {digest}"
        _Work(varied, folder, teacher, shared, budget, measures, device, stop, say).run(cells, base)
    say(f"written: {out}/ablation.md, ablation.png, ablation.jsonl. {RESEARCH_ONLY}")
    return folder.rows()


def _base(
    axis: Axis,
    teacher: Path | None,
    recipe: Path | None,
    data: str | None,
    overrides: Sequence[str],
    steps: int | None,
    budget: float | None,
) -> Config:
    if axis.retrains:
        if teacher is not None:
            raise InputError(
                f"--teacher: the teacher sees the further mask, so that ablate {axis.name} trains one for each value; "
                "give --recipe or --data instead"
            )
        return base_of_recipe(axis, recipe, overrides, steps, budget, data)
    if recipe is not None:
        raise InputError(f"--recipe: ablate {axis.name} takes the settings of the teacher's run; give --set instead")
    if teacher is None:
        raise InputError(f"ablate {axis.name}: give --teacher, the folder of a run with a finished teacher")
    return base_of_teacher(axis, teacher, overrides, steps, budget, data)


def _recorded(config: Config) -> dict[str, Any]:
    """Settings as files may keep them."""
    path = config.data.path
    return with_data(config, path if not path or is_uri(path) else pseudonymous_path(path)).to_dict()


@dataclass(frozen=True)
class _Work:
    """What runs the cells of an ablation."""

    axis: Axis
    folder: AblationFolder
    teacher: Path | None
    shared: str
    budget: float | None
    measures: Measures
    device: str
    stop: Stop
    say: Say

    def run(self, cells: Sequence[Cell], base: Config) -> None:
        """Do the cells that have no row yet."""
        todo = [cell for cell in cells if not self._done(cell)]
        if len(todo) < len(cells):
            self.say(f"{len(cells) - len(todo)} of {len(cells)} runs finished before")
        if todo and not base.data.path:
            simulate_into(base, self.folder.path / "data")
        taken: list[float] = []
        for cell in todo:
            number = cells.index(cell) + 1
            left = self._time_left(len(todo) - len(taken), taken)
            self.say(f"run {number} of {len(cells)}: {self.axis.name} {cell.value}, seed {cell.seed}{left}")
            started = time.monotonic()
            row = self._row(cell, loud=not taken)
            taken.append(time.monotonic() - started)
            with self.stop.held():
                self.folder.add(row)
                self.folder.report(self.axis.name, self._remarks())
            self.say(_told(row))
        if not todo:
            self.folder.report(self.axis.name, self._remarks())

    def _done(self, cell: Cell) -> bool:
        rows = [row for row in self.folder.rows() if (row["value"], row["seed"]) == (cell.value, cell.seed)]
        return any("diverged" in row or "prior" in row or self.measures.reference is None for row in rows)

    def _time_left(self, count: int, taken: Sequence[float]) -> str:
        """How long ``count`` runs will take, from those of this call, of earlier ones, or the budget."""
        known = list(taken) or [row["seconds"] for row in self.folder.rows() if "seconds" in row]
        known = known or ([] if self.budget is None else [self.budget])
        if not known:
            return ""
        minutes = round(count * sum(known) / len(known) / 60)
        return f"; about {minutes // 60} h {minutes % 60:02d} min left for {count} runs"

    def _row(self, cell: Cell, *, loud: bool) -> Row:
        """Train and measure the prior of ``cell``."""
        run = self.folder.runs / cell.folder
        config = cell.config if cell.config.data.path else with_data(cell.config, str(self.folder.path / "data"))
        row: Row = {"note": RESEARCH_ONLY, "version": __version__, "axis": self.axis.key}
        row |= {"value": cell.value, "seed": cell.seed, "run": f"runs/{cell.folder}"}
        if self.teacher is not None:
            self.folder.give_teacher(run, self.teacher)
        say = self.say if loud else self._warnings
        config = config.model_copy(update={"posterior": config.posterior.model_copy(update={"share": 0.0})})
        try:
            stage: StageName = "all" if self.axis.retrains else "prior"
            if not (run / "prior" / "config.json").is_file():  # the last thing that a training writes
                train(config, run, stage=stage, budget=self.budget, device=self.device, say=say)
        except TrainingDivergedError as error:
            return row | {"diverged": f"{error.stage}: {error.problem} at step {error.step}"}
        row |= _trained(run)
        return row if self.measures.reference is None else row | self._measured(run)

    def _warnings(self, line: str) -> None:
        if line.startswith("warning") or "going on from step" in line:
            self.say(line)

    def _measured(self, run: Path) -> Row:
        """Distances of one-step samples and of the teacher's, which is measured once where all share it."""
        own = self._assessed(run, run / "assessment", teacher=self.axis.retrains)
        shared = own
        if not self.axis.retrains:
            shared = self._assessed(self.folder.teacher, self.folder.path / "teacher-assessment", teacher=True)
        ratio = own["prior"]["frechet"] / shared["teacher"]["frechet"]
        return {"prior": own["prior"], "teacher": shared["teacher"], "ratio": ratio}

    def _assessed(self, prior: Path, out: Path, *, teacher: bool) -> Row:
        """The assessment of a run or teacher in ``out``, made where it is not there yet."""
        file, reference = out / "assessment.json", self.measures.reference
        if not file.is_file() and reference is not None:
            features, samples = self.measures.features, self.measures.samples
            how = {"features": features, "samples": samples, "teacher": teacher, "device": self.device}
            assess(prior, reference, out=out, say=_nothing, **how)  # type: ignore[arg-type]
        found: Row = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _remarks(self) -> list[str]:
        """What the table says beneath."""
        return [self.shared, f"rsdmri {__version__}; settings of all runs in ablation.json"]


def _nothing(line: str) -> None:
    del line


def _trained(run: Path) -> Row:
    """Steps, seconds, and the validation of the averaged generator at the end and at its lowest."""
    meta = json.loads((run / "prior" / "config.json").read_text(encoding="utf-8"))
    rows = [row for row in read_metrics(run) if row["stage"] == "prior" and "validation" in row]
    found: Row = {"steps": meta["steps"], "seconds": meta["seconds"]}
    if rows:
        best = min(rows, key=lambda row: float(row["validation"]))
        found |= {"validation": rows[-1]["validation"]}
        found |= {"lowest validation": best["validation"], "lowest at step": best["step"]}
    return found


def _told(row: Row) -> str:
    """One line of a row."""
    if "diverged" in row:
        return f"  diverged: {row['diverged']}"
    parts = [f"{row['steps']} steps"]
    if "validation" in row:
        parts.append(f"validation {short_number(row['validation'])}")
    if "prior" in row:
        parts.append(f"Frechet distance {short_number(row['prior']['frechet'])}, {row['ratio']:.2f} of the teacher's")
    return "  " + ", ".join(parts)
