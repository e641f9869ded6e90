"""A head-like phantom with known smooth coil maps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.physics.fourier import fft2c, rss
from rsdmri.runtime import torch_generator


@dataclass(frozen=True)
class Phantom:
    kspace: Tensor  # (coil, y, x), fully sampled, noise-free
    maps: Tensor  # (coil, y, x), normalised everywhere
    image: Tensor  # (y, x), so that maps * image are the coil images
    inside: Tensor  # (y, x), well inside the object


def phantom(n_coils: int = 8, size: tuple[int, int] = (64, 64), seed: int = 0) -> Phantom:
    generator = torch_generator("phantom", seed)
    height, width = size
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    radius = (y / 0.7).square() + (x / 0.75).square()
    magnitude = 0.6 * (radius < 1) + 0.4 * ((radius < 1) & (radius > 0.85))
    for row, column, extent in torch.rand(8, 3, generator=generator):
        spot = ((y - row + 0.5) / 0.2).square() + ((x - column + 0.5) / 0.15).square() < extent
        magnitude = magnitude + 0.3 * (spot & (radius < 1))
    image = torch.polar(magnitude, 0.8 * y + x.square())
    angle = (torch.arange(n_coils) * 2 * math.pi / n_coils)[:, None, None]
    distance = (y - 1.4 * angle.sin()).square() + (x - 1.4 * angle.cos()).square()
    phase = angle + 0.8 * angle.cos() * y + 0.5 * (2 * angle).sin() * x * y
    coils = torch.polar(torch.exp(-distance / 1.8), phase)
    sensitivity = rss(coils)
    return Phantom(fft2c(coils * image), coils / sensitivity, image * sensitivity, radius < 0.96)


def correlated(n_coils: int, key: object = 0) -> Tensor:
    """A mixing matrix L; noise L n with n ~ CN(0, I) has covariance L L^H."""
    generator = torch_generator("mixing", n_coils, key)
    mixing = 0.3 * torch.randn(n_coils, n_coils, dtype=torch.complex128, generator=generator)
    return mixing + torch.diag(torch.linspace(0.8, 1.5, n_coils)).to(mixing.dtype)


def noise(mixing: Tensor, shape: tuple[int, ...], key: object = 0) -> Tensor:
    """Complex64 noise [*shape[:-2], coil, *shape[-2:]] with covariance L L^H per sample."""
    generator = torch_generator("noise", key, *shape)
    white = torch.randn(*shape[:-2], mixing.shape[0], shape[-2] * shape[-1], dtype=torch.complex64, generator=generator)
    return (mixing.to(torch.complex64) @ white).view(*shape[:-2], -1, *shape[-2:])


def subspace_error(maps: Tensor, truth: Tensor, where: Tensor) -> float:
    """Mean sine of the angle between maps and truth over the pixels ``where``."""
    cosine = (maps.conj() * truth).sum(0).abs()[where].double() / rss(maps)[where].clamp(min=1e-12)
    return float((1 - cosine.square()).clamp(min=0).sqrt().mean())
