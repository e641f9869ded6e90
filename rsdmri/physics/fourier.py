"""Centred orthonormal Fourier transforms, image layout changes, crops.

Images are ``[..., y, x]``, k-space ``[..., coil, y, x]``; the zero frequency sits at index ``n // 2`` of every axis.
"""

import torch
from torch import Tensor


def fft2c(image: Tensor) -> Tensor:
    """Image to k-space over the last two axes: ``fftshift(fft2(ifftshift(image), norm="ortho"))``; same units."""
    axes = (-2, -1)
    result: Tensor = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=axes), norm="ortho"), dim=axes)
    return result


def ifft2c(kspace: Tensor) -> Tensor:
    """K-space to image over the last two axes, the inverse and adjoint of :func:`fft2c`."""
    axes = (-2, -1)
    result: Tensor = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=axes), norm="ortho"), dim=axes)
    return result


def fft1c(x: Tensor, dim: int) -> Tensor:
    """Centred orthonormal Fourier transform along one axis ``dim``."""
    result: Tensor = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(x, dim=dim), dim=dim, norm="ortho"), dim=dim)
    return result


def ifft1c(x: Tensor, dim: int) -> Tensor:
    """Inverse and adjoint of :func:`fft1c` along one axis ``dim``."""
    result: Tensor = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(x, dim=dim), dim=dim, norm="ortho"), dim=dim)
    return result


def to_channels(image: Tensor) -> Tensor:
    """Complex ``[..., y, x]`` to real ``[..., 2, y, x]`` (real part, imaginary part), contiguous."""
    if not image.is_complex():
        raise ValueError(f"expected a complex image, got {image.dtype}")
    return torch.view_as_real(image).movedim(-1, -3).contiguous()


def from_channels(channels: Tensor) -> Tensor:
    """Real ``[..., 2, y, x]`` (real, imaginary) to complex ``[..., y, x]``; inverse of :func:`to_channels`."""
    if channels.ndim < 3 or channels.shape[-3] != 2 or channels.is_complex():
        raise ValueError(f"expected real [..., 2, y, x], got {channels.dtype} of shape {tuple(channels.shape)}")
    return torch.view_as_complex(channels.movedim(-3, -1).contiguous())


def center_crop(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """View of the centre of the last two axes, so that index ``n // 2`` stays index ``n // 2``.

    Raises ``ValueError`` when ``shape`` is larger than ``x``.
    """
    for size, wanted in zip(x.shape[-2:], shape, strict=True):
        if not 0 < wanted <= size:
            raise ValueError(f"cannot crop {tuple(x.shape[-2:])} to {tuple(shape)}")
    top, left = (size // 2 - wanted // 2 for size, wanted in zip(x.shape[-2:], shape, strict=True))
    return x[..., top : top + shape[0], left : left + shape[1]]


def center_pad(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Zeros around the last two axes, so that index ``n // 2`` stays index ``n // 2``; inverse of :func:`center_crop`.

    Raises ``ValueError`` when ``shape`` is smaller than ``x``.
    """
    for size, wanted in zip(x.shape[-2:], shape, strict=True):
        if wanted < size:
            raise ValueError(f"cannot pad {tuple(x.shape[-2:])} to {tuple(shape)}")
    padded = x.new_zeros(*x.shape[:-2], *shape)
    top, left = (wanted // 2 - size // 2 for size, wanted in zip(x.shape[-2:], shape, strict=True))
    padded[..., top : top + x.shape[-2], left : left + x.shape[-1]] = x
    return padded


def rss(coil_images: Tensor, dim: int = -3) -> Tensor:
    """Root of the sum of squared magnitudes over the coil axis ``dim``; real, in the units of the input."""
    result: Tensor = torch.linalg.vector_norm(coil_images, dim=dim)
    return result
