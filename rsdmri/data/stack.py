"""Where the pixels of a reconstructed volume lie, as writers of NIfTI and DICOM need it: millimetres, LPS axes."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rsdmri.data.scan import Geometry, Header

Floats = npt.NDArray[np.float64]

_CLOSE_MM = 0.02  # how far slices of a regular stack may lie from where they should


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that lie evenly along their normal."""

    order: tuple[int, ...]
    """Slice of the volume at each place of the stack."""
    step: Floats
    """(3,) from each slice to the next."""


def axes(geometry: Geometry) -> Floats:
    """Orthonormal rows x_direction, y_direction, slice_direction, (3, 3); the small error that `Geometry` allows is
    taken out of y_direction.
    """
    x, y = (np.array(v, np.float64) for v in (geometry.x_direction, geometry.y_direction))
    x /= np.linalg.norm(x)
    y -= (x @ y) * x
    y /= np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)])


def first_pixels(geometry: Geometry, size: tuple[int, int]) -> Floats:
    """Centres (S, 3) of pixel (0, 0) of images of ``size`` (h, w): centre - (h // 2) dy y - (w // 2) dx x."""
    x, y, _ = axes(geometry)
    (dy, dx), (height, width) = geometry.spacing_mm, size
    return np.array(geometry.centres, np.float64) - (height // 2) * dy * y - (width // 2) * dx * x


def stack_of(geometry: Geometry) -> Stack | None:
    """The slices as a regular stack, in their own order if that is one, else sorted along their normal; None if the
    slices are not evenly spaced along it.
    """
    centres, normal = np.array(geometry.centres, np.float64), axes(geometry)[2]
    if len(centres) == 1:
        return Stack((0,), normal * geometry.thickness_mm)
    own = np.arange(len(centres))
    for order in (own, np.argsort(centres @ normal, kind="stable")):
        placed = centres[order]
        distance = float((placed[-1] - placed[0]) @ normal) / (len(placed) - 1)
        wanted = placed.mean(0) + (own - own.mean())[:, None] * distance * normal
        if abs(distance) > _CLOSE_MM and float(np.abs(placed - wanted).max()) < _CLOSE_MM:
            return Stack(tuple(order.tolist()), distance * normal)
    return None


def cut_geometry(geometry: Geometry, matrix: tuple[int, int], size: tuple[int, int]) -> Geometry:
    """Geometry of the centre of ``size`` (h, w) that is cut from images of ``matrix`` (H, W) at (H - h) // 2.

    The pixel H // 2 lands on H // 2 - (H - h) // 2, which is h // 2 unless H is even and h odd: one further there.
    """
    x, y, _ = axes(geometry)
    shift = np.zeros(3)
    for n, m, spacing, direction in zip(matrix, size, geometry.spacing_mm, (y, x), strict=True):
        shift += (m // 2 - (n // 2 - (n - m) // 2)) * spacing * direction
    if not shift.any():
        return geometry
    moved = [tuple((np.array(centre) + shift).tolist()) for centre in geometry.centres]
    return replace(geometry, centres=tuple((a, b, c) for a, b, c in moved))


def voxel_of(header: Header | None) -> tuple[float, float, float] | None:
    """Voxel size (z, y, x) in mm from the reconstructed matrix and field of view, None where the header lacks one.

    Along z it is the thickness of a slice: the gap between slices is not in it.
    """
    if header is None or header.recon is None or header.fov_mm is None:
        return None
    readout, phase, partition = (side / n for side, n in zip(header.fov_mm, header.recon, strict=True))
    return partition, readout, phase
