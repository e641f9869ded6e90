"""Intervals that cover as often as they say: split-conformal factors by which the draws' band is widened.

Draws of a network spread too little or too much. A factor c, found on data that the draws were not made from, mends
the band: c times as far from the median to each side. Two kinds of data give it, and they are not worth the same.

* A calibration set (`interval_scores`, `conformal_quantile`): fully sampled scans that the prior was not trained on,
  undersampled and reconstructed. The guarantee is in the image, finite-sample and free of any model: over a new scan
  that is exchangeable with those of the set (same scanner, protocol, acceleration, method, number of draws), the
  expected share of its object's pixels inside the band is at least the level. The scan is what is exchangeable, as
  the pixels of one are not independent: this is conformal risk control with the share of pixels outside for its loss.
  It holds on average over scans, not for each scan, nor for each region of one: a lesion may lie outside.
* Held-out lines of the scan itself (`kspace_factor`): no other data needed. What is calibrated is the prediction of
  measured samples in k-space, and no more than roughly, as samples of one line are not independent. That the same
  factor holds for pixels is an assumption: errors at lines that nobody acquired may be larger.

Sources: Angelopoulos & Bates 2021, arXiv 2107.07511; Angelopoulos et al. 2024 (conformal risk control), arXiv
2208.02814; Gupta, Kuchibhotla & Ramdas 2022 (nested sets), Pattern Recognition 127:108496.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.files import write_text
from rsdmri.reconstruction.held_out import HeldOutSamples

LEVEL = 0.9
FILE = "calibration.json"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Factor of a calibration set, and what it holds for; stored as ``calibration.json`` beside a prior."""

    factor: float
    """By which the band is widened."""
    level: float
    """Expected share of an object's pixels inside."""
    scans: int
    pixels: int
    method: str
    acceleration: float
    settings: str
    """Of the method, JSON."""
    samples: int
    """Draws of each reconstruction."""
    prior_sha256: str
    coverage_before: float
    """Of the band as it was, mean over the scans of the set."""
    pattern: str = ""
    """Of most of the masks, see `rsdmri.physics.masks.pattern`; empty where it is not known."""

    def mismatch(self, method: str, settings: str, samples: int, prior_sha256: str) -> str | None:
        """Why it does not hold for a reconstruction, one line; None where it does."""
        for name, mine, other, told in (
            ("another prior's weights", self.prior_sha256, prior_sha256, ""),
            ("another method", self.method, method, f" ({self.method}, here {method})"),
            ("other settings of the method", self.settings, settings, ""),
            ("other draws", self.samples, samples, f" ({self.samples}, here {samples})"),
        ):
            if mine != other:
                return f"the prior's calibration is not used: it was made with {name}{told}"
        return None


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write ``calibration.json`` into the ``folder`` of a prior, atomically."""
    path = folder / FILE
    write_text(path, json.dumps({"format": 1, **asdict(calibration)}, indent=1, sort_keys=True) + "\n")
    return path


def load_calibration(values: Any, path: str = FILE) -> Calibration:
    """The calibration that ``values``, read from ``path``, describe; ``InputError`` where they are none."""
    try:
        found = Calibration(**{name: value for name, value in values.items() if name != "format"})
        if values["format"] != 1 or not (found.factor > 0 and math.isfinite(found.factor) and 0 < found.level < 1):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not a calibration of rsdmri; calibrate again, or remove the file") from None
    return found


def interval_scores(target: ArrayLike, quantiles: ArrayLike, mask: ArrayLike) -> Array:
    """The factor that each pixel of ``mask`` needs to lie inside, (pixel,).

    max((m - t) / (m - low), (t - m) / (high - m)) for the target t and the band (low, m, high); infinite where the band
    has no width on the side of the target.

    Args:
        target: real, any shape.
        quantiles: (3, ...) of it.
        mask: bool, pixels that count.
    """
    keep = np.asarray(mask)
    t = np.asarray(target, np.float64)[keep]
    low, middle, high = (np.asarray(q, np.float64)[keep] for q in np.asarray(quantiles))
    away = t - middle
    side = np.where(away < 0, middle - low, high - middle)
    scores = np.where(away == 0, 0.0, np.inf)
    np.divide(np.abs(away), side, out=scores, where=side > 0)
    return scores


def conformal_quantile(scores: Sequence[ArrayLike], level: float = LEVEL) -> float:
    """Smallest factor that a new member of the set needs, in expectation, for a share of ``level`` of its scores.

    ``scores`` holds those of each member, any number of them. With n members the factor is the smallest at which the
    shares inside add up to (n + 1) level; for one score each that is the score of rank ceil((n + 1) level).

    Raises:
        InputError: too few members for the level, or an infinite factor.
    """
    n = len(scores)
    if (n + 1) * level > n:
        least = math.ceil(level / (1 - level) - 1e-9)
        raise InputError(f"calibration: {n} scans are too few for {100 * level:g} %, at least {least} are needed")
    values = [np.asarray(part, np.float64).reshape(-1) for part in scores]
    if any(part.size == 0 for part in values):
        raise InputError("calibration: a scan shows no object; leave it out")
    pooled = np.concatenate(values)
    weights = np.concatenate([np.full(part.size, 1 / part.size) for part in values])
    order = np.argsort(pooled, kind="stable")
    reached = np.cumsum(weights[order])
    found = pooled[order][min(int(np.searchsorted(reached, (n + 1) * level - 1e-9)), len(pooled) - 1)]
    if not np.isfinite(found):
        raise InputError("calibration: the draws do not differ where they are wrong, no factor mends them; draw others")
    return float(found)


@dataclass(frozen=True)
class SpreadCalibration:
    """Factor of the held-out samples of one scan, and the share of the other half of them inside before and after."""

    factor: float
    level: float
    coverage_before: float
    coverage_after: float
    samples: int


def kspace_factor(samples: HeldOutSamples, rng: np.random.Generator, level: float = LEVEL) -> SpreadCalibration:
    """Factor c of the draws' spread with which a share of ``level`` of the held-out samples lies inside.

    A sample lies inside where |y - A m|^2 <= f (sigma_y^2 + c^2 W), W = (1 + 1/N) V: the noise is not scaled. f is the
    quantile of F(2, 2d), d ((1 - level)^(-1 / d) - 1), of complex normal errors over a variance of which W is known
    from N draws, d = (N - 1) (1 + sigma_y^2 / mean W)^2 (Satterthwaite), so that c is about 1 for draws that are right.
    These sets are nested in c, and c is the conformal quantile over one half of the positions, drawn block by block;
    coverage is that of the other half.

    Raises:
        InputError: one draw, or too few samples.
    """
    if samples.draws < 2:
        raise InputError("calibration: one draw has no spread to calibrate; draw at least 2")
    blocks = rng.permutation(int(samples.block.max()) + 1)
    first = np.isin(samples.block, blocks[: (len(blocks) + 1) // 2])
    if first.all():
        raise InputError("calibration: a single block of held-out samples cannot be halved; hold out more")
    scores = _needed(samples, level)
    factor = conformal_quantile(list(scores[first]), level)
    rest = scores[~first]
    before, after = (float(np.mean(rest <= c)) for c in (1.0, factor))
    return SpreadCalibration(factor, level, before, after, int(samples.single.shape[0] * samples.coils))


def _needed(samples: HeldOutSamples, level: float) -> Array:
    """The smallest c with which each sample (position, coil) lies inside."""
    spread = samples.single[..., 1] * (1 + 1 / samples.draws)
    mean = float(spread.mean())
    degrees = min((samples.draws - 1) * (1 + 1 / mean) ** 2, 1e6) if mean > 0 else 1e6
    bound = degrees * ((1 - level) ** (-1 / degrees) - 1)
    error = samples.single[..., 0] / bound - 1
    scores = np.where(error > 0, np.inf, 0.0)
    np.divide(error, spread, out=scores, where=(error > 0) & (spread > 0))
    return np.sqrt(scores)
