"""Event files for TensorBoard in RUN/tensorboard: scalars of each logged row, grids of samples, the configuration."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from matplotlib.image import imread

from rsdmri.config import Config
from rsdmri.errors import InputError
from rsdmri.training.loop import StepReport
from rsdmri.training.stage import Stage
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.trainer import Say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_CURE = "python -m pip install 'rsdmri[tensorboard]'"
_NAMES = ("stage", "step")  # of a row, not measured


def tensorboard_wanted(config: Config) -> bool:
    """Whether event files are to be written: ``logging.tensorboard``, ``auto`` resolved.

    Errors:
        InputError: it is ``on`` and the package is not installed.
    """
    choice = config.logging.tensorboard
    installed = choice != "off" and find_spec("tensorboard") is not None
    if choice == "on" and not installed:
        raise InputError(f"logging.tensorboard is on, but tensorboard is not installed: {_CURE}, or set it to auto")
    return installed


class TensorBoard:
    """Observer that writes one folder of event files per stage; a resumed run hides what it writes again.

    Without the package ``tensorboard`` it does nothing, after a note. What fails is said once; training goes on.

    Args:
        config: settings.
        folder: of the run.
        say: where lines for the user go.
    """

    def __init__(self, config: Config, folder: RunFolder, say: Say):
        self.config, self.folder, self.say = config, folder, say
        self._wanted = tensorboard_wanted(config)
        self._writer: SummaryWriter | None = None
        if config.logging.tensorboard == "auto" and not self._wanted:
            say(f"tensorboard is not installed, so no event files are written ({_CURE})")

    def start(self, stage: Stage, report: StepReport) -> None:
        """Open the stage's event file, from the step after ``report.step`` on."""
        if self._wanted:
            self._safely(lambda: self._open(stage.name, report.step))

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """Add the grid of samples of this step where one was drawn."""
        writer, picture = self._writer, self.folder.samples / f"{stage.name}-{report.step:08d}.png"
        if writer is not None and picture.exists():
            self._safely(lambda: writer.add_image("samples", imread(picture), report.step, dataformats="HWC"))
        return {}

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Add every number of the row."""
        writer = self._writer
        if writer is not None:
            self._safely(lambda: _add_scalars(writer, row))

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._safely(self._writer.close)
            self._writer = None

    def _open(self, stage: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # events of this step and later that an interrupted process wrote are hidden
        self._writer = SummaryWriter(self.folder.tensorboard / stage, purge_step=step + 1)
        self._writer.add_text("config", "\n".join("    " + line for line in self.config.to_toml().splitlines()), step)

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # whatever a log fails for is no reason to lose a training
            self.say(f"tensorboard: no more event files ({' '.join(str(error).split())[:120]}); training goes on")
            self._writer, self._wanted = None, False


def _add_scalars(writer: "SummaryWriter", row: dict[str, Any]) -> None:
    for name, value in row.items():
        if name not in _NAMES and isinstance(value, int | float):
            writer.add_scalar(name, value, row["step"])
