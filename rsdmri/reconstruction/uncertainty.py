"""From posterior draws to maps: mean, standard deviation, and the band in which 90 % of the magnitude should lie.

How 5 % and 95 % are estimated from N draws depends on N, for a quantile beyond the draws cannot be read off them:

    N >= 19:  order statistics, interpolated at rank p (N + 1) (Hyndman & Fan 1996, type 6). Between ranks k and
              N + 1 - k a further draw lies with probability (N + 1 - 2k) / (N + 1) whatever its law.
    N < 19:   prediction limits of a normal law, mean -/+ t_(N-1, 0.95) s sqrt(1 + 1/N), s^2 the variance of the draws
              averaged over 3 x 3 pixels: these contain a further draw with at least 90 % where magnitudes are normal,
              which they are not near 0, and are wide because one pixel's draws hardly tell its variance: 2.0 s for 8
              draws, 7.7 for 2 (1.645 for many). On simulated heads the average makes calibrated bands of 8 draws a
              sixth narrower: what varies from pixel to pixel is chance.

The median is that of the draws in both cases. The band says where the *draws* lie; whether the truth lies there too is
what `rsdmri.reconstruction.calibration` and `rsdmri.reconstruction.held_out` measure.
"""

from dataclasses import dataclass

import torch
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
    reach = prediction_factor(count) * pooled(magnitude.var(0)).sqrt()
    mean, median = magnitude.mean(0), _at_rank(ordered, (count + 1) / 2)
    return torch.stack([(mean - reach).clamp_min(0).minimum(median), median, (mean + reach).maximum(median)])


def prediction_factor(count: int) -> float:
    """t_(N-1, 0.95) sqrt(1 + 1/N): standard deviations to each side that hold a further normal draw with 90 %."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, LEVELS[2])) * (1 + 1 / count) ** 0.5


def quantile_estimator(count: int) -> str:
    """How `magnitude_quantiles` estimates 5 % and 95 % from ``count`` draws, in words."""
    if count >= LEAST_FOR_ORDER:
        return f"order statistics of {count} draws at rank p (N + 1)"
    return (
        f"normal prediction limits, mean -/+ {prediction_factor(count):.3g} std of {POOL} x {POOL} pixels; "
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
