"""Random heads: the ICBM152 tissue maps that nilearn packages, warped into a subject of their own.

The ICBM152 2009a nonlinear symmetric average (Fonov et al. 2011, NeuroImage 54) ends at the brain. Subarachnoid fluid,
skull, fat and skin are shells around it, so that images look like heads and fill the field of view like heads.
Slices are axial, seen from the feet (radiological): row 0 is anterior, column 0 is the patient's right.
"""

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

TISSUES = ("white", "grey", "fluid", "bone", "marrow", "fat", "muscle", "skin")

LEAST_MARGIN, MOST_MARGIN = 0.075, 0.11
"""Share of the field of view that a head leaves free in front of it and behind it, unless told otherwise."""

_SHELL_STEP = 0.13  # mm per count of the stored distance
_ORIGIN = np.array([98.0, 134.0, 72.0])  # voxel of the template's (0, 0, 0) mm
_MEAN_T1 = np.array([224.0, 166.0, 66.0])  # template intensity of pure white, grey, fluid
_HEAD_CENTRE = np.array([0.0, -17.0, 0.0])  # mm, middle of the brain in plane; z is chosen by the slice
_HALF_AP = 90.0  # mm, half the brain's anterior-posterior length
_FIELD_MM = 260.0  # the random fields are periodic on no smaller box than this


@dataclass(frozen=True)
class HeadSlice:
    """One rendered slice on a grid finer than the image: tissue fractions and the template's own detail."""

    fractions: np.ndarray
    """(tissue, y, x) float32 in [0, 1], in the order of `TISSUES`; their sum is 1 in the head and 0 outside."""
    detail: np.ndarray
    """(y, x) float32: template T1 intensity over that of the average tissue mixture, 1 outside the brain."""


@dataclass(frozen=True)
class Head:
    """One subject: geometry drawn once, slices rendered on demand."""

    fov_mm: float
    """Side of the square field of view."""
    heights: np.ndarray
    """(slice,) float64, template z of each slice in mm, ascending."""
    slices: Iterator[HeadSlice]


@lru_cache(maxsize=1)
def load_atlas() -> np.ndarray:
    """Packed atlas (x, y, z, 4) uint8: white, grey, T1 intensity, distance outside the brain in 0.13 mm."""
    import nibabel

    specification = importlib.util.find_spec("nilearn")
    if specification is None or specification.origin is None:
        raise ModuleNotFoundError("simulated scans need nilearn's packaged anatomy: python -m pip install nilearn")
    folder = Path(specification.origin).parent / "datasets" / "data"
    names = [f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz" for tissue in ("wm", "gm", "t1")]
    images = [nibabel.load(folder / name) for name in names]
    white, grey, t1 = (np.asarray(image.dataobj) for image in images)  # type: ignore[attr-defined]
    return np.ascontiguousarray(np.stack([white, grey, t1, _distance_outside(t1 > 0)], axis=-1))


def _distance_outside(brain: np.ndarray) -> np.ndarray:
    """Distance to the closed brain surface in 0.13 mm (uint8, capped at 33 mm), computed at 2 mm."""
    from scipy import ndimage

    coarse = brain[::2, ::2, ::2]
    radius = 8
    wide = ndimage.distance_transform_edt(~coarse) <= radius
    closed = (ndimage.distance_transform_edt(wide) > radius) | coarse
    distance = 2.0 * ndimage.distance_transform_edt(~closed)
    distance = ndimage.gaussian_filter(distance.astype(np.float32), 1.5)
    for axis, length in enumerate(brain.shape):  # linear interpolation back to 1 mm, one axis at a time
        position = np.minimum(np.arange(length) / 2, distance.shape[axis] - 1)
        low = np.minimum(position.astype(int), distance.shape[axis] - 2)
        weight = np.expand_dims((position - low).astype(np.float32), [i for i in range(3) if i != axis])
        distance = (1 - weight) * distance.take(low, axis) + weight * distance.take(low + 1, axis)
    counts: np.ndarray = np.clip(distance / _SHELL_STEP, 0, 255).astype(np.uint8)
    return counts


def smooth_field(
    generator: np.random.Generator, axes: tuple[np.ndarray, ...], order: int, softness: float = 2.5
) -> np.ndarray:
    """Random smooth field of zero mean and unit variance: a cosine series with a Gaussian spectrum.

    f(t) = sum_k c_k prod_i cos(pi k_i t_i), c_k ~ N(0, w_k^2), w_k = exp(-|k|^2 / 2 (order / softness)^2), w_0 = 0.

    Args:
        generator: source of the coefficients; what is drawn depends on ``order`` and the number of axes only.
        axes: coordinates along each axis in [0, 1], one array per axis.
        order: number of cosines per axis; the finest wavelength is 2 / (order - 1).
        softness: larger is smoother.

    Returns:
        float32 array with one axis per coordinate array.
    """
    grids = np.meshgrid(*[np.arange(order)] * len(axes), indexing="ij")
    weight = np.exp(-sum(k.astype(float) ** 2 for k in grids) * 0.5 * (softness / order) ** 2)
    weight.flat[0] = 0.0
    power = weight**2 * np.prod([np.where(k > 0, 0.5, 1.0) for k in grids], axis=0)
    field: np.ndarray = (generator.standard_normal(weight.shape) * weight / np.sqrt(power.sum())).astype(np.float32)
    for t in axes:  # contract the leading axis, append the sampled one
        basis = np.cos(np.pi * np.outer(np.arange(order), t)).astype(np.float32)
        field = np.tensordot(field, basis, axes=(0, 0))
    return field


def draw_head(generator: np.random.Generator, *, slices: int, size: int, margin: float = LEAST_MARGIN) -> Head:
    """Draw a subject and its slice positions.

    The head is an affine and elastic warp of the atlas: rotation up to 8 degrees about each axis, scale up to 10 % per
    axis, shear up to 5 %, a shift, and a displacement of 4 mm (wavelengths above 130 mm) plus 1.5 mm (above 40 mm).
    Tissue boundaries are sharpened and moved by a random field of their own, so that folds and fluid spaces differ.

    Args:
        generator: all that is random about the subject.
        slices: number of slices, spread over the middle 60 mm of the brain.
        size: image side in pixels; the slices are rendered on a grid 2 to 4 times finer.
        margin: least share of the field of view left free in front of the head and behind it, before the shift.
    """
    angles = np.deg2rad(np.clip(generator.normal(0, 3.5, 3), -8, 8))
    scale = 1 + np.clip(generator.normal(0, 0.05, 3), -0.1, 0.1)
    shear = np.clip(generator.normal(0, 0.02, 3), -0.05, 0.05)
    matrix = _rotation(angles) @ np.array([[1, shear[0], shear[1]], [0, 1, shear[2]], [0, 0, 1]]) @ np.diag(scale)
    thickness = np.array([2.5, 6.5, 4.5, 1.8]) * np.exp(generator.normal(0, [0.25, 0.12, 0.3, 0.1]))
    thickness *= min(1.0, 19.0 / thickness.sum())
    free = generator.uniform(margin, MOST_MARGIN)
    half_head = _HALF_AP * scale[1] + thickness.sum() + 6.0
    fov = 2 * half_head / (1 - 2 * free)
    shift = np.append(generator.uniform(-0.012, 0.012, 2) * fov, 0.0)

    span = np.linspace(-6.0, 54.0, slices + 1)
    heights = span[:-1] + np.diff(span) * generator.uniform(0.15, 0.85, slices)
    geometry = _Geometry(np.linalg.inv(matrix), shift, thickness, fov, heights)
    children = generator.spawn(2)
    fine = int(np.clip(round(256 / size), 2, 4))
    return Head(fov, heights, _render(geometry, children, size, fine))


@dataclass(frozen=True)
class _Geometry:
    inverse: np.ndarray
    shift: np.ndarray
    thickness: np.ndarray
    fov: float
    heights: np.ndarray


def _render(geometry: _Geometry, generators: list[np.random.Generator], size: int, fine: int) -> Iterator[HeadSlice]:
    """Yield the slices one by one; memory holds the fields of the whole subject and one slice."""
    side = size * fine
    pixel = geometry.fov / side
    # Pixel centres: the middle of image pixel size // 2 is the isocentre, after averaging fine x fine blocks.
    line = (np.arange(side) - (size // 2) * fine - (fine - 1) / 2) * pixel
    unit = np.clip(line / (1.1 * _FIELD_MM) + 0.5, 0, 1)
    warp, tissue = generators
    axes = (np.clip(geometry.heights / _FIELD_MM + 0.5, 0, 1), unit, unit)
    coarse = [4.0 * smooth_field(warp, axes, 5) for _ in range(3)]
    middle = [1.5 * smooth_field(warp, axes, 14) for _ in range(3)]
    folds = [smooth_field(tissue, axes, 30) for _ in range(2)]
    shells = smooth_field(tissue, axes, 7)
    texture = smooth_field(tissue, axes, 36, softness=1.5)
    sharpness = tissue.uniform(1.6, 2.6)
    atrophy, fold_strength = tissue.normal(0.1, 0.35), tissue.uniform(0.25, 0.6)

    atlas = load_atlas()
    for index, height in enumerate(geometry.heights):
        point = np.empty((3, side, side), np.float32)
        point[0], point[1], point[2] = -line[None, :], -line[:, None], 0.0
        for axis in range(3):
            point[axis] += coarse[axis][index] + middle[axis][index] - geometry.shift[axis]
        centre = _ORIGIN + _HEAD_CENTRE + np.array([0.0, 0.0, height])
        voxel = np.tensordot(geometry.inverse.astype(np.float32), point, 1) + centre[:, None, None].astype(np.float32)
        white, grey, t1, outside = _sample(atlas, voxel)
        moved = fold_strength * np.stack([field[index] for field in folds])
        brain = _brain_fractions(white, grey, t1, sharpness, atrophy, moved)
        thicker = 1 + 0.18 * np.clip(shells[index], -2, 2)
        fractions = _add_shells(brain, outside * _SHELL_STEP, geometry.thickness, thicker)
        mixture = np.tensordot(_MEAN_T1.astype(np.float32), np.stack([white, grey, 255 - white - grey]), 1) / 255
        inside = np.clip(t1 / 40, 0, 1)
        detail = 1 + inside * (np.clip(t1 / np.maximum(mixture, 30), 0.8, 1.2) - 1)
        yield HeadSlice(fractions, detail * (1 + 0.025 * texture[index]))


def _brain_fractions(
    white: np.ndarray, grey: np.ndarray, t1: np.ndarray, sharpness: float, atrophy: float, folds: np.ndarray
) -> np.ndarray:
    """Fractions (white, grey, fluid) from 8-bit maps: p_k^sharpness e^(offset_k), normalised; 0 outside the brain."""
    fluid = np.maximum(255 - white - grey, 0)
    logits = np.log(np.stack([white, grey, fluid]) / 255 + 0.01) * sharpness
    logits[0] += folds[0]
    logits[2] += atrophy + folds[1]
    odds = np.exp(logits)
    fractions: np.ndarray = odds / odds.sum(0) * np.clip(t1 / 50, 0, 1)
    return fractions


def _add_shells(brain: np.ndarray, outside: np.ndarray, thickness: np.ndarray, variation: np.ndarray) -> np.ndarray:
    """All tissue fractions: the brain's, and by distance outside it fluid, bone with marrow, fat or muscle, skin."""
    edges = np.cumsum(thickness)[:, None, None] * variation
    depth = [np.clip((edge - outside) / 1.2 + 0.5, 0, 1) for edge in edges]  # 1 inside each shell's outer surface
    head = depth[3]
    bone = depth[1] - depth[0]
    within = np.clip((outside - edges[0]) / (edges[1] - edges[0]), 0, 1)
    marrow = bone * np.clip(1.6 - 4.5 * np.abs(within - 0.5), 0, 1) * 0.8
    fat = depth[2] - depth[1]
    rest = 1 - brain.sum(0)
    shells = np.stack([bone - marrow, marrow, 0.85 * fat, 0.15 * fat, head - depth[2]]) * rest
    fluid = brain[2] + depth[0] * rest
    return np.concatenate([brain[:2], fluid[None], shells]).astype(np.float32)


def _sample(atlas: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Trilinear samples (4, y, x) float32 of the packed atlas; one gather reads all four maps."""
    packed = atlas.view(np.uint32)[..., 0].ravel()
    limits = np.array(atlas.shape[:3]) - 2
    stride = (atlas.shape[1] * atlas.shape[2], atlas.shape[2], 1)
    clipped = [np.clip(v, 0, limit + 0.999) for v, limit in zip(voxel, limits, strict=True)]
    low = [v.astype(np.int32) for v in clipped]
    part = [v - floor for v, floor in zip(clipped, low, strict=True)]
    start = sum(floor * step for floor, step in zip(low, stride, strict=True))
    total = np.zeros((*voxel.shape[1:], 4), np.float32)
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.ones(1, np.float32)
        for bit, fraction in zip(corner, part, strict=True):
            weight = weight * (fraction if bit else 1 - fraction)
        offset = sum(bit * step for bit, step in zip(corner, stride, strict=True))
        total += weight[..., None] * packed[start + offset].view(np.uint8).reshape(total.shape)
    return np.moveaxis(total, -1, 0)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z (radians)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: np.ndarray = about_z @ about_y @ about_x
    return rotation
