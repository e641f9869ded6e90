"""How far bands and standard deviations of reconstructions can be trusted, with known targets and with noisy ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

FRESH = 4  # noises with each draw of a prediction
NORMAL = 1.645  # standard deviations to each side that hold 90 % of a normal law


def scores(results: Sequence[Any], factor: float = 1.0) -> dict[str, float]:
    """Means over reconstructions: share of the object's pixels in the 90 % band, rank correlation of std and error.

    The rank correlation is of the object's pixels (``rank``) and of all (``rank_image``), among which the air, where
    both are small, counts for it. ``factor`` widens the bands.
    """
    import torch

    from rsdmri.metrics.uncertainty import coverage, rank_correlation
    from rsdmri.reconstruction.uncertainty import widened

    covered, ranks, everywhere = [], [], []
    for found in results:
        inside = found.object_mask
        low, _, high = widened(torch.from_numpy(found.quantiles), factor).numpy()
        covered.append(coverage(found.target, low, high, inside))
        ranks.append(rank_correlation(found.std, found.volume - found.target, inside))
        everywhere.append(rank_correlation(found.std, found.volume - found.target))
    lists = {"coverage": covered, "rank": ranks, "rank_image": everywhere}
    return {name: sum(values) / len(values) for name, values in lists.items()}


def factor(results: Sequence[Any]) -> float | None:
    """What bands must be widened by to cover 90 % of the objects of ``results``, conformal; None: nothing does."""
    from rsdmri.errors import InputError
    from rsdmri.reconstruction.calibration import conformal_quantile, interval_scores

    try:
        return conformal_quantile([interval_scores(r.target, r.quantiles, r.object_mask) for r in results])
    except InputError:  # draws that do not differ
        return None


def predicted_coverage(
    scan: Any, found: Any, prior: Any, options: dict[str, Any] | None, samples: int, seed: int
) -> float:
    """Share of the object of full data with their noise in the band that ``found`` predicts for them.

    A band of the image need not hold full data, whose noise it leaves out, but full data are all that a real scan has.
    What the draws x_i say of them is a posterior predictive law (Gelman et al. 1996): acquired samples are as they were
    measured, others are those of a draw with fresh noise n of the scan's covariance.

        P_i = rss(F^H [y where acquired, (A x_i + n_i) elsewhere])

    c is their mean, and their spread has two parts that are independent: r, the `prediction_reach` of the draws without
    noise, widened like the band (``interval_factor``), and n, the standard deviation over fresh noises of a draw.

        |full - c| <= sqrt((factor r)^2 + (1.645 n)^2)
    """
    import torch

    from rsdmri.physics.fourier import fft2c, ifft2c, rss
    from rsdmri.physics.noise import whiten, whitening_matrix
    from rsdmri.reconstruction.posterior import chosen_settings
    from rsdmri.reconstruction.uncertainty import pooled, prediction_reach
    from rsdmri.runtime import torch_generator
    from rsdmri.workflows.slices import SliceWork, cropped

    inside = found.object_mask
    shares = []

    def watch(index: int, item: Any, draws: Any) -> None:
        unmixing = torch.linalg.inv(whitening_matrix(work.noise.covariance))

        def full(images: Any, noise: Any = 0.0) -> Any:
            kspace = fft2c(item.maps * images.unsqueeze(-3)) + item.sigma_y * noise
            coils = whiten(ifft2c(torch.where(item.mask, item.kspace, kspace)), unmixing)
            return item.scale * rss(coils)

        stream = torch_generator("predicted", scan.name, seed, index)
        fresh = torch.randn(FRESH, *item.kspace.shape, dtype=item.kspace.dtype, generator=stream)
        noisy = torch.stack([full(draws, noise) for noise in fresh])
        drawn = found.attrs["interval_factor"] * prediction_reach(full(draws))
        half = torch.hypot(drawn, NORMAL * pooled(noisy.var(0).mean(0)).sqrt())
        centre, reach = (cropped(map_, scan.crop) for map_ in (noisy.mean((0, 1)), half))
        shares.append((abs(found.target[index] - centre) <= reach)[inside[index]])

    settings = chosen_settings(found.attrs["method"], options, prior)
    mask = torch.from_numpy(found.mask)
    work = SliceWork(scan, mask, found.attrs["method"], prior, samples, seed, prior.device, None, settings, watch)
    work.run(lambda slices: None)
    return float(np.concatenate(shares).mean())
