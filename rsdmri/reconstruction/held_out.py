"""Acquired samples that a reconstruction was not shown, and whether it predicts them.

Some acquired lines are held out, the rest is reconstructed, and the held-out samples y are compared with A m, m being
the mean of N draws. In noise units the residual is r = sqrt(mean |A m - y|^2 / sigma_y^2). It is 1 for the true image,
but no honest method can reach that: it cannot know what was not measured. If the draws x_i are right, y and they are
exchangeable up to the noise, and

    E |A m - y|^2 = sigma_y^2 + (1 + 1/N) V,   V estimated by sum_i |A x_i - A m|^2 / (N - 1),

so that r should be p = sqrt(1 + (1 + 1/N) mean V / sigma_y^2), whatever N >= 2. The alarm compares r with p, not with
1: it means that the image errs by more than its draws admit. What it cannot see: errors at lines that nobody acquired,
and errors that the draws admit (p is large then: read it, and `HeldOutCheck.explained`).

The reconstruction that is checked saw fewer lines than the one that is delivered, which is better than it, mostly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.masks import acs_block
from rsdmri.physics.sense import Sense

SHARE = 0.1
ALARM = 1.2

_BLOCK = 8  # readout samples that share their sampling error
_CONFIDENCE = 1.645  # one-sided 95 %
_INFORMATIVE = 0.5  # predicted variance over noise variance, from which on samples tell of it

Array = NDArray[np.float64]


def check_share(share: float) -> None:
    """`InputError` for a share of held-out lines that cannot be."""
    if not 0 < share <= 0.5:
        raise InputError(f"held_out {share:g}: expected a share above 0 and at most 0.5, such as {SHARE}")


def split_mask(mask: Tensor, rng: np.random.Generator, share: float = SHARE) -> tuple[Tensor, Tensor]:
    """Shown and held-out positions of ``mask`` (1, x) or (y, x), disjoint, together all of it.

    About ``share`` of the acquired lines (points of 2-D masks), at least one, are held out, none of the ACS: scale and
    coil maps come from it. They are spread: ordered by position (points: by distance from the centre), the others
    are cut into as many runs as there are to hold out, and one of each is drawn.

    Raises:
        InputError: a share outside (0, 0.5], or nothing was acquired outside the ACS.
    """
    check_share(share)
    height, width = mask.shape
    outer = mask.clone()
    outer[acs_block(mask)] = False
    rows, columns = (axis.numpy() for axis in outer.nonzero(as_tuple=True))
    if len(columns) == 0:
        raise InputError(
            "held_out: nothing was acquired outside the centre (ACS), there is nothing to hold out; leave it"
        )
    count = min(len(columns), max(1, round(share * int(mask.sum()))))
    place = columns if height == 1 else np.hypot((rows - height // 2) / height, (columns - width // 2) / width)
    order = np.argsort(place, kind="stable")
    chosen = [int(rng.choice(run)) for run in np.array_split(order, count)]
    held = torch.zeros_like(mask)
    held[rows[chosen], columns[chosen]] = True
    return mask & ~held, held


@dataclass(frozen=True)
class HeldOutSamples:
    """Held-out positions, each of ``coils`` samples: sums over coils in units of the noise, sigma_y^2.

    ``error`` |A m - y|^2, ``spread`` of the draws' unbiased variance of A x, ``signal`` |y|^2, all (position,);
    ``block`` (position,): positions of one number share their sampling error; ``draws``: N; ``single`` (position,
    coil, 2): error and spread of each sample.
    """

    error: Array
    spread: Array
    signal: Array
    block: NDArray[np.int64]
    single: Array
    draws: int

    @property
    def coils(self) -> int:
        """Samples at each position."""
        return int(self.single.shape[1])


def compare(operator: Sense, kspace: Tensor, draws: Tensor, sigma_y: float) -> HeldOutSamples:
    """What the ``draws`` say of the held-out samples of one slice.

    Args:
        operator: A with the held-out positions for its mask, not batched.
        kspace: y, complex ``(coil, y, x)``, white noise; other positions are not read.
        draws: ``(draw, y, x)``, with sets of maps ``(draw, set, y, x)``, in the units of ``kspace``.
        sigma_y: noise per complex sample.

    Raises:
        InputError: the noise level is not known.
    """
    if not sigma_y > 0:
        raise InputError("held_out: the noise level of this scan is not known, residuals have no unit; leave it out")
    held = operator.mask.expand(kspace.shape[-2:])
    seen = operator.forward(draws)[..., held].to(torch.complex128)  # (draw, coil, position)
    measured = kspace[..., held].to(torch.complex128)
    mean = seen.mean(0)
    error = (mean - measured).abs().square() / sigma_y**2
    spread = torch.zeros_like(error)
    if len(draws) > 1:
        spread = (seen - mean).abs().square().sum(0) / (len(draws) - 1) / sigma_y**2
    rows, columns = (axis.numpy() for axis in held.nonzero(as_tuple=True))
    run = rows // _BLOCK if operator.mask.shape[0] == 1 else rows
    block = np.unique(run * kspace.shape[-1] + columns, return_inverse=True)[1].reshape(-1)
    signal = measured.abs().square() / sigma_y**2
    single = torch.stack([error, spread], -1).movedim(0, 1)
    sums = [x.sum(0).cpu().numpy() for x in (error, spread, signal)]
    return HeldOutSamples(sums[0], sums[1], sums[2], block, single.cpu().numpy(), len(draws))


def joined(parts: Sequence[HeldOutSamples]) -> HeldOutSamples:
    """Samples of several slices together; their blocks stay apart."""
    if not parts:
        raise InputError("held_out: every slice is empty, there is nothing to compare; leave it out")
    starts = np.cumsum([0, *(int(part.block.max()) + 1 for part in parts[:-1])])
    return HeldOutSamples(
        np.concatenate([part.error for part in parts]),
        np.concatenate([part.spread for part in parts]),
        np.concatenate([part.signal for part in parts]),
        np.concatenate([part.block + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.single for part in parts]),
        parts[0].draws,
    )


@dataclass(frozen=True)
class HeldOutCheck:
    """What held-out samples say of a reconstruction."""

    residual: float
    """r, in units of the noise; 1 for the true image."""
    residual_error: float
    """Standard error of ``residual``; NaN where there is a single block of samples."""
    predicted: float | None
    """p: what ``residual`` should be by the draws' own spread; None for one draw."""
    excess: float | None
    """r / p."""
    excess_low: float | None
    """Lower end of the one-sided 95 % interval of ``excess``."""
    explained: float
    """Share of the held-out signal's energy that the image predicts: 1 - (r^2 - 1) / (mean |y|^2 / sigma_y^2 - 1)."""
    samples: int
    """Complex samples held out."""
    alarm: str | None
    """Why the image is not to be trusted, one line; None where nothing speaks against it."""


def check(samples: HeldOutSamples, *, spread_factor: float = 1.0, threshold: float = ALARM) -> HeldOutCheck:
    """Judge a reconstruction by its held-out ``samples``.

    The alarm goes off where r / p exceeds ``threshold`` and, by its sampling error over blocks of samples, exceeds 1
    with 95 %. It also goes off where the samples are further from the image than from zero, with 95 %; for a single
    image, of which p is not known, this alone.

    Args:
        samples: of `compare`, several slices together by `joined`.
        spread_factor: by which the draws' standard deviation is known to be too small, see
            `rsdmri.reconstruction.calibration`.
        threshold: of r / p. The error may be larger by this factor than the draws say.
    """
    coils, size = samples.coils, len(samples.error)
    errors, signals = (_sums(samples, x) for x in (samples.error, samples.signal))
    counts = _sums(samples, np.full(size, float(coils)))
    residual, error = _root_ratio(errors, counts)
    raw = samples.signal.sum() / (coils * size)
    explained = 1 - (residual**2 - 1) / (raw - 1) if raw > 1 else math.nan
    predicted = excess = low = None
    alarm = None
    if samples.draws > 1:
        variance = samples.spread * spread_factor**2 * (1 + 1 / samples.draws)
        expected = counts + _sums(samples, variance)
        predicted = math.sqrt(expected.sum() / counts.sum())
        excess, spread = _root_ratio(errors, expected)
        low = excess - _CONFIDENCE * (0.0 if math.isnan(spread) else spread)
        if excess > threshold and low > 1:
            alarm = (
                f"held-out residual {residual:.2f} noise units, draws predict {predicted:.2f} (alarm at {threshold:g} "
                "times that): the image does not explain measured samples that it was not shown"
            )
    worse, spread = _root_ratio(errors, np.maximum(signals, 1e-12))
    if alarm is None and worse - _CONFIDENCE * (0.0 if math.isnan(spread) else spread) > 1 and raw > 1:
        alarm = (
            f"held-out residual {residual:.2f} noise units, an empty image would leave {math.sqrt(raw):.2f}: the image "
            "contradicts measured samples that it was not shown"
        )
    return HeldOutCheck(residual, error, predicted, excess, low, explained, coils * size, alarm)


def informative(samples: HeldOutSamples) -> bool:
    """Whether the draws' spread is large enough against the noise for ``samples`` to say anything of it."""
    return samples.draws > 1 and float(samples.spread.sum()) > _INFORMATIVE * samples.coils * len(samples.spread)


def _sums(samples: HeldOutSamples, values: Array) -> Array:
    """Sums over blocks."""
    return np.bincount(samples.block, values).astype(np.float64)


def _root_ratio(top: Array, bottom: Array) -> tuple[float, float]:
    """sqrt(sum top / sum bottom) over blocks and its standard error by linearisation; NaN for a single block."""
    ratio = float(top.sum() / bottom.sum())
    blocks = len(top)
    root = math.sqrt(ratio)
    if blocks < 2:
        return root, math.nan
    variance = blocks / (blocks - 1) * np.square(top - ratio * bottom).sum() / bottom.sum() ** 2
    return root, math.sqrt(variance) / (2 * root) if root > 0 else 0.0
