"""Small problems in closed form, written with plain numpy matrices and none of the package's operators."""

import numpy as np


def dft_matrix(n: int) -> np.ndarray:
    """Centred orthonormal Fourier matrix (n, n): entry [k, j] = e^(-2 pi i (k - n//2)(j - n//2) / n) / sqrt(n)."""
    index = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)


def sense_matrix(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Matrix of A: maps (coil, y, x), mask bool (x,) or (y, x); rows are all (coil, y, x), unacquired ones zero."""
    coils, height, width = maps.shape
    fourier = np.kron(dft_matrix(height), dft_matrix(width))
    keep = np.broadcast_to(mask, (height, width)).reshape(-1, 1)
    return np.concatenate([keep * (fourier * maps[c].reshape(1, -1)) for c in range(coils)])


def random_maps(rng: np.random.Generator, coils: int, height: int, width: int) -> np.ndarray:
    """Random maps (coil, y, x) with unit sum of squares."""
    maps = rng.normal(size=(coils, height, width)) + 1j * rng.normal(size=(coils, height, width))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0))


def random_covariance(rng: np.random.Generator, size: int, floor: float = 0.05) -> np.ndarray:
    """Random Hermitian covariance (size, size), eigenvalues from ``floor`` to about 1."""
    factor = rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size))
    vectors = np.linalg.qr(factor)[0]
    return (vectors * np.geomspace(floor, 1.0, size)) @ vectors.conj().T


def conditional_gain(covariance: np.ndarray, normal: np.ndarray, sigma: float) -> np.ndarray:
    """Matrix G of E[x | u] = G u for u = B (x + sigma e), by conditioning the real Gaussian vector (Re x, Im x, u).

    ``covariance`` C counts per real channel: cov(Re x) = cov(Im x) = Re C, cov(Im x, Re x) = Im C; e has identity.
    """

    def real(matrix: np.ndarray) -> np.ndarray:
        return np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])

    size = len(covariance)
    signal, mixing = real(covariance), real(normal)
    of_x_and_e = np.block([[signal, np.zeros_like(signal)], [np.zeros_like(signal), np.eye(2 * size)]])
    to_u = np.hstack([mixing, sigma * mixing])
    of_u = to_u @ of_x_and_e @ to_u.T
    x_and_u = np.hstack([np.eye(2 * size), np.zeros((2 * size, 2 * size))]) @ of_x_and_e @ to_u.T
    gain = x_and_u @ np.linalg.pinv(of_u, rcond=1e-11, hermitian=True)
    return gain[:size, :size] + 1j * gain[size:, :size]
