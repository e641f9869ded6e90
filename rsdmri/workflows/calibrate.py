"""The calibration set of a prior: fully sampled scans that say how much its bands must be widened."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.metrics.uncertainty import coverage, object_mask
from rsdmri.priors import Prior
from rsdmri.reconstruction.calibration import (
    LEVEL,
    Calibration,
    conformal_quantile,
    interval_scores,
    save_calibration,
)
from rsdmri.workflows.reconstruct import check_arguments, reconstruct


def calibrate(
    prior: Prior,
    scans: Sequence[Scan | str | os.PathLike[str]],
    *,
    acceleration: float,
    method: str = "rsd",
    samples: int = 8,
    options: Mapping[str, Any] | None = None,
    level: float = LEVEL,
    seed: int = 0,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda scans: None,
) -> Calibration:
    """Factor that makes the bands of ``prior`` cover a share of ``level``; written beside it where ``folder`` is given.

    Each scan is undersampled and reconstructed, and each pixel of the object (above a tenth of the target's 99th
    percentile) says how much wider its band should be. `rsdmri.reconstruction.calibration` says what holds then.

    Args:
        prior: its own calibration, if it has one, plays no part.
        scans: fully sampled, not trained on, one a subject; at least 9 for 90 %.
        acceleration: R of the scans that the prior will be used for.
        method: with draws.
        samples: draws of each reconstruction, as many as there will be.
        options: settings of the method, those that there will be.
        level: share of the object inside the band.
        seed: of masks and draws.
        folder: of the prior, where ``calibration.json`` goes.
        advance: called with 1 after each scan.

    Raises:
        InputError: too few scans, or one without a full image.
    """
    settings = check_arguments(method, samples, options)
    bare = Prior(prior.denoiser, prior.generator, prior.bank, prior.config, _without_calibration(prior))
    scores, before, pixels = [], [], 0
    for scan in scans:
        way: dict[str, Any] = {"method": method, "acceleration": acceleration, "samples": samples, "seed": seed}
        result = reconstruct(scan, prior=bare, out_of_domain="warn", options=options, **way)
        if result.target is None or result.quantiles is None:
            raise InputError(f"{result.name}: {result.scored}; calibration needs full images and at least 2 draws")
        inside = object_mask(result.target)
        scores.append(interval_scores(result.target, result.quantiles, inside))
        before.append(coverage(result.target, result.quantiles[0], result.quantiles[2], inside))
        pixels += int(inside.sum())
        advance(1)
    factor = conformal_quantile(scores, level)
    made_with = (method, float(acceleration), settings.model_dump_json(), samples, prior.digest)
    found = Calibration(factor, level, len(scores), pixels, *made_with, float(np.mean(before)))
    if folder is not None:
        save_calibration(folder, found)
    return found


def _without_calibration(prior: Prior) -> dict[str, object]:
    return {name: value for name, value in prior.meta.items() if name != "calibration"}
