"""Features of MR magnitude images without a network: layout, energies of edges and texture, spectrum."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.metrics.features import Array, checked_magnitudes

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
SMALLEST = 32  # pixels of a side


class MagnitudeFeatures:
    """`image_features` as a set of features to choose: ``mr-magnitude-v1``."""

    name = "mr-magnitude-v1"
    dimensions = 128
    preprocessing = "64 layout, 48 energy, 16 spectrum; magnitudes in the package's units, not rescaled; no network"
    standardise = False

    def __call__(self, magnitudes: ArrayLike) -> Array:
        """Features of magnitudes (n, y, x): (n, 128)."""
        return image_features(magnitudes)


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
    x = checked_magnitudes(images, smallest=SMALLEST)
    chunks = [_features(x[i : i + _CHUNK].astype(np.float64)) for i in range(0, len(x), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.empty((0, sum(_SIZE.values())))


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
