"""How sure a mean over few volumes is: bootstrap intervals."""

from collections.abc import Sequence

import numpy as np

INTERVAL = "95 % BCa bootstrap interval of the mean over volumes, 9999 resamples, fixed seed; from 3 volumes on"

_LEAST = 3
_RESAMPLES = 9999


def mean_interval(
    values: Sequence[float], *, generator: np.random.Generator, level: float = 0.95
) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap interval of the mean of independent ``values``, in their unit.

    The interval of equal values is that value.

    Returns:
        Its ends; None for fewer than 3 values, or values that are not finite: they say nothing of their spread.

    Source: Efron 1987, J. Am. Stat. Assoc. 82, 171-185, as computed by scipy.
    """
    x = np.asarray(values, np.float64)
    if len(x) < _LEAST or not np.isfinite(x).all():
        return None
    if not np.ptp(x):
        return float(x[0]), float(x[0])
    from scipy.stats import bootstrap

    found = bootstrap((x,), np.mean, n_resamples=_RESAMPLES, confidence_level=level, method="BCa", rng=generator)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
