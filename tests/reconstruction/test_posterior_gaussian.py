"""Methods against posteriors in closed form: a Gaussian prior with its exact denoiser, written with plain matrices.

With a linear denoiser a draw is linear in the data plus its noise: the difference of draws of the same streams with
data y and with none is the mean of all draws, without any error of sampling.
"""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from references import random_covariance, random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics.sense import sense
from rsdmri.reconstruction.adps import adps
from rsdmri.reconstruction.consistency import Measurements, shown
from rsdmri.reconstruction.latent import fit_latent
from rsdmri.reconstruction.proximal import diffpir, proximal
from rsdmri.reconstruction.settings import AdpsSettings, DiffpirSettings, LatentSettings, ProximalSettings
from rsdmri.runtime import numpy_generator, torch_generator

HEIGHT, WIDTH = 3, 5
PIXELS = HEIGHT * WIDTH
NOISE = 0.3


class Exact(nn.Module):
    """E[x | x + s e] where all lines are shown: C (C + s^2)^-1."""

    def __init__(self, covariance: np.ndarray) -> None:
        super().__init__()
        values, vectors = np.linalg.eigh(covariance)
        self.values, self.vectors = torch.as_tensor(values), torch.as_tensor(vectors + 0j)

    def forward(self, u: Tensor, operator, sigma: Tensor) -> Tensor:
        gain = self.values / (self.values + sigma[:, None] ** 2)
        return ((u.flatten(1) @ self.vectors.conj() * gain) @ self.vectors.T).reshape(u.shape)


class Gaussian:
    """x ~ N(0, C) per real channel, y = A x + n with E|n|^2 = NOISE^2; the posterior in closed form."""

    def __init__(self, covariance: np.ndarray, coils: int) -> None:
        rng = numpy_generator("gaussian problem", coils)
        maps, mask = random_maps(rng, coils, HEIGHT, WIDTH), np.array([True, False, True, True, False])
        self.covariance, self.matrix = covariance, sense_matrix(maps, mask)
        x = np.linalg.cholesky(covariance) @ (rng.normal(size=PIXELS) + 1j * rng.normal(size=PIXELS))
        noise = NOISE / sqrt(2) * (rng.normal(size=len(self.matrix)) + 1j * rng.normal(size=len(self.matrix)))
        self.y = self.matrix @ x + np.where(np.broadcast_to(mask, (coils, HEIGHT, WIDTH)).reshape(-1), noise, 0)
        self.maps, self.mask = torch.as_tensor(maps)[None], torch.as_tensor(mask)[None]
        self.denoiser = Exact(covariance)

    def posterior(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance per real channel under the prior ``covariance``."""
        data = self.matrix.conj().T / (NOISE**2 / 2)
        found = np.linalg.inv(np.linalg.inv(covariance) + data @ self.matrix)
        return found @ data @ self.y, found

    def data(self, count: int = 1, share: float = 1.0):
        """The measurements, ``share`` of them, the same ``count`` times."""
        kspace = share * torch.as_tensor(self.y).reshape(1, -1, HEIGHT, WIDTH).expand(count, -1, -1, -1)
        operator = sense(self.maps.expand(count, -1, -1, -1), self.mask)
        return Measurements(operator, kspace, torch.full((count,), NOISE, dtype=torch.float64))


def streams(count: int = 1):
    return [torch_generator("gaussian draw", number) for number in range(count)]


def relative(found: Tensor, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found.reshape(-1).numpy() - truth) / np.linalg.norm(truth))


def total_variance(images: Tensor) -> float:
    """Per real channel, over all pixels."""
    return float(images.flatten(1).var(0).sum() / 2)


@pytest.fixture(scope="module")
def coloured() -> Gaussian:
    return Gaussian(random_covariance(numpy_generator("prior"), PIXELS, floor=0.05), coils=2)


@pytest.fixture(scope="module")
def white() -> Gaussian:
    return Gaussian(0.5 * np.eye(PIXELS), coils=1)


def test_the_problem_is_not_trivial(coloured):
    mean, covariance = coloured.posterior(coloured.covariance)
    assert np.linalg.norm(coloured.matrix.conj().T @ coloured.y - mean) > 0.2 * np.linalg.norm(mean)
    assert 0.1 < np.trace(covariance).real / np.trace(coloured.covariance).real < 0.7


@pytest.mark.parametrize("level", [0.3, 0.6])
def test_proximal_ends_at_the_posterior_mean_of_the_noisy_prior(coloured, level):
    """trust^2 = 2 s^2, no jitter: the fixed point is the posterior mean under C + s^2, from wherever it starts."""
    settings = ProximalSettings(levels=(level,) * 150, trust=sqrt(2) * level, jitter=0)
    start = unit_noise(torch.empty(1, HEIGHT, WIDTH, dtype=torch.complex128), torch_generator("start"))
    image = proximal(coloured.denoiser, coloured.data(), start=start, generators=streams(), settings=settings)
    mean, _ = coloured.posterior(coloured.covariance + level**2 * np.eye(PIXELS))
    assert relative(image, mean) < 1e-4


@pytest.mark.parametrize(("steps", "renewal", "bound"), [(20, 0.0, 0.2), (20, 1.0, 0.08), (80, 1.0, 0.03)])
def test_diffpir_means_tend_to_the_posterior_mean(coloured, steps, renewal, bound):
    """With fresh noise; without it the start is never quite forgotten."""
    settings = DiffpirSettings(steps=steps, sigma_max=5, sigma_min=0.05, renewal=renewal)
    start = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.complex128)
    with_data, without = (
        diffpir(coloured.denoiser, coloured.data(share=s), start=start, generators=streams(), settings=settings)
        for s in (1, 0)
    )
    assert bound / 2.5 < relative(with_data - without, coloured.posterior(coloured.covariance)[0]) < bound


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 150), ("heun", 40)])
def test_adps_draws_are_of_the_posterior_where_its_guidance_is_exact(white, sampler, steps):
    """White images and one coil: mean within 1 %, variance within 6 %, 300 draws."""
    settings = AdpsSettings(sampler=sampler, steps=steps, guidance="variance", lines="all")
    mean, covariance = white.posterior(white.covariance)
    given = {"sigma_data": sqrt(0.5), "generators": streams(300), "settings": settings}
    draws = adps(white.denoiser, white.data(300), **given)
    without = adps(white.denoiser, white.data(share=0), **{**given, "generators": streams()})
    assert relative(draws[:1] - without, mean) < 0.01
    assert total_variance(draws) == pytest.approx(np.trace(covariance).real, rel=0.06)


def test_adps_comes_nearer_to_the_mean_of_coloured_images_than_the_data(coloured):
    """Within 30 %: the guidance takes the images for white."""
    settings = AdpsSettings(steps=80, guidance="variance", lines="all")
    given = {"sigma_data": sqrt(np.trace(coloured.covariance).real / PIXELS), "settings": settings}
    with_data, without = (
        adps(coloured.denoiser, coloured.data(share=s), generators=streams(), **given) for s in (1, 0)
    )
    mean, _ = coloured.posterior(coloured.covariance)
    data = coloured.data()
    assert relative(with_data - without, mean) < min(0.3, 0.8 * relative(data.operator.adjoint(data.kspace), mean))


def test_the_published_step_of_adps(coloured):
    """x_0 = D - scale grad |r|^2 / |r| of each item, with the gradient 2 J^H A^H r of the linear denoiser."""
    settings = AdpsSettings(steps=1, sigma_max=2.0, scale=0.7, lines="all")
    data = coloured.data(2)
    data = replace(data, kspace=data.kspace * torch.tensor([1.0, 30.0])[:, None, None, None])
    given = {"sigma_data": 0.5, "settings": settings}
    images = adps(coloured.denoiser, data, generators=streams(2), **given)
    gain = coloured.covariance @ np.linalg.inv(coloured.covariance + 4 * np.eye(PIXELS))
    for number, stream in enumerate(streams(2)):
        x = 2 * unit_noise(images[0], stream).reshape(-1).numpy()
        residual = coloured.matrix @ gain @ x - data.kspace[number].reshape(-1).numpy()
        gradient = 2 * gain.conj().T @ coloured.matrix.conj().T @ residual
        expected = gain @ x - 0.7 * gradient / np.linalg.norm(residual)
        assert relative(images[number], expected) < 1e-10


def test_a_latent_is_the_ridge_solution_of_a_linear_generator(coloured):
    root = np.linalg.cholesky(coloured.covariance)
    mixing = torch.as_tensor(root.T)
    settings = LatentSettings(iterations=300, error=0, spread=0)
    data = coloured.data(2)
    fit = fit_latent(
        lambda e: (e.flatten(1) @ mixing).reshape(e.shape),
        replace(data, kspace=data.kspace * torch.tensor([1.0, 2.0])[:, None, None, None]),
        sigma_init=2.5,
        generators=streams(2),
        start=data.operator.adjoint(data.kspace),
        settings=settings,
    )
    mean, _ = coloured.posterior(coloured.covariance)
    latent = np.linalg.solve(root, mean)
    assert relative(fit.latents[0], latent) < 1e-4
    assert relative(fit.latents[1], 2 * latent) < 1e-4
    misfit = np.linalg.norm(coloured.matrix @ mean - coloured.y) ** 2 / NOISE**2
    assert float(fit.objective[0]) == pytest.approx(misfit + np.linalg.norm(latent) ** 2 / 2, rel=1e-6)
    assert bool((fit.objective < fit.first).all())
    assert (
        float((data.operator.forward(fit.images)[0] - data.kspace[0]).norm()) < misfit**0.5 * NOISE
    )  # the data had a say


def test_perturbed_latents_are_draws_of_the_posterior(coloured):
    """Mean within 1e-3, variance within 6 %, 300 draws."""
    root = np.linalg.cholesky(coloured.covariance)
    mixing = torch.as_tensor(root.T)
    settings = LatentSettings(iterations=200, error=0, rate=0.2)

    def draws(count: int, share: float) -> Tensor:
        given = {"sigma_init": 2.5, "generators": streams(count), "settings": settings}
        fit = fit_latent(lambda e: (e.flatten(1) @ mixing).reshape(e.shape), coloured.data(count, share), **given)
        return fit.latents.flatten(1) @ mixing

    mean, covariance = coloured.posterior(coloured.covariance)
    found = draws(300, 1)
    assert relative(found[0] - draws(1, 0)[0], mean) < 1e-3
    assert total_variance(found) == pytest.approx(np.trace(covariance).real, rel=0.06)


@pytest.mark.parametrize("lines", ["all", "acquired"])
def test_what_the_denoiser_is_shown_with_noise_of_kspace(coloured, lines):
    """u = A~^H (A~ x + s n): the part of n that no image has is in it where lines are missing, and only there."""
    seen = []

    def denoiser(u, operator, sigma):
        seen.append((u, operator.mask))
        return u

    data = coloured.data(200)
    operator, sigma = data.operator, data.sigma_y
    denoise = shown(denoiser, operator, lines, coil_noise=True, generators=streams(200))
    noise = torch.stack([unit_noise(operator.maps[0, 0], torch_generator("image noise", i)) for i in range(200)])
    denoise(sigma[:, None, None] * noise, sigma)
    u, mask = seen[0]
    rows = coloured.matrix if lines == "acquired" else sense_matrix(coloured.maps[0].numpy(), np.ones(WIDTH, bool))
    expected = 2 * NOISE**2 * np.trace(rows @ rows.conj().T).real
    assert bool(mask.all()) == (lines == "all")
    assert float(u.abs().square().sum() / 200) == pytest.approx(expected, rel=0.06)
