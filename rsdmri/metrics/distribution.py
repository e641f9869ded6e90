"""Distances between sets of images, and the features of MR magnitude images they are measured in.

A distance means nothing without what it was measured with: print `describe_features` with every number. It names the
features, both counts and a hash of the reference. Distances of finite sets are not zero for equal distributions; the
floor to compare with is the distance between two halves of the clean images, each as large as the sets compared.
"""

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError

Array = NDArray[np.float64]

FEATURES = "mr-magnitude-v1"

_LAYOUT_GRID, _ENERGY_GRID, _BANDS = 8, 2, 8
_CENTRES = (0.35, 0.175, 0.0875)  # cycles per pixel, one octave apart
_ORIENTATIONS = 4
_ENERGY_FLOOR = 0.02  # a fiftieth of the bright tissue, so that empty air has a value rather than minus infinity
_POWER_FLOOR = 0.0025  # power of noise with a standard deviation of 0.05

# Constants of each group before weighting: means and total variance over 1024 noise-free simulated slices (128 subjects
# of seed 7, 4 slices each, mixed contrasts, 64x64 and again 128x128), rounded. Removing the mean changes no Frechet
# distance; it keeps the kernel's products small. Dividing by the variance and giving the groups shares of 100 makes a
# distance of 100 as large as the whole spread of those heads. The spectrum has the smallest share because it answers
# most strongly to blur and aliasing: so no group makes up nearly all of a typical distance.
_SPECTRUM_MEANS = (2.3, -1.9, -2.8, -3.5, -4.1, -4.7, -5.1, -5.5, 0.0, -3.1, -3.6, -4.2, -4.6, -5.0, -5.3, -5.5)
_MEAN = {"layout": np.array(0.2), "energy": np.array(-3.1), "spectrum": np.array(_SPECTRUM_MEANS)}
_VARIANCE = {"layout": 0.62, "energy": 1.26, "spectrum": 1.81}
_SHARE = {"layout": 40.0, "energy": 40.0, "spectrum": 20.0}
_SIZE = {
    "layout": _LAYOUT_GRID**2,
    "energy": len(_CENTRES) * _ORIENTATIONS * _ENERGY_GRID**2,
    "spectrum": 2 * _BANDS,
}

_CHUNK = 32  # images transformed at a time


def image_features(images: ArrayLike) -> Array:
    """Return 128 features of each MR magnitude image: (n, y, x) to (n, 128). No network, nothing to download.

    ``images`` are magnitudes in the package's units (99th percentile of the calibration image = 1), each side at least
    32 pixels; they are not rescaled, so brightness counts. Per image x:

    - layout (64): means over an 8x8 grid of equal areas. Anatomy, contrast, ghosts in the air.
    - energy (48): ``ln(0.02 + mean |g * x|)`` over a 2x2 grid, g analytic log-Gabor filters of half an octave at 0.35,
      0.175 and 0.0875 cycles per pixel in 4 orientations. Edges, texture, noise, blur.
    - spectrum (16): ``ln(0.0025 + mean power)`` in 8 radial bands and in 8 bands of abs(kx), the phase-encode axis.
      Missing lines, aliasing, blur.

    Each group is shifted and multiplied by fixed constants (see the source). `InputError` for other shapes, complex or
    non-finite values.
    """
    x = np.asarray(images)
    if np.iscomplexobj(x):
        raise InputError("images: complex values; take the magnitude first")
    if x.ndim != 3 or min(x.shape[1:]) < 32:
        raise InputError(f"images: expected (n, y, x) with sides of at least 32, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError("images: NaN or infinite values; leave those images out")
    chunks = [_features(x[i : i + _CHUNK].astype(np.float64)) for i in range(0, len(x), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.empty((0, sum(_SIZE.values())))


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Frechet distance ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` between Gaussian fits, features (n, d).

    With ``S = R^T R`` from a QR factorisation of the centred features, ``tr (S_a S_b)^(1/2)`` is the sum of singular
    values of ``R_a R_b^T``: real, without squaring a condition number, and fine when n < d. Covariances divide by
    n - 1. Finite sets are biased upwards, about as 1/n: two sets of n clean simulated slices, `image_features`, are
    13 to 19 apart for n = 64, 4 for n = 256 and 2 for n = 512, where R = 4 zero-filled images are 330 to 420 away.
    So compare sets of equal sizes, with that floor beside them.

    Source: Dowson and Landau 1982; Heusel et al. 2017.
    """
    a, b = _sets(features_a, features_b)
    mean = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    cross = float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
    return max(mean + float((root_a**2).sum()) + float((root_b**2).sum()) - 2 * cross, 0.0)


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``, features (n, d).

    The unbiased estimate: its mean is 0 for equal distributions at any n, so it can be slightly negative.

    Source: Gretton et al. 2012, lemma 6; Binkowski et al. 2018.
    """
    a, b = _sets(features_a, features_b)

    def kernel(x: Array, y: Array) -> Array:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    def between_different(x: Array) -> float:
        gram = kernel(x, x)
        return float((gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1)))

    return between_different(a) + between_different(b) - 2 * float(kernel(a, b).mean())


def bootstrap(
    distance: Callable[[Array, Array], float],
    features_a: ArrayLike,
    features_b: ArrayLike,
    *,
    generator: np.random.Generator,
    repeats: int = 100,
) -> tuple[float, float]:
    """95 % interval ``estimate -+ 1.96 s``, s the standard deviation of ``distance`` over resampled sets.

    Only the width is taken from the resampled sets: drawing with replacement shrinks a set, and their mean shows the
    sample-size bias of the Frechet distance twice. Images count as independent; slices of one subject are not, so with
    many slices a subject the interval is too narrow.
    """
    a, b = _sets(features_a, features_b)
    draws = []
    for _ in range(repeats):
        pick_a, pick_b = (generator.integers(len(x), size=len(x)) for x in (a, b))
        draws.append(distance(a[pick_a], b[pick_b]))
    half = 1.96 * float(np.std(draws, ddof=1))
    estimate = distance(a, b)
    return estimate - half, estimate + half


def reference_hash(features: ArrayLike) -> str:
    """Sha256 of ``features`` (n, d) rounded to four decimals, in any order of the images; first 16 hex digits."""
    rounded = np.round(np.asarray(features, dtype=np.float64), 4) + 0.0  # no negative zeros
    rows = sorted(row.astype("<f8").tobytes() for row in rounded)
    return hashlib.sha256(b"".join(rows)).hexdigest()[:16]


def describe_features(samples: ArrayLike | None = None, reference: ArrayLike | None = None) -> str:
    """One line to print with every distance: the features, both counts and the reference's hash."""
    groups = ", ".join(f"{size} {name}" for name, size in _SIZE.items())
    text = f"features {FEATURES} ({groups}; offline, no network)"
    if samples is not None:
        text += f"; {len(np.asarray(samples))} samples"
    if reference is not None:
        text += f"; {len(np.asarray(reference))} reference images, sha256 {reference_hash(reference)}"
    return text


def _features(x: Array) -> Array:
    spectrum = np.fft.fft2(x, norm="ortho")
    groups = {"layout": _pooled(x, _LAYOUT_GRID), "energy": _energies(spectrum), "spectrum": _powers(spectrum)}
    return np.concatenate([(g - _MEAN[n]) * math.sqrt(_SHARE[n] / _VARIANCE[n]) for n, g in groups.items()], axis=1)


def _energies(spectrum: NDArray[Any]) -> Array:
    responses = (np.abs(np.fft.ifft2(spectrum * g, norm="ortho")) for g in _filters(*spectrum.shape[1:]))
    return np.concatenate([np.log(_ENERGY_FLOOR + _pooled(r, _ENERGY_GRID)) for r in responses], axis=1)


def _powers(spectrum: NDArray[Any]) -> Array:
    power = (np.abs(spectrum) ** 2).reshape(len(spectrum), -1)
    height, width = spectrum.shape[1:]
    return np.asarray(np.log(_POWER_FLOOR + power @ _band_means(height, width)))


def _pooled(x: Array, cells: int) -> Array:
    rows, columns = (_area_means(length, cells) for length in x.shape[1:])
    return (rows @ x @ columns.T).reshape(len(x), -1)


@lru_cache(maxsize=32)
def _area_means(length: int, cells: int) -> Array:
    """(cells, length): mean over equal parts of an axis, pixels on a border shared in proportion."""
    edges = np.arange(cells + 1) * length / cells
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: Array = np.clip(overlap, 0, None) * cells / length
    return weights


@lru_cache(maxsize=8)
def _filters(height: int, width: int) -> Array:
    """(scale * orientation, y, x) one-sided transfer functions: log-normal in radius, cosine cubed in angle."""
    ky, kx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    radius = np.maximum(np.hypot(ky, kx), 1e-9)
    angle = np.arctan2(ky, kx)
    bands = [np.exp(-0.5 * (np.log2(radius / centre) / 0.5) ** 2) for centre in _CENTRES]
    turns = [np.clip(np.cos(angle - k * np.pi / _ORIENTATIONS), 0, None) ** 3 for k in range(_ORIENTATIONS)]
    return np.stack([2 * band * turn for band in bands for turn in turns])


@lru_cache(maxsize=8)
def _band_means(height: int, width: int) -> Array:
    """(y * x, 2 * bands): means over radial bands, then over bands of abs(kx), equal widths up to half a cycle."""
    ky, kx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    columns = []
    for frequency in (np.hypot(ky, kx), np.broadcast_to(np.abs(kx), (height, width))):
        band = np.minimum((frequency * 2 * _BANDS).astype(int), _BANDS - 1).ravel()
        members = band[:, None] == np.arange(_BANDS)
        columns.append(members / members.sum(0))
    return np.concatenate(columns, axis=1)


def _covariance_root(x: Array) -> Array:
    root: Any = np.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1), mode="r")
    return np.asarray(root)


def _sets(features_a: ArrayLike, features_b: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"features: expected (n, d) with one d for both sets, got shapes {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise InputError(f"features: sets of {len(a)} and {len(b)} images; a distance needs at least two in each")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("features: NaN or infinite values; leave those images out")
    return a, b
