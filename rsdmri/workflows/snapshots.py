"""Keeps snapshots of the power-function averages as a stage trains, in RUN/averages."""

from typing import Any

from rsdmri.config import Config
from rsdmri.errors import InputError
from rsdmri.files import remove_orphans
from rsdmri.training.loop import StepReport
from rsdmri.training.snapshots import due, most_snapshots, rewind_snapshots, save_snapshot
from rsdmri.training.stage import Stage
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.trainer import Say


class Snapshots:
    """Observer that writes a snapshot when one is due and at the end of a stage; see `rsdmri.training.snapshots`.

    A snapshot that cannot be written is said once and left out; training goes on.

    Args:
        config: settings.
        folder: of the run.
        say: where lines for the user go.
    """

    def __init__(self, config: Config, folder: RunFolder, say: Say):
        self.config, self.path, self.say = config, folder.averages, say
        self._most = 0
        self._failed = False

    def start(self, stage: Stage, report: StepReport) -> None:
        """Remove what an interrupted process left and what the resumed one takes again."""
        number = self.config.snapshots if stage.averages.snapshot() else 0
        self._most = most_snapshots(number, self.config.snapshots_gb, stage.averages.snapshot()) if number else 0
        if number and not self._most:
            self.say(f"{stage.name}: no snapshots of averages, one takes more than snapshots_gb")
        if self.path.is_dir():
            remove_orphans(self.path)
            rewind_snapshots(self.path, stage.name, report.step)

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """Write the snapshot of this step where it is due."""
        if self._most and (due(report.step, self._most) or report.progress >= 1):
            try:
                save_snapshot(self.path, stage.name, report.step, stage.averages.snapshot(), self._most)
            except (InputError, OSError) as error:
                if not self._failed:
                    self.say(f"{stage.name}: snapshot of step {report.step} left out ({error}); training goes on")
                self._failed = True
        return {}

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Nothing: snapshots are not logged."""

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Nothing: the last snapshot was taken after the last step."""
