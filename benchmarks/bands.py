"""How far bands and standard deviations of reconstructions with a known target can be trusted."""

from collections.abc import Sequence
from typing import Any


def scores(results: Sequence[Any], factor: float = 1.0) -> dict[str, float]:
    """Means over reconstructions: share of the object's pixels in the 90 % band, rank correlation of std and error.

    ``factor`` widens the bands.
    """
    import torch

    from rsdmri.metrics.uncertainty import coverage, rank_correlation
    from rsdmri.reconstruction.uncertainty import widened

    covered, ranks = [], []
    for found in results:
        inside = found.object_mask
        low, _, high = widened(torch.from_numpy(found.quantiles), factor).numpy()
        covered.append(coverage(found.target, low, high, inside))
        ranks.append(rank_correlation(found.std, found.volume - found.target, inside))
    return {"coverage": sum(covered) / len(covered), "rank": sum(ranks) / len(ranks)}


def factor(results: Sequence[Any]) -> float | None:
    """What bands must be widened by to cover 90 % of the objects of ``results``, conformal; None: nothing does."""
    from rsdmri.errors import InputError
    from rsdmri.reconstruction.calibration import conformal_quantile, interval_scores

    try:
        return conformal_quantile([interval_scores(r.target, r.quantiles, r.object_mask) for r in results])
    except InputError:  # draws that do not differ
        return None
