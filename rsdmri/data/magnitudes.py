"""Slices of measured magnitude volumes (NIfTI), from which scans are simulated: real anatomy without its k-space.

Magnitudes of finished images have lost phase, coils and noise, and often were filtered, interpolated or masked. What
is simulated from them teaches anatomy; it is no test of a reconstruction (Shimron et al. 2022, PNAS 119 e2117203119).
"""

import os
from dataclasses import dataclass

import numpy as np

from rsdmri.errors import InputError

_MOST_VOXELS = 1 << 28
_VOXEL_MM = 0.05, 20.0
_AIR = 0.04
_TISSUE = 0.1  # both of the 99.5th percentile of what is not 0


@dataclass(frozen=True)
class Magnitudes:
    """A volume with axes to the right, to the front and up.

    Attributes:
        values: (x, y, z) float32, not negative; 1 is its 99.5th percentile where it is not 0. The lowest 4 % of that,
            mostly noise of the air, are taken off.
        voxel_mm: sizes along x, y, z.
    """

    values: np.ndarray
    voxel_mm: np.ndarray


def read_magnitudes(path: str | os.PathLike[str]) -> Magnitudes:
    """Read a NIfTI volume; of several frames the first.

    Raises:
        InputError: not a NIfTI file, damaged, no volume of real numbers, empty, too large, or without voxel sizes.
    """
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        shape, voxel = image.shape, np.asarray(image.header.get_zooms()[:3], float)
        _check(path, shape, image.get_data_dtype(), voxel)
        frame = image.dataobj if len(shape) == 3 else image.slicer[..., :1].dataobj
        values = np.asarray(frame, np.float32).reshape(shape[:3])
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a NIfTI volume") from None
    except Exception as error:  # what nibabel, gzip and zlib raise for damaged files is no short list
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not a NIfTI volume that can be read ({reason}); leave it out") from None
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite values; leave it out")
    values = np.clip(values, 0, None)
    if not values.any():
        raise InputError(f"{path}: nothing but zeros; leave it out")
    scaled = values / np.percentile(values[values > 0], 99.5)
    return Magnitudes(np.clip((scaled - _AIR) / (1 - _AIR), 0, None), voxel)


def _check(path: str | os.PathLike[str], shape: tuple[int, ...], kind: np.dtype, voxel: np.ndarray) -> None:
    if len(shape) not in (3, 4) or min(shape) < 1 or min(shape[:3]) < 8:
        raise InputError(f"{path}: an image of shape {shape}; give a volume of at least 8 voxels along each axis")
    if np.prod(shape[:3], dtype=float) > _MOST_VOXELS:
        raise InputError(f"{path}: {np.prod(shape[:3], dtype=float):.3g} voxels, more than is read; crop it")
    if kind.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {kind}; give magnitudes")
    if not ((_VOXEL_MM[0] <= voxel) & (voxel <= _VOXEL_MM[1])).all():
        raise InputError(f"{path}: voxels of {' x '.join(f'{v:g}' for v in voxel)} mm; correct its header")


@dataclass(frozen=True)
class DrawnSlices:
    """Axial slices of one volume, as a scan would lay them.

    Attributes:
        magnitude: (slice, y, x) float32, row 0 to the front.
        heights: (slice,) mm, ascending, about 0.
        fov_mm: side of the square field of view.
    """

    magnitude: np.ndarray
    heights: np.ndarray
    fov_mm: float


def draw_slices(volume: Magnitudes, generator: np.random.Generator, *, slices: int, size: int) -> DrawnSlices:
    """Draw slices of a volume: where they lie, the subject's position and size, and a contrast.

    They lie between a third of the object's height and 18 mm below its top, but not lower than 105 mm below it, each
    with the same tilt (6 degrees), turn (6 degrees), shift (4 mm), stretch (5 %; all standard deviations) and, at one
    in two, left and right reversed. The field of view is 1.1 to 1.6 times the object. Of ten volumes 3.5 keep their
    contrast, 2.5 are raised to a power, 4 have other levels for dark, medium and bright tissue drawn.
    """
    from scipy.ndimage import map_coordinates

    voxel, tissue = volume.voxel_mm, volume.values > _TISSUE
    low, high = (edge * voxel[2] for edge in _extent(tissue, (0, 1)))
    bottom = max(low + (high - low) / 3, high - 105.0)
    heights = np.linspace(bottom, max(high - 18.0, bottom), slices) + generator.uniform(-4, 4)
    axes = [_extent(tissue, (1, 2)), _extent(tissue, (0, 2))]
    centre = [0.5 * (first + last) * v for (first, last), v in zip(axes, voxel, strict=False)]
    side = max((last - first) * v for (first, last), v in zip(axes, voxel, strict=False))
    fov = float(side * generator.uniform(1.1, 1.6))
    turn, (tilt_x, tilt_y) = np.deg2rad(generator.normal(0, 6)), np.tan(np.deg2rad(generator.normal(0, 6, 2)))
    stretch, shift = np.exp(generator.normal(0, 0.05, 2)), generator.normal(0, 4, 2)
    line = ((np.arange(2 * size) + 0.5) / (2 * size) - 0.5) * fov
    across = line if generator.uniform() < 0.5 else -line
    y, x = np.meshgrid(-line, across, indexing="ij")
    x, y = x + shift[0], y + shift[1]
    right = (np.cos(turn) * x - np.sin(turn) * y) / stretch[0]
    front = (np.sin(turn) * x + np.cos(turn) * y) / stretch[1]
    magnitude = np.empty((slices, size, size), np.float32)
    for index, height in enumerate(heights):
        up = height + tilt_x * right + tilt_y * front
        points = [(right + centre[0]) / voxel[0], (front + centre[1]) / voxel[1], up / voxel[2]]
        fine = map_coordinates(volume.values, points, order=1, mode="constant")
        magnitude[index] = fine.reshape(size, 2, size, 2).mean((1, 3))
    return DrawnSlices(_recontrasted(magnitude, generator), heights - heights.mean(), fov)


def _extent(inside: np.ndarray, across: tuple[int, int]) -> tuple[float, float]:
    """First and last index of the axis that is not among ``across`` at which something is set."""
    found = np.flatnonzero(inside.any(across))
    return float(found[0]), float(found[-1])


def _recontrasted(magnitude: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    kind = generator.uniform()
    if kind < 0.35:
        return magnitude
    if kind < 0.6:
        return np.asarray(magnitude ** np.exp(generator.normal(0, 0.4)), np.float32)
    levels = np.concatenate([[0.0], generator.uniform(0.2, 1.0, 5)])
    levels[1] *= generator.uniform()
    return np.interp(magnitude, [0, 0.2, 0.4, 0.6, 0.8, 1.1], levels).astype(np.float32)
