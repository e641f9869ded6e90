"""How sure a mean over few volumes is: bootstrap intervals."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

INTERVAL = "95 % BCa bootstrap interval of the mean over volumes, 9999 resamples, fixed seed; from 3 volumes on"

_LEAST = 3
_RESAMPLES = 9999
_NORMAL = NormalDist()


def mean_interval(
    values: Sequence[float], *, generator: np.random.Generator, level: float = 0.95
) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap interval of the mean of independent ``values``.

    The quantiles of the resampled means are taken at ``Phi(z0 + (z0 + z) / (1 - a (z0 + z)))`` for the two normal
    quantiles z of ``level``; z0 is the normal quantile of the share of means below the mean of ``values`` (ties count
    half), ``a = sum d^3 / (6 (sum d^2)^1.5)`` with d the mean minus the means that leave one value out. The interval
    of equal values is that value.

    Returns:
        Its ends; None for fewer than 3 values, or values that are not finite: they say nothing of their spread.

    Source: Efron 1987, J. Am. Stat. Assoc. 82, 171-185.
    """
    x = np.asarray(values, np.float64)
    if len(x) < _LEAST or not np.isfinite(x).all():
        return None
    if not np.ptp(x):
        return float(x[0]), float(x[0])
    means = np.sort(x[generator.integers(len(x), size=(_RESAMPLES, len(x)))].mean(1))
    below = (np.searchsorted(means, x.mean()) + np.searchsorted(means, x.mean(), "right")) / (2 * _RESAMPLES)
    bias = _NORMAL.inv_cdf(float(np.clip(below, 1 / _RESAMPLES, 1 - 1 / _RESAMPLES)))
    d = (x - x.mean()) / (len(x) - 1)  # of the jackknife
    acceleration = float((d**3).sum() / (6 * (d**2).sum() ** 1.5))
    ends = []
    for z in (_NORMAL.inv_cdf((1 - level) / 2), _NORMAL.inv_cdf((1 + level) / 2)):
        shifted = bias + z
        ends.append(_NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)
