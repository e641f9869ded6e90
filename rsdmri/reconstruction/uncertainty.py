"""From posterior draws to maps: mean, standard deviation, and the band in which 90 % of the magnitude should lie.

How 5 % and 95 % are estimated from N draws depends on N, for a quantile beyond the draws cannot be read off them:

    N >= 19:  order statistics, interpolated at rank p (N + 1) (Hyndman & Fan 1996, type 6). Between ranks k and
              N + 1 - k a further draw lies with probability (N + 1 - 2k) / (N + 1) whatever its law.
    N < 19:   prediction limits of a normal law, mean -/+ t_(d, 0.95) s sqrt(1 + 1/N), s^2 the variance of the draws
              averaged over 3 x 3 pixels, d its degrees of freedom (`pooled_variance`): these contain a further draw
              with 90 % where magnitudes are normal, which they are not near 0. Of one pixel alone, d = N - 1, 8 draws
              hardly tell the variance. On simulated heads the average makes calibrated bands a sixth narrower.

The median is that of the draws in both cases. The band says where the *draws* lie; whether the truth lies there too is
what `rsdmri.reconstruction.calibration` and `rsdmri.reconstruction.held_out` measure.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

LEVELS = (0.05, 0.5, 0.95)
LEAST_FOR_ORDER = 19
"""Draws from which on 5 % and 95 % are ranks among them."""
POOL = 3
"""Pixels along each axis over which the variance of fewer draws is averaged."""


@dataclass(frozen=True)
class DrawSummary:
    """Maps of N draws: ``mean`` complex (..., y, x); ``std`` real and ``quantiles`` (3, ..., y, x) of the magnitude.

    ``std`` and ``quantiles`` are None for one draw, which says nothing of a spread.
    """

    mean: Tensor
    std: Tensor | None
    quantiles: Tensor | None


def summarise(draws: Tensor) -> DrawSummary:
    """Mean, standard deviation and 5, 50 and 95 % maps of ``draws`` (draw, ..., y, x), complex.

    Raises ``ValueError`` where there is no draw.
    """
    if draws.ndim < 3 or len(draws) == 0:
        raise ValueError(f"draws: expected (draw, ..., y, x), got {list(draws.shape)}")
    mean = draws.mean(0)
    if len(draws) == 1:
        return DrawSummary(mean, None, None)
    magnitude = draws.abs()
    return DrawSummary(mean, magnitude.std(0), magnitude_quantiles(magnitude))


def magnitude_quantiles(magnitude: Tensor) -> Tensor:
    """5, 50 and 95 % (3, ..., y, x) of real ``magnitude`` (draw, ..., y, x) of two draws or more, never below 0."""
    count = len(magnitude)
    if count < 2 or magnitude.ndim < 3:
        raise ValueError(f"magnitude: expected 2 draws or more (draw, ..., y, x), got {list(magnitude.shape)}")
    ordered = magnitude.sort(0).values
    if count >= LEAST_FOR_ORDER:
        return torch.stack([_at_rank(ordered, level * (count + 1)) for level in LEVELS])
    reach = prediction_reach(magnitude)
    mean, median = magnitude.mean(0), _at_rank(ordered, (count + 1) / 2)
    return torch.stack([(mean - reach).clamp_min(0).minimum(median), median, (mean + reach).maximum(median)])


def prediction_reach(magnitude: Tensor) -> Tensor:
    """How far from the mean of ``magnitude`` (draw, ..., y, x) a further normal draw lies with 90 %, (..., y, x)."""
    variance, degrees = pooled_variance(magnitude)
    factor = prediction_factor(len(magnitude), degrees.numpy(force=True))
    return torch.as_tensor(factor, dtype=variance.dtype, device=variance.device) * variance.sqrt()


def prediction_factor(count: int, degrees: ArrayLike | None = None) -> NDArray[np.float64]:
    """t_(d, 0.95) sqrt(1 + 1/N): standard deviations to each side that hold a further normal draw with 90 %.

    ``degrees`` d: of freedom of the variance; None: N - 1.
    """
    from scipy.special import stdtrit

    found = stdtrit(count - 1 if degrees is None else degrees, LEVELS[2]) * (1 + 1 / count) ** 0.5
    return np.asarray(found, np.float64)


def pooled_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over N draws, averaged over 3 x 3 pixels, and its degrees of freedom (..., 1, 1).

    With v = N - 1 and r_ij the correlations of neighbours, d = v 81 / sum_ij r_ij^2 (Satterthwaite): 9 v where draws of
    neighbours tell nothing of each other, v where they are the same. r^2 at a lag comes from all pixels of an image,

        q = sum cov_ij^2 / sum var_i var_j,   r^2 = (q - 1/v) / (1 + (1 - 2 q) / v),

    which leaves out what chance adds for normal draws. Two draws do not tell r: it counts as 1.

    Args:
        values: real (draw, ..., y, x).
    """
    known = len(values) - 1
    away = values - values.mean(0)
    variance = away.square().sum(0) / known
    total = torch.full_like(variance[..., :1, :1], float(POOL**2))  # of r_ij^2 over pairs, those of a pixel with itself
    for down in range(POOL):
        for right in range(1 - POOL if down else 1, POOL):
            share = 2 * (POOL - down) * (POOL - abs(right))
            total += share * _squared_correlation(away, variance, down, right, known)
    return pooled(variance), known * POOL**4 / total


def _squared_correlation(away: Tensor, variance: Tensor, down: int, right: int, known: int) -> Tensor:
    """r^2 (..., 1, 1) of pixels and those ``down`` and ``right`` of them; 1 where nothing varies."""
    height, width = variance.shape[-2:]
    rows = slice(0, height - down), slice(down, height)
    left = slice(max(-right, 0), width - max(right, 0)), slice(max(right, 0), width + min(right, 0))
    (one, other), (v, w) = (tuple(x[..., rows[side], left[side]] for side in (0, 1)) for x in (away, variance))
    covariance = (one * other).sum(0) / known
    top, bottom = ((x * y).sum((-2, -1), keepdim=True) for x, y in ((covariance, covariance), (v, w)))
    if known < 2:
        return torch.ones_like(bottom)
    q = torch.where(bottom > 0, top / bottom.clamp_min(torch.finfo(bottom.dtype).tiny), 1)
    return ((q - 1 / known) / (1 + (1 - 2 * q) / known).clamp_min(1e-6)).clamp(0, 1)


def quantile_estimator(count: int) -> str:
    """How `magnitude_quantiles` estimates 5 % and 95 % from ``count`` draws, in words."""
    if count >= LEAST_FOR_ORDER:
        return f"order statistics of {count} draws at rank p (N + 1)"
    return (
        f"normal prediction limits, mean -/+ at most {prediction_factor(count):.3g} std of {POOL} x {POOL} pixels; "
        f"{LEAST_FOR_ORDER} draws give 5 and 95 % as ranks, there are {count}"
    )


def widened(quantiles: Tensor, factor: float) -> Tensor:
    """The band of ``quantiles`` (3, ...) with both sides ``factor`` times as far from the median, never below 0."""
    low, middle, high = quantiles
    return torch.stack([(middle - factor * (middle - low)).clamp_min(0), middle, middle + factor * (high - middle)])


def pooled(variance: Tensor) -> Tensor:
    """Mean of (..., y, x) over `POOL` x `POOL` pixels, at the borders over those that there are."""
    planes = variance.reshape(-1, 1, *variance.shape[-2:])
    mean = avg_pool2d(planes, POOL, stride=1, padding=POOL // 2, count_include_pad=False)
    return mean.reshape(variance.shape)


def _at_rank(ordered: Tensor, rank: float) -> Tensor:
    """Value (...) at ``rank`` from 1 of ``ordered`` (draw, ...), interpolated linearly, the ends beyond them."""
    rank = min(max(rank, 1.0), float(len(ordered)))
    below = int(rank)
    above = min(below + 1, len(ordered))
    return torch.lerp(ordered[below - 1], ordered[above - 1], rank - below)
