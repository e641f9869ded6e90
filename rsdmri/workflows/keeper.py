"""What is kept of one stage in training: its checkpoints, and the way back when it diverges.

Of several processes the first alone reads and writes them, and tells the others what they must know.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import name_of
from rsdmri.errors import InputError
from rsdmri.privacy import pseudonymous
from rsdmri.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    give_up_after,
    latest_checkpoint,
    note_validation,
    save_checkpoint,
)
from rsdmri.training.distributed import ALONE, Processes
from rsdmri.training.loop import Schedule, StepReport
from rsdmri.training.manifest import DrawnItem, Entry, Record, RollBack, read_manifest
from rsdmri.training.recovery import ROLL_BACKS, Draws, Guard, TrainingDivergedError, outstanding, to_blame
from rsdmri.training.stage import Stage
from rsdmri.workflows.run_folder import RunFolder


class Keeper:
    """Saves a stage, brings it back, and steps back where it diverges; all processes call these three together.

    Args:
        folder: of the run.
        stage: freshly built; `resume` gives it the state of the last checkpoint.
        schedule: of the stage.
        slices: that it is trained on.
        meta: what each checkpoint says beside step and clock.
        say: where lines for the user go.
        processes: those that train; what else there is, the first alone may ask for.

    Attributes:
        guard: looks at each step.
        draws: what steps draw.
        finished: whether the stage ended before.
    """

    def __init__(
        self,
        folder: RunFolder,
        stage: Stage,
        schedule: Schedule,
        slices: TrainingSlices,
        meta: dict[str, Any],
        say: Callable[[str], None],
        processes: Processes = ALONE,
    ):
        self.folder, self.stage, self.schedule, self.slices = folder, stage, schedule, slices
        self.meta, self.say, self.processes = meta, say, processes
        self.guard, self.draws, self.finished = Guard(), Draws(), False
        self._saved: int | None = None  # step of the newest checkpoint
        self._start: dict[str, Tensor] = {}  # state before the first checkpoint
        self._redraw()

    @property
    def record(self) -> Record:
        """What the manifest says of the stage."""
        return read_manifest(self.folder.checkpoints).stage(self.stage.name)

    def resume(self) -> StepReport:
        """Give the stage the state of its newest whole checkpoint, if there is one, and say where it stands.

        Errors:
            InputError: there are checkpoints, but none is whole, or they are of another network.
        """
        with self.processes.together():
            saved = self._newest()
        if saved is None and self.processes.first:
            self._start = {name: tensor.detach().clone() for name, tensor in self.stage.state().items()}
        meta = self._load(saved)
        step, elapsed, self.finished = meta.get("step", 0), meta.get("elapsed", 0.0), bool(meta.get("finished"))
        self._redraw()
        with self.processes.together():
            if self.processes.first:
                self.folder.rewind_metrics(self.stage.name, step)
        return self._report(step, elapsed)

    def save(
        self, report: StepReport, validation: float | None = None, error: float = 0.0, *, finished: bool = False
    ) -> None:
        """Write the checkpoint of ``report``.

        Errors:
            TrainingDivergedError: weights or moments are not finite; nothing is written.
            DiskFullError: the disk is full.
        """
        if report.step == self._saved and finished <= self.finished:
            return
        state = self.stage.state()
        self.processes.check_same(state)
        broken = [n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise TrainingDivergedError(self.stage.name, report.step, f"{broken[0]} not finite")
        meta = {**self.meta, "elapsed": report.elapsed, "finished": finished, "norms": list(self.guard.norms)}
        with self.processes.together():
            if self.processes.first:
                if validation is None and report.step == self._saved:  # the same step again: it is known already
                    validation = self.record.generations[-1].validation
                save_checkpoint(self.folder.checkpoints, self.stage.name, report.step, state, meta, validation, error)
        self._saved, self.finished, self._start = report.step, finished, {}

    def note_validation(self, validation: float, error: float = 0.0) -> None:
        """Record the validation loss of the newest checkpoint, which has none."""
        note_validation(self.folder.checkpoints, self.stage.name, validation, error)

    def unvalidated(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` was saved before it could be validated."""
        generations = self.record.generations
        return bool(generations) and generations[-1].step == step and generations[-1].validation is None

    def best(self) -> Entry | None:
        """The checkpoint to keep so far: that of lowest validation loss, see `Entry.gives_way`."""
        return self.record.best

    def load_best(self) -> Entry | None:
        """Give the stage the state of `best`; None where there is none."""
        best = self.best()
        saved = None if best is None else best_checkpoint(self.folder.checkpoints, self.stage.name)
        if saved is not None:
            self.stage.load_state(saved.tensors)
        return best

    def roll_back(self, failed: StepReport, error: TrainingDivergedError) -> StepReport:
        """Give the stage its last good state again, and say where it stands; what it draws from there on is changed.

        Slices that make the step diverge on sound weights are left out; without such, everything is drawn anew, and if
        that was done from the same checkpoint before, from the one before it.

        Errors:
            TrainingDivergedError: this happened three times without getting past the step.
        """
        with self.processes.together():
            saved = self._newest()
            self._check_patience(saved, error)
        step = self._load(saved).get("step", 0)
        items = self._blamed(error.step - 1)
        with self.processes.together():
            older = None if items else self._before(step)
        if any(self.processes.largest(older is not None)):
            step = self._load(older)["step"]
        with self.processes.together():
            if self.processes.first:
                roll_back = RollBack(step=error.step, back_to=step, problem=error.problem, left_out=tuple(items))
                self._tell(roll_back)
                give_up_after(self.folder.checkpoints, self.stage.name, roll_back)
                self.folder.rewind_metrics(self.stage.name, step)
        self._redraw()
        return self._report(step, failed.elapsed)

    def _newest(self, before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint, in the first process."""
        if not self.processes.first:
            return None
        return latest_checkpoint(self.folder.checkpoints, self.stage.name, self._warn, before)

    def _check_patience(self, saved: Checkpoint | None, error: TrainingDivergedError) -> None:
        """Raise ``error`` anew, in the first process, where there were three roll-backs since ``saved``."""
        if not self.processes.first:
            return
        record, step = self.record, 0 if saved is None else int(saved.meta["step"])
        if len(outstanding(record.roll_backs[record.forgiven :], step)) >= ROLL_BACKS:
            after = f", after {ROLL_BACKS} roll-backs"
            raise TrainingDivergedError(error.stage, error.step, error.problem, after) from None

    def _before(self, step: int) -> Checkpoint | None:
        """The checkpoint before that of ``step``, in the first process, if all was drawn anew from there before."""
        pending = outstanding(self.record.roll_backs, step) if self.processes.first else []
        again = any(r.back_to == step and not r.left_out for r in pending)
        return self._newest(before=step) if again else None

    def _load(self, saved: Checkpoint | None) -> dict[str, Any]:
        """Give the stage the state of the first process's ``saved``, or of its start; return what is said with it."""
        state = Checkpoint(self._start, {}) if saved is None else saved
        meta, tensors = self.processes.of_first(state.meta, state.tensors)
        try:
            self.stage.load_state(tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise self.processes.alike(
                InputError(
                    f"{self.folder.checkpoints}: the checkpoint of {self.stage.name} does not fit its network "
                    f"({reason}); choose another --out"
                )
            ) from None
        self.guard, self._saved = Guard(meta.get("norms", ())), meta.get("step")
        return meta

    def _report(self, step: int, elapsed: float) -> StepReport:
        return StepReport(step, elapsed, self.schedule.progress(step, elapsed), {})

    def _redraw(self) -> None:
        """Take the roll-backs that the manifest holds into account."""
        with self.processes.together():
            known = [r.model_dump() for r in self._known()] if self.processes.first else []
        told, _ = self.processes.of_first({"roll-backs": known}, {})
        self.draws = Draws([RollBack.model_validate(r) for r in told["roll-backs"]])
        self.stage.anew = self.draws.anew

    def _known(self) -> list[RollBack]:
        """Roll-backs of the manifest; slices that other data do not have stay in."""
        stages, kept = read_manifest(self.folder.checkpoints), []
        known = stages.stage(self.stage.name).roll_backs
        if self.stage.name != "teacher":  # what the teacher could not learn from, no later stage sees
            blamed = tuple(item for r in stages.stage("teacher").roll_backs for item in r.left_out)
            known = (
                (RollBack(step=0, back_to=0, problem="in the teacher", left_out=blamed), *known) if blamed else known
            )
        for roll_back in known:
            items = tuple(item for item in roll_back.left_out if self._item(item.item) == item)
            kept.append(roll_back.model_copy(update={"left_out": items}))
        return kept

    def _item(self, item: int) -> DrawnItem | None:
        if item >= len(self.slices):
            return None
        ref = self.slices.slices[item]
        return DrawnItem(item=item, file=pseudonymous(name_of(ref.path)), slice=ref.index)

    def _blamed(self, index: int) -> list[DrawnItem]:
        """Slices that make step ``index`` diverge on the weights that the stage has now."""
        norms = self.stage.item_norms(index)
        drawn = self.slices.draw_items(len(norms), *self.stage.key(index))
        found = sorted({drawn[k] for k in to_blame(norms, self.guard.typical)})
        if len(self.slices.left_out | set(found)) == len(self.slices):
            return []
        return [item for item in map(self._item, found) if item is not None]

    def _tell(self, roll_back: RollBack) -> None:
        slices = [f"{item.file} slice {item.slice}" for item in roll_back.left_out]
        then = f"without {', '.join(slices)}" if slices else "with everything drawn anew"
        self.say(
            f"warning: {self.stage.name}: {roll_back.problem} at step {roll_back.step}; going on from step "
            f"{roll_back.back_to} {then}"
        )
        self.folder.log({"event": "rolled back", "stage": self.stage.name, **roll_back.model_dump()})

    def _warn(self, line: str) -> None:
        self.say(f"warning: {line}")
