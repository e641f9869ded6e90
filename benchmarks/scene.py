"""A head-like slice of any size with known smooth coil maps, for benchmarks."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scene:
    """K-space (coil, y, x) with noise, the maps (coil, y, x) and image (y, x) behind it, and the object (y, x)."""

    kspace: "Tensor"
    maps: "Tensor"
    image: "Tensor"
    inside: "Tensor"


def scene(n_coils: int, height: int, width: int, *, noise: float = 0.02) -> Scene:
    """Ellipses, spots and fine texture seen by a ring of loops; ``noise`` per complex sample, the image being about 1.

    A readout more than half as long again as the phase encode is taken as oversampled twice.
    """
    import torch

    from rsdmri.physics.fourier import fft2c
    from rsdmri.runtime import torch_generator

    generator = torch_generator("scene", n_coils, height, width)
    reach = 2.0 if height > 1.5 * width else 1.0
    y, x = torch.meshgrid(torch.linspace(-reach, reach, height), torch.linspace(-1, 1, width), indexing="ij")
    radius = (y / 0.85).square() + (x / 0.7).square()
    inside = radius < 1
    magnitude = 0.5 * inside + 0.5 * (inside & (radius > 0.88)) - 0.35 * ((radius < 0.88) & (radius > 0.8))
    for row, column, size in torch.rand(24, 3, generator=generator) * torch.tensor([1.2, 1.0, 0.25]):
        spot = ((y - row + 0.6) / 0.9).square() + ((x - column + 0.5) / 0.7).square() < (0.05 + size).square()
        magnitude = magnitude + 0.12 * (spot & (radius < 0.8))
    magnitude = magnitude + 0.03 * inside * (torch.sin(60 * x + 9 * y) * torch.sin(47 * y))
    image = torch.polar(magnitude.clamp(min=0), 0.8 * y + x.square() + 0.4 * x * y)

    angle = (torch.arange(n_coils) * 2 * math.pi / n_coils)[:, None, None]
    distance = (y - 1.2 * angle.sin()).square() + (x - 1.1 * angle.cos()).square()
    phase = angle + 0.8 * angle.cos() * y + 0.5 * (2 * angle).sin() * x * y
    coils = torch.polar((1 + distance / 0.4).pow(-1.5), phase)
    maps = coils / torch.linalg.vector_norm(coils, dim=0)
    kspace = fft2c(maps * image)
    kspace = kspace + noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return Scene(kspace, maps, image, radius < 0.97)
