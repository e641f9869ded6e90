"""Where slices lie in the patient, from the positions and directions of their readouts (LPS, mm)."""

import numpy as np

from rsdmri.data.scan import Geometry, Vector

_TOLERANCE_MM, _TOLERANCE = 0.01, 1e-3


def place_slices(
    lines: np.ndarray,
    slabs: np.ndarray,
    partitions: int,
    voxel_mm: tuple[float, float, float] | None,
    *,
    conjugate: bool,
) -> tuple[Geometry | None, tuple[str, ...]]:
    """Geometry of the slices, slab by slab and in each by partition, or None with a warning that says why.

    With s(k) = sum of rho(r) exp(-2 pi i k r), r along read_dir, phase_dir and slice_dir from ``position``, the centred
    inverse Fourier transform puts ``position`` at index n // 2 of every axis and directions as they are. A scanner of
    the other sign (``conjugate``) has every transformed direction reversed and the same centre.

    Args:
        lines: the imaging readouts, of ``LINE``.
        slabs: (n,) slab or slice of each line, from 0.
        partitions: slices of each slab.
        voxel_mm: size of a voxel along (readout, phase encode, slice), None if not known.
        conjugate: whether the file has s(k) = sum of rho(r) exp(+2 pi i k r).
    """
    if voxel_mm is None:
        return None, ("where the slices lie is not known: the header has no field of view",)
    if not any(lines[name].any() for name in ("read_dir", "phase_dir", "slice_dir")):
        return None, ("where the slices lie is not known: the readouts have no directions",)
    first = np.unique(slabs, return_index=True)[1]
    for name in ("read_dir", "phase_dir", "slice_dir"):
        if not np.allclose(lines[name], lines[name][0], atol=_TOLERANCE, rtol=0):
            return None, (f"where the slices lie is not recorded: {name} changes between readouts",)
    if not np.allclose(lines["position"], lines["position"][first][slabs], atol=_TOLERANCE_MM, rtol=0):
        return None, ("where the slices lie is not recorded: readouts of one slice have different positions",)
    read, phase, normal = (lines[name][0] for name in ("read_dir", "phase_dir", "slice_dir"))
    axes = np.stack([read, phase, normal])
    if not np.allclose(axes @ axes.T, np.eye(3), atol=_TOLERANCE):
        return None, ("where the slices lie is not known: the directions of the readouts are not orthonormal",)
    sign = -1.0 if conjugate else 1.0
    offsets = sign * voxel_mm[2] * (np.arange(partitions) - partitions // 2)
    if partitions == 1:
        offsets = np.zeros(1)
    centres = lines["position"][first][:, None] + offsets[:, None] * normal
    try:
        geometry = Geometry(
            spacing_mm=(voxel_mm[0], voxel_mm[1]),
            thickness_mm=voxel_mm[2],
            y_direction=_vector(sign * read),
            x_direction=_vector(sign * phase),
            centres=tuple(_vector(centre) for centre in centres.reshape(-1, 3)),
        )
    except ValueError:  # a position that is not finite
        return None, ("where the slices lie is not known: positions or directions of the readouts are not finite",)
    if conjugate:
        return geometry, ("Siemens data have the other sign of the Fourier transform; directions reversed to fit",)
    return geometry, ()


def _vector(values: np.ndarray) -> Vector:
    a, b, c = (float(value) + 0.0 for value in values)  # + 0.0: no negative zeros
    return a, b, c
