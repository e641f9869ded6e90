"""How far bands and standard deviations of reconstructions with a known target can be trusted."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def scores(results: Sequence[Any], factor: float = 1.0, *, noisy: bool = False) -> dict[str, float]:
    """Means over reconstructions: share of the object's pixels in the 90 % band, rank correlation of std and error.

    ``factor`` widens the bands; ``noisy``: and the noise of the targets, where these are as measured.
    """
    import torch

    from rsdmri.metrics.uncertainty import coverage, object_mask, rank_correlation
    from rsdmri.reconstruction.uncertainty import widened

    covered, ranks = [], []
    for found in results:
        inside = object_mask(found.target)
        low, middle, high = widened(torch.from_numpy(found.quantiles), factor).numpy()
        if noisy:
            noise = 1.645 * target_noise(found)
            low, high = middle - np.hypot(middle - low, noise), middle + np.hypot(high - middle, noise)
        covered.append(coverage(found.target, low, high, inside))
        ranks.append(rank_correlation(found.std, found.volume - found.target, inside))
    return {"coverage": sum(covered) / len(covered), "rank": sum(ranks) / len(ranks)}


def target_noise(found: Any) -> np.ndarray:
    """Standard deviation of the noise in a fully sampled image's magnitude, (slice, y, x), in its units."""
    magnitude = np.abs(found.complex_images)
    rows, columns = ((n - m) // 2 for n, m in zip(magnitude.shape[1:], found.volume.shape[1:], strict=True))
    height, width = found.volume.shape[1:]
    seen = magnitude[:, rows : rows + height, columns : columns + width]
    unit = np.divide(found.volume, seen, out=np.zeros_like(found.volume), where=seen > 0)
    return found.sigma_y[:, None, None] / np.sqrt(2) * unit


def factor(results: Sequence[Any]) -> float | None:
    """What bands must be widened by to cover 90 % of the objects of ``results``, conformal; None: nothing does."""
    from rsdmri.errors import InputError
    from rsdmri.metrics.uncertainty import object_mask
    from rsdmri.reconstruction.calibration import conformal_quantile, interval_scores

    try:
        return conformal_quantile([interval_scores(r.target, r.quantiles, object_mask(r.target)) for r in results])
    except InputError:  # draws that do not differ
        return None
