"""Pictures of a stage as it trains: grids of samples in RUN/samples and learning curves in RUN/curves.png."""

import time
from collections.abc import Callable
from typing import Any, cast

from rsdmri.config import Config
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.distillation.generator import Generator
from rsdmri.priors import Prior
from rsdmri.report.figures import curves_figure, image_grid, save_png
from rsdmri.training.loop import StepReport
from rsdmri.training.prior import PriorStage
from rsdmri.training.stage import Stage
from rsdmri.workflows.run_folder import RunFolder, read_metrics
from rsdmri.workflows.trainer import Say

IMAGES, HEUN_STEPS = 16, 6
TIMES, SHARE = 10, 0.03  # grids of a stage, and the share of its time that they may take
_WORK = 100  # of a grid, before one was timed: about as many images of a training step, and a second for figures


class Grids:
    """Observer that draws the same 16 noises and acquisitions through the averaged weights again and again.

    The teacher by 6 Heun steps, the prior in one. By default ten times a stage, where that keeps to 3 % of its time,
    and at its end. Random streams are its own and the averages are not changed. What fails is said once; training goes
    on.

    Args:
        config: settings.
        folder: of the run.
        bank: gives the acquisitions that samples are conditioned on.
        say: where lines for the user go.
    """

    def __init__(self, config: Config, folder: RunFolder, bank: Callable[[], Acquisitions], say: Say):
        self.config, self.folder, self.say = config, folder, say
        self.every = config.logging.grid_every
        self._bank, self._acquisitions = bank, cast(Acquisitions | None, None)
        self._begun = self._done = 0.0
        self._spent = self._cost = 0.0
        self._batch = 1
        self._failed = False

    def start(self, stage: Stage, report: StepReport) -> None:
        """Remove grids of steps that a resumed run takes again."""
        self._begun, self._done, self._spent, self._cost = report.elapsed, report.progress, 0.0, 0.0
        self._batch = stage.batch
        for path in self.folder.samples.glob(f"{stage.name}-????????.png"):
            if int(path.stem[-8:]) > report.step:
                path.unlink()

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """Draw where it is time."""
        if self.every != 0 and stage.name != "posterior" and (report.progress >= 1 or self._due(report)):
            self._done = report.progress
            started = time.monotonic()
            self._safely(lambda: self._draw(stage, report.step))
            if report.progress < 1:
                self._safely(self._curves)
            self._cost = time.monotonic() - started
            self._spent += self._cost
        return {}

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Nothing: curves are drawn from the file of rows."""

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Bring the curves up to date, with the last rows."""
        if self.every != 0 and report.elapsed > self._begun:
            self._safely(self._curves)

    def _due(self, report: StepReport) -> bool:
        if self.every:
            return report.step % self.every == 0
        passed = int(TIMES * report.progress) > int(TIMES * self._done)
        guess = self._cost or 1 + _WORK / self._batch * report.elapsed / report.step
        return passed and self._spent + guess <= SHARE * (report.elapsed - self._begun)

    def _draw(self, stage: Stage, step: int) -> None:
        if self._acquisitions is None:
            self._acquisitions = self._bank()
        average = stage.averages.result
        if isinstance(stage, PriorStage):
            prior = Prior(stage.teacher, cast(Generator, average), self._acquisitions, self.config, {})
        else:
            prior = Prior(cast(Denoiser, average), None, self._acquisitions, self.config, {})
        few = prior.generator is None
        images = prior.sample(IMAGES, teacher=few, steps=HEUN_STEPS, batch=min(stage.batch, IMAGES))
        how = f"{HEUN_STEPS} Heun steps" if few else "one step"
        figure = image_grid(images.abs().numpy(), heading=f"{stage.name}, step {step}: averaged weights, {how}")
        self.folder.samples.mkdir(exist_ok=True)
        save_png(figure, self.folder.samples / f"{stage.name}-{step:08d}.png", dpi=100)

    def _curves(self) -> None:
        rows = read_metrics(self.folder.path)
        if rows:
            save_png(curves_figure(rows), self.folder.path / "curves.png", dpi=100)

    def _safely(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # whatever a picture fails for is no reason to lose a training
            if not self._failed:
                self.say(f"pictures: one could not be drawn ({' '.join(str(error).split())[:120]}); training goes on")
            self._failed = True
