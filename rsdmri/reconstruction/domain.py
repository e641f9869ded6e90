"""Whether a scan lies within what a prior knows: its slices against the statistics of the training slices.

A prior makes of any scan something that looks like its training data. Features of the acquired samples alone tell
where that cannot be right: how power falls with spatial frequency (resolution, field of view, sharpness), how the
brightness of the low-resolution image is distributed (anatomy, size of the object, contrast) and how rough it is. They
do not depend on scale, phase and noise level, nor on which outer lines were acquired. They are blind to what agrees in
all of them: at 32 x 32 with 4 centre lines another contrast of the same head mostly does. Therefore the contrast that
a scan states counts, too, where the training scans stated theirs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.metrics.spectrum import power_sums, radial_power
from rsdmri.physics.fourier import ifft2c, rss
from rsdmri.physics.masks import acs_block
from rsdmri.physics.masks.content import center

LEAST_SCANS = 10
"""Training scans that statistics need."""
SETTLED = 3
"""Slices from which on the median of a scan's distances is judged by ``scan_threshold``."""

_BANDS = 8
_BRIGHTNESS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_ROUGHNESS = (0.5, 0.75, 0.9, 0.97)
_TOP = 0.99
_FEATURES = 2 * _BANDS - 1 + len(_BRIGHTNESS) + len(_ROUGHNESS)
_FOLDS = 5
_SHARE = 0.999
_VISIBLE = 0.1  # share of the noise that signal must have to be measured

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DomainStatistics:
    """What the features of a prior's training slices look like; F features.

    ``mean`` (F,), ``covariance`` (F, F); ``threshold`` and ``scan_threshold``: what 99.9 % of the distances of slices,
    and of the medians over the slices of a scan, stay below in scans that the statistics have not seen; ``lines``:
    centre lines that the features are taken from; ``scans``, ``slices``: how many were seen; ``contrasts``: those that
    the training scans stated, empty where some did not. ``noise``: median of their noise per complex sample;
    ``noisier``: statistics of the same slices with noise added, since what noise hides is missing from the features.
    """

    mean: list[float]
    covariance: list[list[float]]
    threshold: float
    scan_threshold: float
    lines: int
    scans: int
    slices: int
    contrasts: list[str]
    noise: float = 0.0
    noisier: list["DomainStatistics"] = field(default_factory=list)

    def at(self, noise: float) -> "DomainStatistics":
        """The statistics, of these and `noisier`, whose noise is nearest in ratio."""
        known = [each for each in (self, *self.noisier) if each.noise > 0]
        if noise <= 0 or not known:
            return self
        return min(known, key=lambda each: abs(math.log(each.noise / noise)))

    def distance(self, features: Array) -> float:
        """Robust z of a slice: sqrt((f - mean)^T covariance^-1 (f - mean) / n) over its n features that are known.

        About 1 within the training data. Infinite where no feature is known: the slice is noise.
        """
        return _distance(features, np.asarray(self.mean), np.asarray(self.covariance))

    def verdict(self, distances: Sequence[float], contrast: str | None = None) -> str | None:
        """Why a scan is foreign, one line; None where it is not.

        Args:
            distances: of its slices.
            contrast: that it states, in the words of ``contrasts``; None: unknown.
        """
        if self.contrasts and contrast is not None and contrast not in self.contrasts:
            return f"it states contrast {contrast}, the training scans were {', '.join(self.contrasts)}"
        if not len(distances):
            return None
        middle = float(np.median(distances))
        limit = self.threshold if len(distances) < SETTLED else self.scan_threshold
        if middle <= limit:
            return None
        return f"distance {middle:.2g} from the training data (median of {len(distances)} slices), limit {limit:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """Numbers for ``config.json``; none of them is of a single scan."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DomainStatistics":
        """What `to_dict` gave; ``InputError`` for anything else."""
        try:
            noisier = [cls.from_dict(each) for each in values.get("noisier", ())]
            found = cls(**{**values, "noisier": noisier})
            sizes = np.shape(np.asarray(found.covariance, float)), np.shape(np.asarray(found.mean, float))
            if sizes != ((_FEATURES, _FEATURES), (_FEATURES,)) or found.lines < 1:
                raise ValueError
        except (AttributeError, TypeError, ValueError):
            raise InputError("domain: not the statistics of an rsdmri prior; copy the prior's folder again") from None
        return found


def slice_features(kspace: Tensor, mask: Tensor, sigma_y: float, lines: int) -> Array:
    """Features (F,) of one slice; NaN where noise or the mask leave nothing to measure.

    log10 of the signal's mean power in 8 rings of spatial frequency, and in 8 bands of the readout on the centre lines,
    each up to 0.5 cycles per pixel and over the innermost of the bands; quantiles of the magnitude of the image of the
    centre lines and of its differences along the readout, over its 99th percentile. All less the noise.

    Args:
        kspace: acquired samples, complex ``(coil, y, x)``, white noise; zero elsewhere.
        mask: acquired positions, ``(1, x)`` or ``(y, x)``.
        sigma_y: noise per complex sample, in the units of ``kspace``.
        lines: centre lines that are used.

    Raises:
        InputError: fewer centre lines were acquired.
    """
    rows, columns = acs_block(mask)
    if columns.stop - columns.start < lines:
        raise InputError(f"mask: {columns.stop - columns.start} centre lines, the prior's statistics need {lines}")
    noise = sigma_y**2 * len(kspace)
    _, rings = radial_power(power_sums(kspace[None], mask[None], sigma_y / math.sqrt(2)), bands=_BANDS)
    centre = _centre(kspace, rows, lines)
    height = centre.shape[-2]
    band = (np.abs(np.arange(height) - height // 2) * 2 * _BANDS // height).clip(max=_BANDS - 1)
    along = centre.abs().square().sum(0).mean(-1).double().numpy() - noise
    counts = np.bincount(band, minlength=_BANDS)
    bands = np.full(_BANDS, np.nan)
    np.divide(np.bincount(band, along, _BANDS), counts, out=bands, where=counts > 0)
    power, spectrum = np.concatenate([rings, bands[1:]]), np.full(2 * _BANDS - 1, np.nan)
    np.log10(power / bands[0], out=spectrum, where=(power > _VISIBLE * noise) & (bands[0] > _VISIBLE * noise))
    image = (rss(ifft2c(centre)).double().square() - noise).clamp_min(0).sqrt()
    steps = (image[1:] - image[:-1]).abs()
    quantiles = np.concatenate([_quantiles(image, (*_BRIGHTNESS, _TOP)), _quantiles(steps, _ROUGHNESS)])
    top = quantiles[len(_BRIGHTNESS)]
    rest = np.delete(quantiles, len(_BRIGHTNESS))
    return np.concatenate([spectrum, rest / top if top > 0 else np.full_like(rest, np.nan)])


def _quantiles(image: Tensor, levels: Sequence[float]) -> Array:
    return np.asarray(np.quantile(image.numpy(), levels), np.float64)


def _centre(kspace: Tensor, rows: slice, lines: int) -> Tensor:
    """The centre lines; of single points a block with the sides of the matrix."""
    height, width = kspace.shape[-2:]
    acquired = range(*rows.indices(height))
    tall = height if len(acquired) == height else min(len(acquired), max(2, round(lines * height / width)))
    return kspace[:, center(height, tall), center(width, lines)]


def fit_statistics(
    features: Array, noise: float, scans: Sequence[str], lines: int, contrasts: Sequence[str] = ()
) -> DomainStatistics:
    """Statistics of ``features`` (slice, F) of the training slices; ``scans``: which scan each slice is of.

    ``noise``: the median of their noise per complex sample, 0 where it is not known.

    Thresholds are set on scans that were not seen: the scans of each fifth have their distances to the statistics of
    the others. A further scan stays below with 99.9 %, as far as the logarithms of these are normal (the prediction
    limit of Student's t with the number of scans).

    Raises:
        InputError: fewer than `LEAST_SCANS` scans, or of those that show more than noise.
    """
    names = sorted(set(scans))
    if len(names) < LEAST_SCANS:
        raise InputError(f"{len(names)} training scans are too few for statistics of the domain, {LEAST_SCANS} needed")
    number = np.array([names.index(scan) for scan in scans])
    unseen = np.empty(len(features))
    for fold in range(_FOLDS):
        own = number % _FOLDS == fold
        moments = _moments(features[~own])
        unseen[own] = [_distance(row, *moments) for row in features[own]]
    medians = np.array([np.median(unseen[number == scan]) for scan in range(len(names))])
    mean, covariance = _moments(features)
    return DomainStatistics(
        mean.tolist(),
        covariance.tolist(),
        _limit(unseen, len(names)),
        _limit(medians, len(names)),
        lines,
        len(names),
        len(features),
        sorted(set(contrasts)),
        noise,
    )


def _limit(distances: Array, scans: int) -> float:
    """What a further distance stays below with 99.9 %."""
    from scipy.special import stdtrit

    logs = np.log(distances[np.isfinite(distances)])
    if len(logs) < LEAST_SCANS:
        raise InputError("the training scans show nothing above their noise")
    reach = float(stdtrit(scans - 1, _SHARE)) * math.sqrt(1 + 1 / scans)
    return float(np.exp(logs.mean() + reach * logs.std(ddof=1)))


def _distance(features: Array, mean: Array, covariance: Array) -> float:
    known = np.isfinite(features)
    if not known.any():
        return math.inf
    away = (features - mean)[known]
    return float(np.sqrt(away @ np.linalg.solve(covariance[np.ix_(known, known)], away) / known.sum()))


def _moments(features: Array) -> tuple[Array, Array]:
    """Mean and covariance of the features (slice, F), shrunk towards its diagonal by F / (F + slices).

    What is not known is left out pair by pair, and what that leaves of negative variance is taken for none; a feature
    that fewer than two slices, or less than half of them, have has mean 0 and no weight.
    """
    known = np.isfinite(features)
    count = known.sum(0)
    rare = count < max(2, len(features) / 2)
    known = known & ~rare
    mean = np.where(known, features, 0).sum(0) / np.maximum(count, 1)
    away = np.where(known, features - mean, 0)
    covariance = away.T @ away / np.maximum(known.T.astype(float) @ known, 1)
    spread = np.where(rare, 1e8, np.maximum(np.diag(covariance), 1e-6))
    weight = len(spread) / (len(spread) + len(features))
    variances, axes = np.linalg.eigh(covariance)
    covariance = (axes * variances.clip(min=0)) @ axes.T
    return mean, (1 - weight) * covariance + weight * np.diag(spread) + 1e-9 * np.eye(len(spread))
