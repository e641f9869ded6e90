"""Whether coil maps fit a slice: what they cover of the object, and how well they explain the ACS."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rsdmri.physics.fourier import fft2c, ifft2c, rss

_OBJECT = 0.2  # of the 99th percentile of the ACS image: what counts as object
_NOISE = 3.0  # noise levels that a pixel of the object must exceed
_LOCAL = 0.1  # unexplained share from which a pixel is inconsistent
_DEPENDENT = 1e-4  # squared sine of the angle to the other sets from which a set of maps counts

# Beyond truncation, ESPIRiT maps of 6 to 24 ACS lines leave 0 to 0.4 times the truncation (8-coil phantom, 5 scans of 2
# to 32 coils; one of 2 coils and 6 lines 4 times). On the phantom, maps shifted by 2 of 64 pixels leave 0.003 more, an
# object wrapped by a quarter 0.004 (16 lines), two coils swapped 0.16, mirrored maps 0.3; good maps have no hole.
_TRUNCATION_MARGIN = 0.5
_RESIDUAL, _BAD_RESIDUAL = 0.002, 0.03
_MISSING, _BAD_MISSING = 0.003, 0.05
_UNIT_ERROR = 0.01
_ROUGHNESS = 0.12  # 0.01 to 0.07 measured, 0.19 with noise of 0.05 added to the maps


@dataclass(frozen=True)
class MapQuality:
    """Figures of the coil maps of one slice; fractions are 0 to 1.

    ``unit_error`` (largest, median): |sum_c |s_c|^2 - 1| where there are maps. ``coverage``: pixels with maps, of all.
    ``missing``: pixels of the object without maps, in ``holes`` connected pieces. ``residual``: share of the object's
    ACS energy that neither the maps nor noise explain; ``truncation``: the same of data that the maps explain exactly,
    which a small ACS leaves. ``residual_noise``: root of the unexplained energy over what noise alone leaves (1
    expected, a little less for maps fitted to the same noise), None without noise level. ``inconsistent``: share of the
    object's pixels with a residual above a tenth. ``roughness``: root mean square sine of the angle between the maps of
    neighbouring pixels. ``acs``: samples of the shorter side of the ACS. ``object``: pixels of it.
    """

    unit_error: tuple[float, float]
    coverage: float
    missing: float
    holes: int
    residual: float
    truncation: float
    residual_noise: float | None
    inconsistent: float
    roughness: float
    acs: int
    object: int

    @property
    def grade(self) -> Literal["good", "suspicious", "bad"]:
        """First word of ``verdict``."""
        return self._judged()[0]

    @property
    def verdict(self) -> str:
        """One sentence: good, suspicious or bad, why, and what to do."""
        grade, reason = self._judged()
        return f"{grade}: {reason}"

    def _judged(self) -> tuple[Literal["good", "suspicious", "bad"], str]:
        excess = self.residual - (1 + _TRUNCATION_MARGIN) * self.truncation
        if self.object == 0:
            return "suspicious", "the ACS shows no object above the noise, so the maps cannot be judged"
        holes = f"{100 * self.missing:.1f} % of the object has no map ({self.holes} holes)"
        left = (
            f"{100 * self.residual:.2g} % of the object's ACS energy unexplained"
            f" ({100 * self.truncation:.2g} % expected of this ACS)"
        )
        if excess > _BAD_RESIDUAL:
            return "bad", f"{left}; check that the maps belong to this scan: coil order, orientation, slice"
        if self.missing > _BAD_MISSING:
            return "bad", f"{holes}; use maps of this object, enlarge the ACS or lower crop"
        if self.missing > _MISSING:
            return "suspicious", f"{holes}; enlarge the ACS or lower crop"
        if excess > _RESIDUAL:
            return "suspicious", f"{left}; motion, shifted maps, or an object larger than the field of view"
        if self.roughness > _ROUGHNESS:
            return "suspicious", f"neighbouring maps differ by {self.roughness:.2f}; smooth them or enlarge the ACS"
        if self.unit_error[0] > _UNIT_ERROR:
            return "suspicious", f"sum of squares is off by up to {self.unit_error[0]:.2g}; normalise the maps"
        return "good", f"the maps cover the object; {left}"


def map_quality(maps: Tensor, kspace: Tensor, acs: tuple[slice, slice], *, sigma_y: float = 0.0) -> MapQuality:
    """Quality of ``maps`` (coil, y, x) or (set, coil, y, x) for ``kspace`` (coil, y, x), whose noise is white.

    The block ``acs`` (slices of readout and phase encode, see ``masks.acs_block``) alone is read; a Hann window makes
    of it coil images c without ringing. In the object (their root sum of squares above a fifth of its 99th percentile
    and above three noise levels) the maps s leave the energy sum |(I - P) c|^2, P the projection onto the sets' span,
    of which noise of standard deviation ``sigma_y`` per sample, in the units of ``kspace``, explains
    (coils - rank) sigma_y^2 per pixel, times the window's mean square. A small ACS leaves a residual for perfect maps
    too, since it truncates s m where it does not truncate m; ``truncation`` is that of k-space simulated from the maps
    and the image that they make of the ACS. ``unit_error`` and ``roughness`` are the first set's.
    Raises ``ValueError`` when shapes do not fit.
    """
    sets = maps[None] if maps.ndim == 3 else maps
    if kspace.ndim != 3 or sets.ndim != 4 or sets.shape[1:] != kspace.shape or not maps.is_complex():
        raise ValueError(
            f"maps: expected complex {list(kspace.shape)} or (set, ...), got {maps.dtype} {list(maps.shape)}"
        )
    images, gain = _windowed(kspace, acs)
    noise = sigma_y**2 * gain
    n_coils = kspace.shape[0]
    energy = rss(images).square()
    explained, rank = _explained(sets, images)
    top = energy.flatten().kthvalue(1 + round(0.99 * (energy.numel() - 1))).values
    inside = energy > torch.clamp(_OBJECT**2 * top, min=_NOISE**2 * n_coils * noise)
    support = rank > 0
    judged, missing = inside & support, inside & ~support
    left, floor = (energy - explained).clamp(min=0), noise * (n_coils - rank)
    unexplained, expected = float(left[judged].sum()), float(floor[judged].sum())
    total = max(float(energy[judged].sum()), torch.finfo(energy.dtype).tiny)
    size, n_judged = int(inside.sum()), int(judged.sum())
    simulated = _windowed(_simulated(sets, kspace, acs), acs)[0]
    ideal = rss(simulated).square()
    cut = float((ideal - _explained(sets, simulated)[0]).clamp(min=0)[judged].sum())
    return MapQuality(
        unit_error=_unit_error(sets[0]),
        coverage=float(support.double().mean()),
        missing=int(missing.sum()) / max(size, 1),
        holes=_pieces(missing),
        residual=max(unexplained - expected, 0.0) / total,
        truncation=cut / max(float(ideal[judged].sum()), torch.finfo(ideal.dtype).tiny),
        residual_noise=math.sqrt(unexplained / expected) if expected > 0 else None,
        inconsistent=int((judged & (left - _NOISE * floor > _LOCAL * energy)).sum()) / max(n_judged, 1),
        roughness=_roughness(sets[0]),
        acs=min(len(range(*part.indices(n))) for part, n in zip(acs, kspace.shape[-2:], strict=True)),
        object=size,
    )


def _windowed(kspace: Tensor, acs: tuple[slice, slice]) -> tuple[Tensor, float]:
    """Coil images (coil, y, x) of the Hann-windowed ACS, float64, and the window's mean square over all of k-space."""
    kspace = kspace.to(torch.complex128)
    block, window = torch.zeros_like(kspace), kspace.real.new_ones(1, 1)
    for axis, (part, size) in enumerate(zip(acs, kspace.shape[-2:], strict=True)):
        index = torch.arange(*part.indices(size), device=kspace.device) - size // 2
        if len(index) == 0:
            raise ValueError(f"acs: {acs} is empty")
        weight = torch.cos(math.pi * index / (2 * (index.abs().max() + 1))).square()
        window = window * (weight[:, None] if axis == 0 else weight)
    block[..., acs[0], acs[1]] = window * kspace[..., acs[0], acs[1]]
    return ifft2c(block), float(window.square().sum()) / (kspace.shape[-2] * kspace.shape[-1])


def _simulated(sets: Tensor, kspace: Tensor, acs: tuple[slice, slice]) -> Tensor:
    """K-space (coil, y, x) of the image that the first of the ``sets`` makes of the ACS."""
    block = torch.zeros_like(kspace)
    block[..., acs[0], acs[1]] = kspace[..., acs[0], acs[1]]
    maps = sets[0].to(kspace.dtype)
    maps = maps / torch.where(rss(maps) > 0, rss(maps), 1)
    return fft2c(maps * (maps.conj() * ifft2c(block)).sum(0))


def _explained(sets: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Energy (y, x) of ``images`` (coil, y, x) in the span of ``sets`` (set, coil, y, x), and the rank of that span."""
    energy = images.real.new_zeros(images.shape[-2:])
    rank = torch.zeros_like(energy)
    basis: list[Tensor] = []
    for maps in sets.to(images.dtype):
        length = rss(maps)
        unit = maps / torch.where(length > 0, length, 1)
        rest = unit
        for vector in basis:
            rest = rest - vector * (vector.conj() * unit).sum(0)
        square = rss(rest).square()
        independent = square > _DEPENDENT
        vector = torch.where(independent, rest / torch.where(independent, square, 1).sqrt(), 0)
        basis.append(vector)
        energy = energy + (vector.conj() * images).sum(0).abs().square()
        rank = rank + independent
    return energy, rank


def _unit_error(maps: Tensor) -> tuple[float, float]:
    square = rss(maps).double().square()
    error = (square[square > 0] - 1).abs()
    return (float(error.max()), float(error.median())) if error.numel() else (0.0, 0.0)


def _roughness(maps: Tensor) -> float:
    """Root mean square sine of the angle between the ``maps`` (coil, y, x) of neighbours that both have one."""
    length = rss(maps)
    unit, there = maps / torch.where(length > 0, length, 1), length > 0
    squares = []
    for axis in (-2, -1):
        near, far = (unit.narrow(axis, start, unit.shape[axis] - 1) for start in (0, 1))
        both = (there.narrow(axis, start, there.shape[axis] - 1) for start in (0, 1))
        cosine = (near.conj() * far).sum(0).abs().double()
        squares.append((1 - cosine.square()).clamp(min=0)[torch.logical_and(*both)])
    joined = torch.cat(squares)
    return math.sqrt(float(joined.mean())) if joined.numel() else 0.0


def _pieces(mask: Tensor) -> int:
    """Number of connected pieces of ``mask`` (y, x), neighbours by edge."""
    from scipy.ndimage import label

    return int(label(mask.cpu().numpy())[1])
