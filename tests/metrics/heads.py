"""Heads of ellipses, and what spoils images of them."""

import numpy as np
from scipy.ndimage import gaussian_filter

from rsdmri.runtime import numpy_generator


def rng(*key):
    return numpy_generator("distribution", *key)


def heads(n=80, size=(48, 48), seed=0):
    """Ellipses in ellipses, complex, brightest about 1."""
    generator = rng("heads", seed)
    y, x = np.meshgrid(*[np.linspace(-1, 1, k) for k in size], indexing="ij")
    images = np.zeros((n, *size), complex)
    for image in images:
        a, b = generator.uniform(0.6, 0.85, 2)
        image += 0.5 * generator.uniform(0.8, 1.2) * ((x / a) ** 2 + (y / b) ** 2 < 1)
        for _ in range(6):
            cx, cy, r, s = *generator.uniform(-0.4, 0.4, 2), *generator.uniform(0.05, 0.3, 2)
            image += generator.uniform(-0.3, 0.4) * (((x - cx) / r) ** 2 + ((y - cy) / s) ** 2 < 1)
        image *= np.exp(1j * generator.uniform(0, 6))
    return images


def blurred(images, strength):
    return gaussian_filter(images.real, (0, strength, strength)) + 1j * gaussian_filter(
        images.imag, (0, strength, strength)
    )


def noisy(images, sigma):
    g = rng("noise")
    return images + sigma * (g.standard_normal(images.shape) + 1j * g.standard_normal(images.shape)) / np.sqrt(2)


def zero_filled(images, acceleration):
    g, width = rng("mask"), images.shape[-1]
    mask = g.random((len(images), 1, width)) < 1 / acceleration
    mask[..., width // 2 - 2 : width // 2 + 2] = True
    kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(images, axes=-1)), axes=-1)
    kspace = np.where(mask, kspace, 0)
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes=-1)), axes=-1)
