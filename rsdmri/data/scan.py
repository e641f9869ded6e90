"""The record that every reader returns and every method takes: arrays of one scan and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Complex = npt.NDArray[np.complexfloating[npt.NBitBase, npt.NBitBase]]


@dataclass(frozen=True)
class Header:
    """Geometry from an ISMRMRD header; None where the header does not say."""

    encoded: tuple[int, int, int] | None = None
    """Encoded matrix (x, y, z): readout, phase encode, partition."""
    recon: tuple[int, int, int] | None = None
    """Reconstructed matrix (x, y, z)."""
    fov_mm: tuple[float, float, float] | None = None
    """Reconstructed field of view (x, y, z) in mm."""
    padding: tuple[int, int] | None = None
    """(left, right): phase-encode columns outside [left, right) were never acquired."""
    field_strength_t: float | None = None
    """Of the main magnetic field, tesla."""
    echo_times_ms: tuple[float, ...] | None = None
    repetition_times_ms: tuple[float, ...] | None = None
    flip_angles_deg: tuple[float, ...] | None = None
    inversion_times_ms: tuple[float, ...] | None = None


Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Where the images of a scan lie in the patient: millimetres, LPS axes (to the patient's left, back, head).

    The centre of pixel (i, j) of slice k lies at ``centres[k] + (i - h // 2) spacing_mm[0] y_direction +
    (j - w // 2) spacing_mm[1] x_direction`` for an image of h by w pixels: index n // 2 is the centre. In a `Scan` that
    image is the whole of k-space's, (H, W); what is cropped from it stays where it is.
    Raises `ValueError` for directions that are not orthonormal and sizes that are not positive.
    """

    spacing_mm: tuple[float, float]
    """Distance between the centres of neighbouring pixels along (y, x)."""
    thickness_mm: float
    """Of a slice."""
    y_direction: Vector
    """Unit vector of growing y, the readout."""
    x_direction: Vector
    """Unit vector of growing x, the phase encode."""
    centres: tuple[Vector, ...]
    """Of each slice, in the order of ``kspace``."""

    def __post_init__(self) -> None:
        sizes = (*self.spacing_mm, self.thickness_mm)
        if not all(np.isfinite(size) and size > 0 for size in sizes):
            raise ValueError(f"spacing and thickness: expected positive millimetres, got {sizes}")
        axes = np.array([self.y_direction, self.x_direction], np.float64)
        if axes.shape != (2, 3) or not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
            raise ValueError("y_direction and x_direction: expected orthonormal vectors")
        if not self.centres or not np.isfinite(np.array(self.centres, np.float64)).all():
            raise ValueError("centres: expected a finite position of each slice")

    @property
    def slice_direction(self) -> Vector:
        """Unit normal of the slices, x_direction x y_direction."""
        a, b, c = np.cross(self.x_direction, self.y_direction).tolist()
        return a, b, c


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """One scan: S slices of C coils, H readout samples (y) by W phase encodes (x).

    Raises `ValueError` when shapes or types disagree. Values are not looked at: readers check them.
    """

    name: str
    """Stem of the file, safe as a file name; never a path."""
    kspace: npt.NDArray[np.complex64]
    """(S, C, H, W), centred orthonormal; 0 where not acquired."""
    mask: npt.NDArray[np.bool_]
    """Acquired positions, (1, W) or (H, W)."""
    absent: npt.NDArray[np.bool_]
    """(W,) columns that no acceleration would acquire: padding, partial Fourier. Never acquired."""
    crop: tuple[int, int]
    """Size (h, w) of the reconstructed image, at most (H, W), cut from the centre."""
    prospective: bool
    """Whether the file itself is undersampled: a position is neither acquired nor absent."""
    acquisition: str = "unknown"
    maps: npt.NDArray[np.complex64] | None = None
    """(S, C, H, W) coil maps, where the file brought them."""
    noise_cov: npt.NDArray[np.complex128] | None = None
    """(C, C) covariance of one sample, where the file brought noise."""
    target: npt.NDArray[np.float32] | None = None
    """(S, h, w) magnitude of the fully sampled scan, in the units of ``kspace``."""
    target_source: str | None = None
    """Name of the data set that ``target`` came from."""
    header: Header | None = None
    geometry: Geometry | None = None
    """Where the slices lie, None where the file does not say: never guessed."""
    warnings: tuple[str, ...] = ()
    """What the reader had to assume, one line each."""

    def __post_init__(self) -> None:
        if self.kspace.ndim != 4 or 0 in self.kspace.shape:
            raise ValueError(f"kspace: expected (slice, coil, y, x) and no empty axis, got {self.kspace.shape}")
        slices, coils, height, width = self.kspace.shape
        expected: list[tuple[str, npt.NDArray[np.generic] | None, str, list[tuple[int, ...]]]] = [
            ("kspace", self.kspace, "complex64", [self.kspace.shape]),
            ("mask", self.mask, "bool", [(1, width), (height, width)]),
            ("absent", self.absent, "bool", [(width,)]),
            ("maps", self.maps, "complex64", [self.kspace.shape]),
            ("noise_cov", self.noise_cov, "complex128", [(coils, coils)]),
            ("target", self.target, "float32", []),
        ]
        for name, array, dtype, shapes in expected:
            if array is None:
                continue
            if str(array.dtype) != dtype:
                raise ValueError(f"{name}: expected {dtype}, got {array.dtype}")
            if shapes and array.shape not in shapes:
                raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {array.shape}")
        if self.target is not None and (self.target.ndim != 3 or len(self.target) != slices):
            raise ValueError(f"target: expected ({slices}, h, w), got {self.target.shape}")
        if self.geometry is not None and len(self.geometry.centres) != slices:
            raise ValueError(f"geometry: {len(self.geometry.centres)} slice centres for {slices} slices")
        if not (0 < self.crop[0] <= height and 0 < self.crop[1] <= width):
            raise ValueError(f"crop: {self.crop} does not fit in {(height, width)}")

    def __repr__(self) -> str:
        slices, coils, height, width = self.kspace.shape
        kind = "undersampled" if self.prospective else "fully sampled"
        return f"Scan({self.name!r}, {slices} slices, {coils} coils, {height}x{width}, {kind})"
