"""One mask for all scans of Gaussian images whose law does not change under shifts and flips: what becomes of its gaps.

The images lie in a space of so few dimensions that each can be told from the acquired lines of its coils; other lines
hold part of them. Everything is linear and expectations are exact: a loss is quadratic in the image and in each noise,
so its mean is the sum of its values on scaled unit vectors; motions are enumerated.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from references import conditional_gain, dft_matrix, random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.equivariance import EquivarianceDraw, Motion, equivariance_loss
from rsdmri.diffusion.objectives import ambient_loss
from rsdmri.physics.sense import Sense
from rsdmri.runtime import numpy_generator, torch_generator

HEIGHT, WIDTH, COILS = 1, 8, 2
PIXELS = HEIGHT * WIDTH
ACQUIRED = [3, 4, 6]  # of the frequencies 2 to 6 that the images have; a flip brings the others
SD = 0.5
LEVELS = (0.1 * SD, 0.3)  # that of the first look, and another


class Linear(nn.Module):
    """D(u) = L u with a matrix for each level, 0 at first; u is whitened before L. ``first`` looks first, if given."""

    preconditioning = "operator"

    def __init__(self, whiten: list[Tensor]):
        super().__init__()
        zero = torch.zeros(PIXELS, PIXELS, 2, dtype=torch.float64)
        self.weights = nn.ParameterList([nn.Parameter(zero.clone()) for _ in LEVELS])
        self.whiten = whiten
        self.sigma_data = torch.tensor(SD, dtype=torch.float64)
        self.first: Linear | None = None

    def gain(self, k: int) -> Tensor:
        return torch.view_as_complex(self.weights[k]) @ self.whiten[k]

    def forward(self, u: Tensor, operator: Sense, sigma: Tensor) -> Tensor:
        if self.first is not None and not torch.is_grad_enabled():
            return self.first(u, operator, sigma)
        k = int(np.argmin([abs(level - float(sigma[0])) for level in LEVELS]))
        return (u.reshape(-1, PIXELS) @ self.gain(k).T).reshape(u.shape)


class Problem:
    """Stationary Gaussian images on few spatial frequencies, coils, one mask."""

    def __init__(self) -> None:
        self.maps = random_maps(numpy_generator("equivariant", 3), COILS, HEIGHT, WIDTH)
        self.mask = np.isin(np.arange(WIDTH), ACQUIRED)
        self.seen = sense_matrix(self.maps, self.mask)
        missing = sense_matrix(self.maps, ~self.mask)
        self.normal, self.of_missing = (a.conj().T @ a for a in (self.seen, missing))
        ky, kx = np.meshgrid(np.arange(HEIGHT) - HEIGHT // 2, np.arange(WIDTH) - WIDTH // 2, indexing="ij")
        spectrum = np.where(np.abs(kx) <= 2, (1 + (kx**2 + ky**2) / 2) ** -1.5, 1e-6).ravel()
        fourier = np.kron(dft_matrix(HEIGHT), dft_matrix(WIDTH))
        self.covariance = (fourier.conj().T * spectrum) @ fourier
        self.best = [torch.as_tensor(conditional_gain(self.covariance, self.normal, s)) for s in LEVELS]
        values, vectors = np.linalg.eigh(self.covariance)
        images, units = (vectors * np.sqrt(2 * values)).T, np.sqrt(2) * np.eye(PIXELS)
        nothing = np.zeros((PIXELS, PIXELS))
        look = self._batch(np.concatenate([images, nothing]))
        self.looks = [(look, _noise(s, np.concatenate([nothing, units]))) for s in LEVELS]
        motions = list(itertools.product((False,), (False, True), range(HEIGHT), range(WIDTH)))
        self.count, each = len(motions), 3 * PIXELS
        parts = ([images, nothing, nothing], [nothing, units, nothing], [nothing, nothing, units])
        x, first, again = (np.tile(np.concatenate(part), (self.count, 1)) for part in parts)
        turns = torch.tensor(motions).repeat_interleave(each, 0)
        motion = Motion(turns[:, :2].bool(), torch.zeros(len(turns)), turns[:, 2:])
        self.moved = self._batch(x)
        self.draws = [EquivarianceDraw(_noise(0.0, first), _noise(s, again), motion) for s in LEVELS]

    def _batch(self, images: np.ndarray) -> Batch:
        count = len(images)
        mask = torch.as_tensor(self.mask).expand(count, 1, -1)
        measured = torch.as_tensor(images @ self.seen.T).reshape(count, COILS, HEIGHT, WIDTH)
        maps = torch.as_tensor(self.maps).expand(count, -1, -1, -1)
        return Batch(measured, maps, mask, mask, torch.zeros(count, dtype=torch.float64))

    def denoiser(self) -> Linear:
        return Linear([self._root(level) for level in LEVELS])

    def loss(self, denoiser: Linear, weight: float) -> Tensor:
        """Expected loss over both levels, the motions uniform."""
        total = sum(ambient_loss(denoiser, *look).sum() for look in self.looks)
        if weight:
            terms = [equivariance_loss(denoiser, self.moved, draw).sum() for draw in self.draws]
            total = total + weight * sum(terms) / self.count
        return total

    def fit(self, weight: float, rounds: int) -> Linear:
        """Least squares by turns: the denoiser of the last round looks first, that of this one is fitted."""
        denoiser = self.denoiser()
        for _ in range(rounds):
            denoiser.first = None
            denoiser.first = copy.deepcopy(denoiser)
            optimiser = torch.optim.LBFGS(denoiser.weights, max_iter=20, history_size=20, line_search_fn="strong_wolfe")

            def closure(optimiser=optimiser) -> Tensor:
                optimiser.zero_grad()
                loss = self.loss(denoiser, weight)
                loss.backward()
                return loss

            optimiser.step(closure)
        return denoiser

    def errors(self, gains: list[Tensor]) -> np.ndarray:
        """Expected energy of the error on the missing lines over that of the images there, at each level."""
        found = []
        for gain, level in zip(gains, LEVELS, strict=True):
            g = gain.detach().numpy()
            cross = g @ self.normal @ self.covariance
            error = g @ self._law(level) @ g.conj().T - cross - cross.conj().T + self.covariance
            found.append(np.trace(self.of_missing @ error).real / np.trace(self.of_missing @ self.covariance).real)
        return np.array(found)

    def _law(self, level: float) -> np.ndarray:
        """Covariance of u."""
        return self.normal @ (self.covariance + level**2 * np.eye(PIXELS)) @ self.normal

    def _root(self, level: float) -> Tensor:
        values, vectors = np.linalg.eigh(self._law(level))
        seen = values > 1e-9 * values[-1]
        return torch.as_tensor((vectors[:, seen] / np.sqrt(values[seen])) @ vectors[:, seen].conj().T)


def _noise(level: float, noise: np.ndarray) -> NoiseDraw:
    values = torch.as_tensor(noise, dtype=torch.complex128).reshape(-1, HEIGHT, WIDTH)
    return NoiseDraw(torch.full((len(noise),), level, dtype=torch.float64), values)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def test_without_the_term_missing_lines_stay_undetermined(problem):
    found = problem.fit(0, rounds=3)
    gains = [found.gain(k) for k in range(2)]
    best = problem.errors(problem.best)
    assert (problem.errors(gains) > 1.4 * best).all()
    assert problem.errors(gains)[0] > 8 * best[0]
    unseen = np.eye(PIXELS) - np.linalg.pinv(problem.normal, rcond=1e-9) @ problem.normal
    shift = torch.as_tensor(unseen) @ torch.randn(
        PIXELS, PIXELS, dtype=torch.complex128, generator=torch_generator("shift")
    )
    moved = copy.deepcopy(found)
    for k, weight in enumerate(moved.weights):
        weight.data += torch.view_as_real(shift)
        assert problem.errors([moved.gain(j) for j in range(2)])[k] > 2 * problem.errors(gains)[k]
    torch.testing.assert_close(problem.loss(moved, 0), problem.loss(found, 0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_with_the_term_their_error_falls_to_the_optimum(problem, weight):
    found = problem.fit(weight, rounds=6)
    best = problem.errors(problem.best)
    assert (best < [0.1, 0.5]).all()
    assert (problem.errors([found.gain(k) for k in range(2)]) < 1.01 * best).all()


def test_the_conditional_mean_is_where_training_with_the_term_stays(problem):
    """The first look of the optimum misses a little of the spread of the images, so not exactly."""
    best = problem.denoiser()
    for weight, gain, root in zip(best.weights, problem.best, best.whiten, strict=True):
        weight.data = torch.view_as_real(gain @ torch.linalg.pinv(root, hermitian=True, rtol=1e-9))
    size = [float(g.abs().max()) for g in _gradient(problem, problem.denoiser())]
    assert all(float(g.abs().max()) < 0.01 * s for g, s in zip(_gradient(problem, best), size, strict=True))


def _gradient(problem: Problem, denoiser: Linear) -> tuple[Tensor, ...]:
    return torch.autograd.grad(problem.loss(denoiser, 1.0), list(denoiser.weights))
