"""The consistency term: zero in expectation for the exact denoiser, and what it teaches below the measurement noise.

For denoisers that are linear in u the chain and the term are quadratic in Gaussian vectors, and expectations are exact
(see `exact_loss`). The Gaussian posterior mean is linear, and one ancestral step has the right mean: the term vanishes
to rounding. For other images its step of 10 % leaves a bias, which is bounded here for the hardest, two values.
"""

import math

import numpy as np
import pytest
import torch
from test_measurement_loss import HEIGHT, PIXELS, WIDTH, Case, ExactFromSamples, Problem, random_batch
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.objectives import consistency_loss, draw_consistency, measurement_loss
from rsdmri.physics.sense import Sampling, Sense
from rsdmri.runtime import torch_generator

STEPS = 6  # noises of one item: four steps down, two from there
CASES = [
    Case("ambient-tweedie", real=True, sigma_y=0.2),
    Case("ambient-tweedie", sigma_y=0.2),
    Case("ambient", real=True, missing=True, sigma_y=0.2),
    Case("fourier-ambient", coils=2, missing=True, sigma_y=0.2),
]


def exact_items(case: Case, ratio: float) -> tuple[Batch, NoiseDraw, Tensor]:
    """Items whose terms add up to the expectation: unit vectors of x, of the measurement's noise and of each step's."""
    problem = Problem(case)
    mask = problem.behind[0]
    matrix, samples = problem.matrix(mask), problem._samples(mask)
    size = len(matrix)
    values, vectors = np.linalg.eigh(problem.covariance)
    unit = np.eye(PIXELS + (1 + STEPS) * size) * (1 if case.real else math.sqrt(2))
    x = unit[:, :PIXELS] @ (vectors * np.sqrt(values.clip(0))).T
    measured = x @ matrix.T + case.sigma_y * unit[:, PIXELS : PIXELS + size] @ samples
    count, kind = len(unit), torch.float64 if case.real else torch.complex128
    shape = (case.coils, HEIGHT, WIDTH) if case.coils else (HEIGHT, WIDTH)
    batch = Batch(
        torch.as_tensor(measured).to(kind).reshape(count, *shape),
        None if problem.maps is None else torch.as_tensor(problem.maps).expand(count, -1, -1, -1),
        torch.as_tensor(mask).expand(count, -1, -1),
        torch.as_tensor(problem.shown).expand(count, -1, -1),
        torch.full((count,), case.sigma_y, dtype=torch.float64),
    )
    noise = torch.as_tensor(unit[:, PIXELS + size :]).to(kind).reshape(count, STEPS, *shape)
    covariance = torch.as_tensor(problem.covariance)
    return batch, NoiseDraw(torch.full((count,), ratio, dtype=torch.float64), noise), covariance


@pytest.mark.parametrize("ratio", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_expectation_is_zero_for_the_exact_gaussian_denoiser_and_positive_for_others(case, ratio):
    batch, draw, covariance = exact_items(case, ratio)
    exact = ExactFromSamples(covariance, "operator")
    other = ExactFromSamples(1.5 * covariance, "operator")
    assert abs(float(consistency_loss(exact, batch, draw).sum())) < 1e-12
    wrong = lambda u, operator, sigma: other(u, operator, sigma) * (1 + 0.3 * sigma[:, None, None])  # noqa: E731
    assert float(consistency_loss(wrong, batch, draw).sum()) > 1e-6


def test_random_draws_agree():
    case = CASES[0]
    batch, covariance = random_batch(case, 800)
    draw = draw_consistency(batch, torch_generator("consistency"))
    assert float(draw.sigma.min()) >= 0.05
    assert float(draw.sigma.max()) <= 1
    terms = consistency_loss(ExactFromSamples(covariance, "operator"), batch, draw)
    assert abs(float(terms.mean())) < 4 * float(terms.std()) / math.sqrt(len(batch))


class TwoValues(nn.Module):
    """E[x | u] for x = +1 or -1: tanh(u / s^2)."""

    def forward(self, u: Tensor, operator: Sense | Sampling, sigma: Tensor) -> Tensor:
        return torch.tanh(u / sigma.square()[:, None, None])


@pytest.mark.parametrize(("level", "most"), [(0.2, 3e-4), (0.4, 4e-3), (0.6, 2.5e-3), (1.0, 5e-4), (2.0, 5e-5)])
def test_bias_of_the_step_is_small_for_two_values(level, most):
    """Root mean square over u of E[D(u_b, b) | u] - D(u, a), by quadrature: the term's mean is its square over a^2."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    own, first, second = (torch.as_tensor(n).reshape(-1, 1, 1) for n in np.meshgrid(nodes, nodes, nodes, indexing="ij"))
    every = torch.ones(len(own), 1, 1, dtype=torch.bool)
    batch = Batch(1 + level * own, None, every, every, torch.full((len(own),), level, dtype=torch.float64))
    noise = torch.stack([torch.zeros_like(own)] * 4 + [first, second], dim=1)
    terms = consistency_loss(TwoValues(), batch, NoiseDraw(torch.ones(len(own), dtype=torch.float64), noise))
    weights = weights / weights.sum()
    shares = torch.as_tensor(np.einsum("i,j,k->ijk", weights, weights, weights)).reshape(-1)
    assert -1e-12 < float((shares * terms).sum()) * level**2 < most**2


VARIANCE = torch.linspace(0.05, 0.5, 4, dtype=torch.float64).reshape(1, 4)  # of four independent pixels
NOISE = 0.3


class Gains(nn.Module):
    """D(u) = g(s) u pixel by pixel; g is logistic in values at levels one octave apart, linear in between."""

    preconditioning, sigma_data = "published", torch.tensor(0.6, dtype=torch.float64)
    octaves = torch.arange(-5, 3, dtype=torch.float64)  # of NOISE

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(len(self.octaves), 1, 4, dtype=torch.float64))

    def gain(self, sigma: Tensor) -> Tensor:
        hats = (1 - ((sigma / NOISE).log2()[:, None] - self.octaves).abs()).clamp_min(0)
        return torch.sigmoid(torch.einsum("bk,kyx->byx", hats, self.values))

    def forward(self, u: Tensor, operator: Sense | Sampling, sigma: Tensor) -> Tensor:
        return self.gain(sigma) * u


def unit_items(noises: int, settings: Tensor) -> tuple[Batch, NoiseDraw]:
    """For each of ``settings`` the unit vectors of x, of the measurement's noise and of ``noises`` more.

    Pixels are independent, so those of all pixels share an item.
    """
    unit = torch.eye(2 + noises, dtype=torch.float64).repeat(len(settings), 1)[..., None, None].expand(-1, -1, 1, 4)
    measured = unit[:, 0] * VARIANCE.sqrt() + NOISE * unit[:, 1]
    every = torch.ones(measured.shape, dtype=torch.bool)
    batch = Batch(measured, None, every, every, torch.full((len(unit),), NOISE, dtype=torch.float64))
    noise = unit[:, 2:] if noises > 1 else unit[:, 2]
    return batch, NoiseDraw(settings.repeat_interleave(2 + noises), noise)


def errors_below_the_noise(weight: float, steps: int = 200) -> Tensor:
    """|g - C / (C + s^2)| below s_y after training on the exact expectation of Tweedie + ``weight`` consistency."""
    denoiser = Gains()
    above = unit_items(1, NOISE * torch.logspace(0.1, 0.6, 8, dtype=torch.float64))
    below = unit_items(STEPS, torch.logspace(math.log10(0.05), 0, 16, dtype=torch.float64))
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=0.1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.1 * min(1, 2 * (1 - step / steps))
        optimiser.zero_grad()
        loss = measurement_loss(denoiser, *above).sum() / 8
        if weight:
            loss = loss + weight * consistency_loss(denoiser, *below).sum() / 16
        loss.backward()
        optimiser.step()
    asked = NOISE * torch.tensor([0.1, 0.2, 0.4, 0.7], dtype=torch.float64)
    return (denoiser.gain(asked) - VARIANCE / (VARIANCE + asked[:, None, None] ** 2)).abs().detach()


def test_consistency_teaches_the_levels_below_the_noise():
    """Without it nothing reaches them; with it the posterior mean is found where only noisier images were seen.

    Consistency alone leaves g / (1 - g) = k / s^2 with any k open, and k = 0 is easy to reach: what is known at the
    higher level must not be drawn towards what is not yet known at the lower one.
    """
    without, with_it = (errors_below_the_noise(weight) for weight in (0.0, 0.1))
    assert float(without[:3].mean()) > 0.4
    assert float(with_it.max()) < 0.12
    assert float(with_it.mean()) < 0.03


def test_items_without_known_noise_have_no_term_and_no_gradient():
    case = CASES[3]
    batch, covariance = random_batch(case, 4)
    silent = Batch(
        batch.measured, batch.maps, batch.mask, batch.further_mask, batch.sigma_y * torch.tensor([1, 0, 1, 0])
    )
    draw = draw_consistency(batch, torch_generator("consistency"))
    own = covariance.clone().requires_grad_()
    terms = consistency_loss(ExactFromSamples(1.5 * own, "operator"), silent, draw)
    assert (terms == 0).tolist() == [False, True, False, True]
    assert torch.equal(torch.autograd.grad(terms[[1, 3]].sum(), own, retain_graph=True)[0], torch.zeros_like(own))
    assert bool(torch.isfinite(torch.autograd.grad(terms.sum(), own)[0].abs()).all())
    for i in range(4):
        one = slice(i, i + 1)
        alone = consistency_loss(ExactFromSamples(1.5 * covariance, "operator"), silent[one], draw[one])
        torch.testing.assert_close(alone[0], terms[i].detach(), rtol=1e-7, atol=1e-12)
