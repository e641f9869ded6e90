"""A Gaussian prior whose posterior draws are exact: x ~ CN(0, C), y = A x + n, in closed form with dense matrices."""

import numpy as np
import torch
from references import random_maps, sense_matrix
from torch import Tensor

from rsdmri.physics.sense import Sense, sense
from rsdmri.runtime import numpy_generator

SIZE, COILS = 10, 2


class GaussianProblem:
    """Smooth images (y, x), multicoil k-space under ``mask``, and exact draws from what ``shown`` says."""

    def __init__(self, mask: Tensor, shown: Tensor, sigma: float, key: int = 0):
        rng = numpy_generator("gaussian problem", key)
        self.mask, self.shown, self.sigma = mask, shown, sigma
        self.maps = random_maps(rng, COILS, SIZE, SIZE)
        axis = np.arange(SIZE)
        smooth = np.exp(-0.5 * (np.subtract.outer(axis, axis) / 1.5) ** 2) + 0.01 * np.eye(SIZE)
        self.covariance = np.kron(smooth, smooth)
        self.root = np.linalg.cholesky(self.covariance)
        self.everything = sense_matrix(self.maps, np.ones(SIZE, bool))
        keep = np.tile(np.broadcast_to(shown.numpy(), (SIZE, SIZE)).reshape(-1), COILS)
        seen = self.everything[keep]
        inner = seen @ self.covariance @ seen.conj().T + sigma**2 * np.eye(len(seen))
        self.keep, self.seen = keep, seen
        self.gain = self.covariance @ seen.conj().T @ np.linalg.inv(inner)

    def operator(self, mask: Tensor) -> Sense:
        return sense(torch.from_numpy(self.maps), mask)

    def scan(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image (pixel,) and all samples (coil * y * x,) of one scan."""
        image = self.root @ _normal(rng, SIZE**2)
        return image, self.everything @ image + self.sigma * _normal(rng, len(self.everything))

    def draws(self, samples: np.ndarray, count: int, rng: np.random.Generator, spread: float = 1.0) -> Tensor:
        """Draws (draw, y, x) from the posterior of the shown ``samples``, ``spread`` times as far from its mean.

        x' + G (y - A x' - n') with (x', n') fresh is an exact draw (Matheron's rule).
        """
        images = self.root @ _normal(rng, SIZE**2, count)
        noise = self.sigma * _normal(rng, int(self.keep.sum()), count)
        away = images - self.gain @ (self.seen @ images + noise)
        found = (self.gain @ samples[self.keep])[:, None] + spread * away
        return torch.from_numpy(np.ascontiguousarray(found.T)).reshape(count, SIZE, SIZE)

    @staticmethod
    def kspace(samples: np.ndarray) -> Tensor:
        return torch.from_numpy(samples).reshape(COILS, SIZE, SIZE)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)
