"""The score of held-out lines: its value, what minimises it, what it reads; and the sampler that learns from it."""

from dataclasses import replace
from math import e, pi, sqrt

import numpy as np
import pytest
import torch
from references import random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.amortised import (
    LARGEST_LOG,
    LEAST_WEIGHT,
    RECORRUPTION,
    PosteriorSampler,
    Spread,
    energy_score,
    held_out_score,
    patch_score,
)
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser, ridge_inverse
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.diffusion.unet import UNet, draw_weights
from rsdmri.physics.classical import l1_wavelet
from rsdmri.physics.sense import sense
from rsdmri.runtime import numpy_generator, torch_generator


def kspace(*values: complex) -> Tensor:
    """Samples of one slice, one coil, one column: ``(1, 1, y, 1)``."""
    return torch.tensor(values, dtype=torch.complex128).reshape(1, 1, -1, 1)


def test_the_score_by_hand():
    points = torch.ones(1, 2, 1, dtype=torch.bool)
    first, second, target = kspace(3 + 1, 1), kspace(1 - 4j, 1), kspace(1, 1 + 2j)
    of_first_row = (3 + 4 - 5) / 2 / sqrt(2)  # two real numbers
    of_second_row = (2 + 2 - 0) / 2 / sqrt(2)
    assert float(energy_score(first, second, target, points, 1)) == pytest.approx((of_first_row + of_second_row) / 2)
    joint = (sqrt(9 + 4) + sqrt(16 + 4) - 5) / 2 / sqrt(4)
    for rows in (0, 2, 7):
        assert float(energy_score(first, second, target, points, rows)) == pytest.approx(joint)
    points[:, 1] = False
    assert float(energy_score(first, second, target, points, 0)) == pytest.approx(of_first_row)
    assert float(energy_score(first, second, target, points, 1)) == pytest.approx(of_first_row)
    points[:] = False
    assert float(energy_score(first, second, target, points, 1)) == 0


@pytest.mark.parametrize(("height", "rows"), [(6, 2), (5, 2), (5, 1), (6, 0)])
def test_blocks_of_held_out_lines_are_rows_of_the_image(height, rows):
    rng = numpy_generator("blocks", height)
    first, second, target = rng.normal(size=(3, 3, 2, height, 4, 2)) @ [1, 1j]
    held = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = energy_score(*map(torch.as_tensor, (first, second, target)), torch.as_tensor(held)[:, None], rows)
    expected = np.zeros(3)
    for item in range(2):
        parts = [
            np.fft.ifft(d[item][..., held[item]], axis=-2, norm="ortho")
            for d in (first - target, second - target, first - second)
        ]
        size = rows or height
        blocks = [[p[:, start : start + size] for p in parts] for start in range(0, height, size)]
        each = [
            (np.linalg.norm(a) + np.linalg.norm(b) - np.linalg.norm(c)) / 2 / sqrt(2 * a.size) for a, b, c in blocks
        ]
        expected[item] = np.mean(each)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("patch", [(2, 4), (3, 2), (0, 0), (9, 1)])
def test_patches_of_images_of_held_out_lines(patch):
    """Against dense matrices; patches at the lower and the right edge may be smaller."""
    rng, height, width = numpy_generator("patches"), 5, 7
    maps = np.stack([random_maps(rng, 2, height, width) for _ in range(2)])
    held = np.isin(np.arange(width), [1, 2, 6]), np.zeros(width, bool)
    first, second, target = rng.normal(size=(3, 2, 2, height, width, 2)) @ [1, 1j]
    operator = sense(torch.as_tensor(maps), torch.as_tensor(np.stack(held))[:, None])
    found = patch_score(*map(torch.as_tensor, (first, second, target)), operator, patch)
    adjoint = sense_matrix(maps[0], held[0]).conj().T
    a, b, c = (
        (adjoint @ d[0].reshape(-1)).reshape(height, width) for d in (first - target, second - target, first - second)
    )
    rows, columns = (min(size or side, side) for size, side in zip(patch, (height, width), strict=True))
    patches = [
        np.s_[top : top + rows, left : left + columns]
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    norms = [np.linalg.norm(a[at]) + np.linalg.norm(b[at]) - np.linalg.norm(c[at]) for at in patches]
    expected = np.mean(norms) / 2 / sqrt(2 * rows * columns * 3 / width)
    np.testing.assert_allclose(found, [expected, 0], rtol=1e-12)


@pytest.mark.parametrize("patch", [None, (1, 1)])
def test_equal_draws_have_a_gradient(patch):
    same = torch.zeros(1, 1, 2, 2, dtype=torch.complex64, requires_grad=True)
    held = torch.ones(1, 1, 2, dtype=torch.bool)
    if patch is None:
        score = energy_score(same, same, torch.zeros_like(same), held, 1)
    else:
        operator = sense(torch.ones_like(same), held)
        score = patch_score(same, same, torch.zeros_like(same), operator, patch)
    (gradient,) = torch.autograd.grad(score.sum(), same)
    assert torch.equal(gradient, torch.zeros_like(gradient))


MEAN, STD, NOISE = 0.7, 0.8, 0.5  # of a sample's posterior, per real number, and of the measurement noise


def fitted(fresh_noise: bool) -> tuple[float, float, float]:
    """Mean, std and score of the Gaussian that the score picks for y = x + n, x ~ N(MEAN, STD^2), all real."""
    points = torch.quasirandom.SobolEngine(6).draw(2**15 + 1, dtype=torch.float64)[1:]
    e1, e2, n1, n2, x, n = (torch.special.ndtri(points) + 0j).T[..., None, None, None]
    target, held = MEAN + STD * x + NOISE * n, torch.ones(len(points), 1, 1, dtype=torch.bool)
    chosen = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([chosen], max_iter=30, line_search_fn="strong_wolfe")

    def score() -> Tensor:
        optimiser.zero_grad()
        first, second = (chosen[0] + chosen[1] * z + NOISE * m * fresh_noise for z, m in ((e1, n1), (e2, n2)))
        loss = energy_score(first, second, target, held, 1).mean()
        loss.backward()
        return loss

    optimiser.step(score)
    mean, std = chosen.detach().tolist()
    return mean, abs(std), float(score().detach())


def test_the_score_is_least_for_the_posterior_of_the_noise_free_image():
    mean, std, score = fitted(fresh_noise=True)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.01), pytest.approx(STD, rel=0.03))
    # |N(0, 2 t^2)| has the mean 2 t / sqrt(pi), two of draws and target less one of draws, over 2 sqrt(2)
    assert score == pytest.approx(sqrt(STD**2 + NOISE**2) / sqrt(2 * pi), rel=0.01)


def test_without_fresh_noise_the_noise_is_learnt_as_image():
    mean, std, _ = fitted(fresh_noise=False)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.01), pytest.approx(sqrt(STD**2 + NOISE**2), rel=0.03))


def batch_of(count: int = 3, noise: float = 0.1) -> Batch:
    """Slices of 8 x 9 with 2 coils: lines 1, 3 to 5 and 7 acquired, line 7 held out."""
    rng = numpy_generator("amortised")
    maps = torch.as_tensor(np.stack([random_maps(rng, 2, 8, 9) for _ in range(count)]), dtype=torch.complex64)
    mask = torch.zeros(count, 1, 9, dtype=torch.bool)
    mask[..., [1, 3, 4, 5, 7]] = True
    shown = mask.clone()
    shown[..., 7] = False
    images = torch.as_tensor(rng.normal(size=(count, 8, 9)) + 1j * rng.normal(size=(count, 8, 9)))
    return Batch(sense(maps, mask).forward(images.to(torch.complex64)), maps, mask, shown, torch.full((count,), noise))


def network() -> Denoiser:
    backbone, generator = UNet(channels=(8, 16)), torch_generator("weights")
    backbone.initialise(generator)
    denoiser = Denoiser(backbone, 0.5)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return denoiser


def noise_of(batch: Batch) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch_generator("noise")
    one, two, three, four = (
        unit_noise(like, generator) for like in (batch.image, batch.image, batch.measured, batch.measured)
    )
    return (one, two), (three, four)


def seen_loss_and_gradients(batch: Batch) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """What the network is given, the loss, its gradients."""
    denoiser, seen = network(), []
    denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images, noise = noise_of(batch)
    loss = held_out_score(PosteriorSampler(denoiser, (0.1,), 0.1), batch, images, noise, (2, 0))
    return seen, loss, list(torch.autograd.grad(loss.sum(), list(denoiser.parameters())))


def test_nothing_unacquired_is_read_and_held_out_lines_are_not_shown():
    batch = batch_of()
    seen, loss, gradients = seen_loss_and_gradients(batch)
    unacquired = torch.where(batch.mask[:, None], batch.measured, torch.nan)
    again, same_loss, same_gradients = seen_loss_and_gradients(replace(batch, measured=unacquired))
    assert torch.isfinite(loss).all()
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(a, b) for a, b in zip(seen + gradients, again + same_gradients, strict=True))
    moved = torch.where(batch.further_mask[:, None], batch.measured, batch.measured + 1)
    again, other_loss, _ = seen_loss_and_gradients(replace(batch, measured=moved))
    assert len(seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert float((other_loss - loss).detach().abs().min()) > 1e-3


def test_items_do_not_feel_each_other():
    batch = batch_of()
    images, noise = noise_of(batch)
    sampler = PosteriorSampler(network(), (0.1,), 0.1)
    together = held_out_score(sampler, batch, images, noise, (4, 0))
    own = slice(1, 2)
    alone = held_out_score(
        sampler, batch[own], (images[0][own], images[1][own]), (noise[0][own], noise[1][own]), (4, 0)
    )
    torch.testing.assert_close(together[own], alone)


def test_what_all_draws_share_ends_with_the_proximal_step():
    batch = batch_of(1, noise=0.2)
    scan = batch.measured, batch.operator, batch.sigma_y
    denoiser = network()
    denoiser.iterations = 100
    trust = 0.25
    raw, agreed = (
        PosteriorSampler(denoiser, (0.1, 0.1), t).estimate(*scan)[0].detach().reshape(-1) for t in (0, trust)
    )
    matrix = sense_matrix(batch.maps[0].numpy(), batch.mask[0].numpy())
    weight = 2 * (0.2 / trust) ** 2
    assert weight > LEAST_WEIGHT
    right = matrix.conj().T @ batch.measured[0].reshape(-1).numpy() + weight * raw.numpy()
    expected = np.linalg.solve(matrix.conj().T @ matrix + weight * np.eye(72), right)
    np.testing.assert_allclose(agreed.numpy(), expected, atol=2e-5)


class Seeing(nn.Module):
    """A sampler that remembers what it is shown and draws given images."""

    def __init__(self, *draws: Tensor) -> None:
        super().__init__()
        self.draws, self.told = list(draws), []

    def estimate(self, kspace: Tensor, operator, sigma_y: Tensor, conditions=None) -> None:
        self.told.append((kspace, sigma_y))

    def forward(self, kspace: Tensor, operator, sigma_y: Tensor, noise: Tensor, conditions, start) -> Tensor:
        return self.draws.pop(0)


def test_shown_lines_are_asked_for_with_noise_that_was_not_shown():
    batch, generator = batch_of(noise=0.2), torch_generator("recorrupted")
    images, noise = noise_of(batch)
    again = unit_noise(batch.measured, generator)
    draws = [unit_noise(batch.image, generator) for _ in range(2)]
    sampler = Seeing(*draws)
    found = held_out_score(sampler, batch, images, noise, (2, 0), again)
    ((kspace, level),) = sampler.told
    a, seen = RECORRUPTION, batch.further_mask[:, None]
    given, target = kspace - batch.measured, -0.2 / a * again
    torch.testing.assert_close(torch.where(seen, given, 0), torch.where(seen, a * 0.2 * again, 0))
    torch.testing.assert_close(level, torch.full((3,), 0.2 * sqrt(1 + a**2)))
    covariance = (given.conj() * target).real.mean() + 0.04 * 2  # of the noise that was added, and the scan's own
    assert abs(float(covariance)) < 0.02
    clean = [batch.operator.forward(x) for x in draws]
    held = batch.mask & ~batch.further_mask
    of_held = energy_score(*(x + 0.2 * n for x, n in zip(clean, noise, strict=True)), batch.measured, held, 2)
    noisy = [x + 0.2 * sqrt(1 + 1 / a**2) * n for x, n in zip(clean, noise, strict=True)]
    of_shown = energy_score(*noisy, batch.measured + target, batch.further_mask, 2)
    torch.testing.assert_close(found, of_held + of_shown)


def test_levels_after_the_first_refine_and_the_last_draws():
    """Against the formula of each level, with the network called by hand."""
    batch = batch_of(noise=0.01)
    (noise, _), _ = noise_of(batch)
    denoiser, scan = network(), (batch.measured, batch.operator, batch.sigma_y)
    data = denoiser.sigma_data
    ratio = ((0.2**2 + 0.01**2) / data**2).expand(3)
    base = ridge_inverse(batch.operator.adjoint(batch.measured), batch.operator, ratio, 6)
    for level, fresh in ((0.2, 0), (0.1, 0), (0.05, noise)):
        sigma = torch.full((3,), sqrt(level**2 + 0.01**2))
        told = sigma[0]
        left = ridge_inverse(fresh * torch.ones_like(base), batch.operator, torch.full((3,), LEAST_WEIGHT), 6)
        base = base + told * LEAST_WEIGHT * left
        inputs = base * (1 + (told / data) ** 2) / (told**2 + data**2).sqrt()
        planes = [inputs.real, inputs.imag, batch.mask.float().expand(-1, 8, -1)]
        change = torch.view_as_complex(
            denoiser.network(torch.stack(planes, 1), sigma.log() / 4).movedim(1, -1).contiguous()
        )
        base = base + data * change
    sampler = PosteriorSampler(denoiser, (0.2, 0.1, 0.05), 0)  # its noise is as wide everywhere before it has learnt
    torch.testing.assert_close(sampler(*scan, noise), base, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sampler(*scan, noise, start=sampler.estimate(*scan)), base, rtol=1e-4, atol=1e-5)
    assert sampler.evaluations(8) == 10
    assert PosteriorSampler(denoiser, (0.2,), 0).estimate(*scan) is None


def test_a_draw_begins_with_noise_as_wide_as_the_spread_says_where_samples_do_not_tell():
    batch = batch_of(noise=0.01)
    (noise, _), _ = noise_of(batch)
    spread, denoiser, scan = (
        Spread().requires_grad_(False),
        network().requires_grad_(False),
        (batch.measured, batch.operator, batch.sigma_y),
    )
    draw_weights(spread, torch_generator("spread"))
    last, sigma = spread.layers[-1], torch.full((3,), sqrt(0.05**2 + 0.01**2))
    nn.init.normal_(last.weight, std=0.2, generator=torch_generator("last"))
    denoiser.iterations = 60
    sampler = PosteriorSampler(denoiser, (0.2, 0.05), 0, spread=spread)
    estimate = sampler.estimate(*scan)
    planes = (
        estimate.abs() / 0.5,
        batch.mask.float().expand(-1, 8, -1),
        (sigma.log() / 4)[:, None, None].expand(-1, 8, 9),
    )
    wide = spread.layers(torch.stack(planes, 1))[:, 0].exp()
    assert float(wide.amax() / wide.amin()) > 1.5
    left = noise.clone()
    for item in range(3):
        matrix = torch.as_tensor(
            sense_matrix(batch.maps[item].numpy(), batch.mask[item].numpy()), dtype=torch.complex64
        )
        normal = matrix.mH @ matrix + LEAST_WEIGHT * torch.eye(72)
        left[item] = LEAST_WEIGHT * torch.linalg.solve(normal, (wide * noise)[item].reshape(-1)).reshape(8, 9)
    assert 0.2 < float(left.norm() / (wide * noise).norm()) < 0.9
    expected = denoiser.refined(estimate + sigma[:, None, None] * left, batch.operator, sigma)
    torch.testing.assert_close(sampler(*scan, noise), expected, rtol=1e-4, atol=1e-5)
    nn.init.constant_(last.bias, 100)
    assert float(spread(planes[0], batch.mask, sigma).max()) == pytest.approx(e**LARGEST_LOG)


def test_the_first_level_starts_from_a_warm_image():
    batch, denoiser = batch_of(noise=0.02), network().requires_grad_(False)
    scan = batch.measured, batch.operator, batch.sigma_y
    way = {"iterations": 5, "tolerance": 0.0, "generator": torch_generator("warm")}
    warm = l1_wavelet(batch.operator, batch.measured, strength=0.1 * sqrt(2) * 0.02 + 0.001, **way)
    expected = denoiser.refined(warm, batch.operator, torch.full((3,), sqrt(0.2**2 + 0.02**2)))
    sampler = PosteriorSampler(denoiser, (0.2, 0.1), 0, warm=5)
    torch.testing.assert_close(sampler.estimate(*scan), expected)
    assert torch.equal(sampler.estimate(*scan), sampler.estimate(*scan))
    ridge = PosteriorSampler(denoiser, (0.2, 0.1), 0).estimate(*scan)
    assert float((ridge - expected).norm() / ridge.norm()) > 0.01


def test_every_level_learns_and_draws_of_a_scan_share_the_estimate():
    batch, denoiser = batch_of(), network()
    sampler, (images, noise) = PosteriorSampler(denoiser, (0.2, 0.1), 0.1), noise_of(batch)
    outputs = []
    denoiser.network.register_forward_hook(lambda _, __, output: outputs.append(output))
    loss = held_out_score(sampler, batch, images, noise, (2, 0))
    assert len(outputs) == 3
    assert all(float(gradient.abs().max()) > 0 for gradient in torch.autograd.grad(loss.sum(), outputs))


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="expected operator preconditioning, got published"):
        PosteriorSampler(Denoiser(UNet(channels=(8,)), 0.5, "published"), (0.1,), 0.1)
    images = Batch(*[torch.zeros(1, 4, 4), None], *[torch.ones(1, 4, 4, dtype=torch.bool)] * 2, torch.zeros(1))
    with pytest.raises(ValueError, match="levels: expected at least one"):
        PosteriorSampler(network(), (), 0.1)
    with pytest.raises(ValueError, match="expected k-space with coil maps"):
        held_out_score(PosteriorSampler(network(), (0.1,), 0.1), images, (), (), (1, 0))


HEIGHT, WIDTH, SIGMA = 2, 5, 0.05  # noise per real number
PIXELS = HEIGHT * WIDTH


class Linear(nn.Module):
    """D(u) = W (A^H A + lambda)^-1 u."""

    preconditioning, iterations = "operator", 12

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigma_data", torch.tensor(0.7))
        self.weight = nn.Parameter(torch.view_as_real(torch.eye(PIXELS, dtype=torch.complex64)))

    def forward(self, u: Tensor, operator, sigma: Tensor, conditions=None) -> Tensor:
        base = ridge_inverse(u, operator, (sigma / self.sigma_data) ** 2, self.iterations)
        return (base.flatten(1) @ torch.view_as_complex(self.weight).T).reshape(u.shape)


class Toy:
    """x ~ N(0, C) per real channel on one coil of phases; lines 2 and 3 shown, 0 and 4 held out."""

    def __init__(self) -> None:
        rng = numpy_generator("linear posterior")
        axis = [np.arange(n) for n in (HEIGHT, WIDTH)]
        smooth = [np.exp(-0.5 * (np.subtract.outer(a, a) / 1.2) ** 2) + 0.02 * np.eye(len(a)) for a in axis]
        self.covariance = 0.5 * np.kron(*smooth)
        self.root = np.linalg.cholesky(self.covariance)
        self.maps = np.exp(1j * rng.uniform(-1, 1, size=(1, HEIGHT, WIDTH)))
        self.shown, self.held = np.isin(np.arange(WIDTH), [2, 3]), np.isin(np.arange(WIDTH), [0, 4])

    def batch(self, count: int, generator: torch.Generator) -> Batch:
        root = torch.as_tensor(self.root, dtype=torch.complex64)
        images = unit_noise(torch.empty(count, PIXELS, dtype=torch.complex64), generator) @ root.T
        maps = torch.as_tensor(self.maps, dtype=torch.complex64).expand(count, -1, -1, -1)
        mask, shown = (torch.as_tensor(m).expand(count, 1, -1) for m in (self.shown | self.held, self.shown))
        clean = sense(maps, mask).forward(images.reshape(count, HEIGHT, WIDTH))
        return Batch(clean + SIGMA * unit_noise(clean, generator), maps, mask, shown, torch.full((count,), SIGMA))

    def posterior(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gain and covariance per real channel given ``lines``."""
        a = sense_matrix(self.maps, lines)
        of_samples = a @ self.covariance @ a.conj().T + SIGMA**2 * np.eye(PIXELS)
        gain = self.covariance @ a.conj().T @ np.linalg.inv(of_samples)
        return gain, self.covariance - gain @ a @ self.covariance

    def learnt(self, sampler: PosteriorSampler, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of the sampler, which is linear in the samples and in its noise."""
        basis = torch.eye(PIXELS, dtype=torch.complex64).reshape(PIXELS, HEIGHT, WIDTH)
        maps = torch.as_tensor(self.maps, dtype=torch.complex64).expand(PIXELS, -1, -1, -1)
        operator, level = sense(maps, torch.as_tensor(lines).expand(PIXELS, 1, -1)), torch.full((PIXELS,), SIGMA)
        with torch.no_grad():
            gain = sampler(basis[:, None], operator, level, 0 * basis).flatten(1).T.numpy()
            spread = sampler(0 * basis[:, None], operator, level, basis).flatten(1).T.numpy()
        return gain, spread @ spread.conj().T


@pytest.fixture(scope="module")
def toy() -> tuple[Toy, PosteriorSampler]:
    """A linear network after 200 steps of the score."""
    toy, sampler, steps = Toy(), PosteriorSampler(Linear(), (0.2,), 0), 200
    optimiser, generator = torch.optim.Adam(sampler.parameters(), lr=0.05), torch_generator("toy")
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.08 * (1 - step / steps)
        batch = toy.batch(128, generator)
        like = batch.image, batch.image, batch.measured, batch.measured, batch.measured
        noise = [unit_noise(each, generator) for each in like]
        optimiser.zero_grad()
        held_out_score(sampler, batch, tuple(noise[:2]), tuple(noise[2:4]), (0, 0), noise[4]).mean().backward()
        optimiser.step()
    return toy, sampler


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_linear_network_learns_the_posterior_of_held_out_lines(toy):
    toy, sampler = toy
    held, shown = sense_matrix(toy.maps, toy.held), sense_matrix(toy.maps, toy.shown)
    gain, covariance = toy.posterior(toy.shown)
    expected = held @ gain @ shown, held @ covariance @ held.conj().T

    def errors(one: PosteriorSampler) -> list[float]:
        own_gain, own_covariance = toy.learnt(one, toy.shown)
        found = held @ own_gain @ shown, held @ own_covariance @ held.conj().T
        return [relative(a, b) for a, b in zip(found, expected, strict=True)]

    untrained = errors(PosteriorSampler(Linear(), (0.2,), 0))
    assert min(untrained) > 0.9
    of_gain, of_covariance = errors(sampler)
    assert of_gain < 0.1
    assert of_covariance < 0.3


def test_a_linear_network_learns_the_lines_that_nothing_holds_out(toy):
    """Those it is shown, from their noise drawn anew: alone the score of held-out lines leaves them as they start."""
    toy, sampler = toy
    shown = sense_matrix(toy.maps, toy.shown)
    expected = shown @ toy.posterior(toy.shown)[0] @ shown

    def error(one: PosteriorSampler) -> float:
        return relative(shown @ toy.learnt(one, toy.shown)[0] @ shown, expected)

    untrained = error(PosteriorSampler(Linear(), (0.2,), 0))
    assert error(sampler) < min(0.05, 0.7 * untrained)


def test_more_lines_than_in_training_are_another_law(toy):
    """What `held_out_score` says it does not teach: a linear network cannot tell how many lines it is shown."""
    toy, sampler = toy
    acquired = toy.shown | toy.held
    rest = sense_matrix(toy.maps, ~acquired)
    variance = [
        np.trace(rest @ covariance @ rest.conj().T).real
        for covariance in (
            toy.posterior(acquired)[1],
            toy.posterior(toy.shown)[1],
            toy.learnt(sampler, acquired)[1],
        )
    ]
    assert variance[1] > 1.1 * variance[0]
    assert 2 < variance[2] / variance[0] < 8  # too wide
