"""What clean images would have said of a prior's checkpoints: reported beside the proximal distance, never acted on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsdmri.config import Config
from rsdmri.data.remote import is_uri
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.metrics.distribution import frechet_distance
from rsdmri.metrics.features import Array
from rsdmri.metrics.magnitude_features import image_features
from rsdmri.priors import Prior
from rsdmri.training.loop import StepReport
from rsdmri.training.prior import PriorStage
from rsdmri.training.stage import Stage
from rsdmri.workflows.assess import clean_slices


class CleanReport:
    """Observer that logs ``clean``, the Frechet distance of samples to clean images, at each checkpoint of the prior.

    As many samples as clean images, of the averaged weights, from the same noise and acquisitions each time; features
    ``mr-magnitude-v1``. How well the proximal distance ranks checkpoints is how it goes along with this one.

    Args:
        config: settings; ``logging.reference`` names fully sampled scans of subjects that the training set has not.
        bank: gives the acquisitions that samples are conditioned on.
    """

    def __init__(self, config: Config, bank: Callable[[], Acquisitions]):
        self.config, self._bank = config, bank
        self._acquisitions: Acquisitions | None = None
        self._reference: Array | None = None

    def start(self, stage: Stage, report: StepReport) -> None:
        """Nothing: clean images are read when they are first needed."""

    def after_step(self, stage: Stage, report: StepReport) -> dict[str, float]:
        """Measure where a checkpoint is due."""
        due = report.progress >= 1 or report.step % self.config.checkpoints(stage.name) == 0
        return {"clean": self._distance(stage)} if due and isinstance(stage, PriorStage) else {}

    def logged(self, stage: Stage, row: dict[str, Any]) -> None:
        """Nothing: the measure is in the row."""

    def finish(self, stage: Stage, report: StepReport) -> None:
        """Nothing is left open."""

    def _distance(self, stage: PriorStage) -> float:
        self._acquisitions = self._acquisitions or self._bank()
        prior = Prior(stage.teacher, stage.average, self._acquisitions, self.config, {})
        if self._reference is None:
            source = self.config.logging.reference
            clean = clean_slices(prior, source if is_uri(source) else Path(source))
            self._reference = image_features(torch.stack([c.image for c in clean]).abs().numpy())
        images = prior.sample(len(self._reference), batch=stage.batch).abs().numpy()
        return frechet_distance(image_features(np.asarray(images)), self._reference)
