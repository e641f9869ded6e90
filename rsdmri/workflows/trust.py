"""How far a finished reconstruction is to be trusted: its band, and what held-out samples say of it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.metrics.uncertainty import object_mask
from rsdmri.physics.masks import achieved_acceleration, pattern
from rsdmri.physics.noise import whiten, whitening_matrix
from rsdmri.physics.prepare import PreparedSlice
from rsdmri.physics.sense import sense
from rsdmri.reconstruction.calibration import Calibration, SpreadCalibration, kspace_factor, load_calibration
from rsdmri.reconstruction.held_out import (
    HeldOutCheck,
    HeldOutSamples,
    check,
    compare,
    informative,
    joined,
    split_mask,
)
from rsdmri.reconstruction.posterior import weights_digest
from rsdmri.reconstruction.uncertainty import quantile_estimator, widened
from rsdmri.reconstruction.undetermined import undetermined_share
from rsdmri.runtime import numpy_generator
from rsdmri.workflows.slices import SliceWork, cropped

ALIKE = 1.25  # ratio of accelerations up to which a calibration is taken to hold
LARGE = 0.3
"""Share of the magnitude that samples do not determine from which on a place is counted."""
_MANY = 0.2  # of the object


@dataclass(frozen=True)
class Trust:
    """What is known of a reconstruction's reliability: band (3, S, h, w), check, attributes and warnings."""

    quantiles: np.ndarray | None
    check: HeldOutCheck | None
    attrs: dict[str, Any]
    warnings: tuple[str, ...]
    undetermined: np.ndarray | None = None


class UndeterminedMaps:
    """Watches a `SliceWork`: ``share`` (S, h, w) is how much of each place its samples do not determine."""

    def __init__(self, scan: Scan) -> None:
        self.share = np.zeros((len(scan.kspace), *scan.crop), np.float32)
        self._crop = scan.crop

    def __call__(self, index: int, item: PreparedSlice, draws: Tensor) -> None:
        """Fill the map of one slice; see `SliceWork`."""
        image = draws.mean(dim=0)
        operator = sense(item.maps, item.mask, sets=image.ndim == 3)
        self.share[index] = cropped(undetermined_share(operator, image), self._crop)

    def judged(self, volume: np.ndarray) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Attribute ``undetermined``: the share of the object in ``volume`` above `LARGE`; a warning if it is large."""
        if not volume.any():
            return {}, ()
        share = float((self.share > LARGE)[object_mask(volume)].mean())
        many = f"the samples do not determine {100 * share:.0f} % of the object (map undetermined above {LARGE:g})"
        return {"undetermined": share}, () if share < _MANY else (f"{many}: its brightness there is the method's word",)


def checked(work: SliceWork, share: float | None, maps: UndeterminedMaps | None = None) -> Trust:
    """The band of a finished ``work``, calibrated where that is possible; with a ``share``, its held-out check.

    The factor of the band is that of the prior's calibration set, else that of held-out samples, else 1. For the check
    the scan is reconstructed once more from the other lines, which takes as long as the first time. ``maps`` are those
    that watched the work.
    """
    calibration, notes = _calibration(work)
    check_, found = None, None
    attrs, more = ({}, ()) if maps is None else maps.judged(work.volume)
    notes, unseen = notes + more, None if maps is None else maps.share
    started, measured = time.monotonic(), None
    if share is not None:
        try:
            measured = held_out_samples(work, share)
        except InputError as error:
            notes += (f"not checked: {error}",)
    if share is not None and measured is not None:
        samples, held = measured
        check_ = check(samples, spread_factor=1.0 if calibration is None else calibration.factor)
        found, note = _own_factor(samples, work)
        notes += note
        attrs |= _check_attrs(check_, found, share, held) | {"held_out_seconds": time.monotonic() - started}
    if check_ is not None and check_.alarm is not None:
        notes += (f"ALARM: {check_.alarm}",)
    if work.quantiles is None:
        return Trust(None, check_, attrs, notes, unseen)
    factor, source = 1.0, "the draws, not calibrated"
    if calibration is not None:
        factor, source = calibration.factor, f"calibration set of {calibration.scans} scans"
    elif found is not None:
        factor, source = found.factor, "held-out samples of this scan"
    attrs |= {
        "quantile_estimator": quantile_estimator(work.samples),
        "interval_factor": factor,
        "interval_source": source,
    }
    band = widened(torch.from_numpy(work.quantiles), factor).numpy()
    return Trust(band, check_, attrs, notes, unseen)


def held_out_split(scan: Scan, mask: Tensor, seed: int, share: float) -> tuple[Tensor, Tensor]:
    """Positions of ``mask``, (1, x) or (y, x), that the check of a reconstruction with ``seed`` shows and holds out."""
    return split_mask(mask, numpy_generator("held out", seed, scan.name), share)


def held_out_samples(work: SliceWork, share: float) -> tuple[HeldOutSamples, int]:
    """Samples that a second reconstruction, like ``work`` in all else, was not shown; how many positions there are.

    Noise, scale and coil maps of the second one come from what it is shown.
    """
    scan, sets = work.scan, work.sets
    shown, held = held_out_split(scan, work.mask, work.seed, share)
    parts: list[HeldOutSamples] = []

    def watch(index: int, item: PreparedSlice, draws: Tensor) -> None:
        kspace = torch.where(held, torch.from_numpy(scan.kspace[index]), 0)
        kspace = whiten(kspace, whitening_matrix(second.noise.covariance)) / item.scale
        parts.append(compare(sense(item.maps, held, sets=sets is not None), kspace, draws, item.sigma_y))

    like = (work.method, work.prior, work.samples, work.seed, work.device, sets, work.settings)
    second = SliceWork(scan, shown, *like, watch)
    second.run(lambda slices: None)
    return joined(parts), int(held.sum())


def _calibration(work: SliceWork) -> tuple[Calibration | None, tuple[str, ...]]:
    """That of the prior, where it holds for this reconstruction, and why it does not or may not."""
    stored = None if work.prior is None else work.prior.meta.get("calibration")
    if stored is None or work.prior is None or work.quantiles is None:
        return None, ()
    found = load_calibration(stored)
    settings = work.settings.model_dump_json()
    reason = found.mismatch(work.method, settings, work.samples, weights_digest(work.prior, work.settings))
    if reason is not None:
        return None, (reason,)
    notes, lines = [], pattern(work.mask)
    if "" not in (found.pattern, lines) and found.pattern != lines:
        notes.append(f"its band was calibrated with {found.pattern}, this scan has {lines}: calibrate anew")
    own = achieved_acceleration(work.mask, torch.as_tensor(work.scan.absent))
    if max(own / found.acceleration, found.acceleration / own) > ALIKE:
        notes.append(f"its band was calibrated at R {found.acceleration:g}, this scan has {own:.1f}: calibrate anew")
    return found, tuple(notes)


def _own_factor(samples: HeldOutSamples, work: SliceWork) -> tuple[SpreadCalibration | None, tuple[str, ...]]:
    """Factor of the scan's own held-out samples, or why there is none."""
    if samples.draws < 2:
        return None, ()
    if not informative(samples):
        return None, ("the band is not calibrated: noise hides the draws' spread in the held-out samples",)
    try:
        found = kspace_factor(samples, numpy_generator("calibration", work.seed, work.scan.name))
    except InputError as error:
        return None, (f"the band is not calibrated on held-out samples: {error}",)
    return found, ()


def _check_attrs(found: HeldOutCheck, factor: SpreadCalibration | None, share: float, held: int) -> dict[str, Any]:
    """Attributes of the written file; numbers that are not known are left out."""
    attrs: dict[str, Any] = {
        "held_out_share": share,
        "held_out_positions": held,
        "held_out_samples": found.samples,
        "held_out_residual": found.residual,
        "held_out_residual_error": found.residual_error,
        "held_out_predicted": found.predicted,
        "held_out_excess": found.excess,
        "held_out_explained": found.explained,
        "alarm": found.alarm or "",
    }
    if factor is not None:
        attrs |= {
            "held_out_factor": factor.factor,
            "held_out_coverage_before": factor.coverage_before,
            "held_out_coverage_after": factor.coverage_after,
        }
    return {name: value for name, value in attrs.items() if value is not None and value == value}  # NaN is not itself
