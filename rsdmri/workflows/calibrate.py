"""The calibration set of a prior: fully sampled scans that say how much its bands must be widened."""

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.priors import Prior, newest_prior, prior_folder
from rsdmri.progress import progress
from rsdmri.reconstruction.calibration import (
    FILE,
    LEVEL,
    Calibration,
    conformal_quantile,
    interval_scores,
    save_calibration,
)
from rsdmri.reconstruction.posterior import chosen_settings, weights_digest
from rsdmri.workflows.reconstruct import DRAWN, check_arguments, chosen_prior, reconstruct


def calibrate(
    prior: Prior,
    scans: Sequence[Scan | str | os.PathLike[str]],
    *,
    acceleration: float,
    mask: str = "random",
    center_fraction: float | None = None,
    method: str = "rsd",
    samples: int = 8,
    options: Mapping[str, Any] | None = None,
    level: float = LEVEL,
    seed: int = 0,
    folder: Path | None = None,
    skip: Callable[[str], None] | None = None,
    advance: Callable[[int], None] = lambda scans: None,
) -> Calibration:
    """Factor that makes the bands of ``prior`` cover a share of ``level``; written beside it where ``folder`` is given.

    Each scan is undersampled and reconstructed; each pixel of the object (above a tenth of the target's 99th percentile
    and above noise) says how much wider its band should be, noise of the full image included. What holds then says
    `rsdmri.reconstruction.calibration`.

    Args:
        prior: its own calibration, if it has one, plays no part.
        scans: fully sampled, not trained on, one a subject; at least 9 for 90 %.
        acceleration: R of the scans that the prior will be used for.
        mask, center_fraction: family of their masks and share in the ACS, as of `reconstruct`.
        method: with draws.
        samples, options: draws of each reconstruction and settings of the method, those that there will be.
        level: share of the object inside the band.
        seed: of masks and draws.
        folder: of the prior, where ``calibration.json`` goes.
        skip: takes a line on each scan that cannot be used and is left out; None: the first of them raises.
        advance: called with 1 after each scan.

    Raises:
        InputError: too few scans, or one without a full image.
    """
    _check(method, samples, options, level)
    bare = _without_calibration(prior)
    settings = chosen_settings(method, options, bare)
    way = {"acceleration": acceleration, "mask": mask, "center_fraction": center_fraction}
    way |= {"method": method, "samples": samples, "seed": seed, "options": options}
    measured = []
    for scan in scans:
        try:
            measured.append(_measured(scan, prior=bare, out_of_domain="warn", **way))
        except InputError as error:
            if skip is None:
                raise InputError(_named(error, scan)) from None
            skip(_named(error, scan))
        advance(1)
    scores = [needed for needed, _, _ in measured]
    factor = conformal_quantile(scores, level)
    made_with = (method, float(acceleration), settings.model_dump_json(), samples, weights_digest(prior, settings))
    found = Calibration(factor, level, len(scores), sum(map(len, scores)), *made_with, *_seen(measured))
    if folder is not None:
        save_calibration(folder, found)
    return found


def calibrate_prior(
    prior: str | os.PathLike[str] | None,
    scans: Sequence[str | os.PathLike[str]],
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
    **way: Any,
) -> Calibration:
    """`calibrate` the prior of a folder, None for the newest one, and keep the result there."""
    folder = prior_folder(newest_prior() if prior is None else Path(prior))
    with progress("Calibrating", total=len(scans)) as bar:
        found = calibrate(chosen_prior(folder, device), scans, folder=folder, advance=bar.advance, **way)
    before, level = (f"{100 * share:.0f} %" for share in (found.coverage_before, found.level))
    say(f"bands cover {before} of {found.scans} scans as they are; {found.factor:.2f} times as wide they cover {level}")
    say(f"written to {folder / FILE}")
    return found


def _check(method: str, samples: int, options: Mapping[str, Any] | None, level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"--level {level:g}: expected a share between 0 and 1, such as 0.9")
    if method not in DRAWN or samples < 2:
        raise InputError(f"--method {method}, --samples {samples}: at least 2 draws of {', '.join(DRAWN)} have a band")
    check_arguments(method, samples, options)


def _measured(scan: Scan | str | os.PathLike[str], **way: Any) -> tuple[np.ndarray, float, str]:
    """Factor that each pixel of the object needs, the share that needs none, and the pattern of the mask."""
    result = reconstruct(scan, **way)
    if result.target is None or result.quantiles is None or result.coverage is None:
        raise InputError(f"{result.scored}; calibration needs full images")
    scores = interval_scores(result.target, result.quantiles, result.object_mask)
    return scores, result.coverage, masks.pattern(torch.from_numpy(result.mask))


def _seen(measured: Sequence[tuple[np.ndarray, float, str]]) -> tuple[float, str]:
    """Mean share that needs no factor, and the pattern of most masks."""
    shares = [share for _, share, _ in measured]
    return float(np.mean(shares)), Counter(pattern for *_, pattern in measured).most_common(1)[0][0]


def _named(error: InputError, scan: Scan | str | os.PathLike[str]) -> str:
    """The line of ``error`` with the name of the scan."""
    name = scan.name if isinstance(scan, Scan) else os.fspath(scan)
    return str(error) if name in str(error) else f"{name}: {error}"


def _without_calibration(prior: Prior) -> Prior:
    bare = copy.copy(prior)
    bare.meta = {name: value for name, value in prior.meta.items() if name != "calibration"}
    return bare
