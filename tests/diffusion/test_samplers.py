"""Samplers on a Gaussian prior, where the denoiser and the flow of the ODE are known in closed form."""

import numpy as np
import pytest
import torch
from references import random_covariance
from torch import Tensor

from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.sample import euler, heun, sample_teacher
from rsdmri.diffusion.schedule import karras_ladder, unit_noise
from rsdmri.physics.sense import Sense, sense
from rsdmri.runtime import numpy_generator, torch_generator

SIDE = 3
PIXELS = SIDE * SIDE
HIGH, LOW = 20.0, 0.02


@pytest.fixture(scope="module")
def covariance() -> Tensor:
    return torch.as_tensor(random_covariance(numpy_generator("prior"), PIXELS, floor=0.02))


def full(batch: int):
    """Fully sampled single coil: A is the Fourier transform, A^H A the identity."""
    maps = torch.ones(batch, 1, SIDE, SIDE, dtype=torch.complex128)
    return sense(maps, torch.ones(batch, 1, SIDE, dtype=torch.bool))


def denoise_with(covariance: Tensor, batch: int):
    denoiser, operator = GaussianDenoiser(covariance), full(batch)
    return lambda x, sigma: denoiser(operator.normal(x), operator, sigma)


def flow(covariance: Tensor, high: float, low: float) -> Tensor:
    """Exact map of the ODE dx/ds = s (C + s^2)^-1 x from ``high`` to ``low``: ((C + low^2) (C + high^2)^-1)^(1/2)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * torch.sqrt((values + low**2) / (values + high**2))) @ vectors.mH


def numerical_flow(covariance: Tensor, sampler, sigmas: Tensor) -> Tensor:
    """Matrix of the sampler, which is linear here: its images of the unit vectors."""
    units = torch.eye(PIXELS, dtype=torch.complex128).reshape(PIXELS, SIDE, SIDE)
    return sampler(denoise_with(covariance, PIXELS), units, sigmas).reshape(PIXELS, PIXELS).T


def fitted_order(covariance: Tensor, sampler, steps: list[int]) -> float:
    exact = flow(covariance, HIGH, LOW)
    errors = []
    for count in steps:
        ladder = karras_ladder(count + 1, LOW, HIGH)[:-1]
        errors.append(float(torch.linalg.norm(numerical_flow(covariance, sampler, ladder) - exact)))
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


def test_euler_is_first_order(covariance):
    assert fitted_order(covariance, euler, [32, 64, 128]) == pytest.approx(1, abs=0.25)


def test_heun_is_second_order(covariance):
    assert fitted_order(covariance, heun, [32, 64, 128]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("low", [0.3, 0.0])
def test_samples_have_the_covariance_of_the_closed_form(covariance, low):
    """From x ~ N(0, (C + high^2) per channel) the flow ends at C + low^2; from high^2 alone, as used, at the same
    times high^2 (C + high^2)^-1."""
    ladder = karras_ladder(97, 0.01, HIGH) if low == 0 else karras_ladder(97, low, HIGH)[:-1]
    found = numerical_flow(covariance, heun, ladder)
    identity = torch.eye(PIXELS, dtype=torch.complex128)
    start = covariance + HIGH**2 * identity
    torch.testing.assert_close(found @ start @ found.mH, covariance + low**2 * identity, rtol=0, atol=2e-3)
    bare = HIGH**2 * found @ found.mH
    closed = HIGH**2 * (covariance + low**2 * identity) @ torch.linalg.inv(start)
    torch.testing.assert_close(bare, closed, rtol=0, atol=2e-3)


def test_eighteen_steps_of_the_teacher_sample_the_prior(covariance):
    """The default ladder, 35 evaluations: variances within 12 % of the prior's (they come out larger)."""
    calls, steps = [], []

    class Counted(GaussianDenoiser):
        def forward(self, u: Tensor, operator: Sense, sigma: Tensor) -> Tensor:
            calls.append(float(sigma[0]))
            return super().forward(u, operator, sigma)

    units = torch.eye(PIXELS, dtype=torch.complex128).reshape(PIXELS, SIDE, SIDE)
    images = sample_teacher(
        Counted(covariance), full(PIXELS), units, 18, on_step=lambda index, state: steps.append(index)
    )
    assert len(calls) == 35
    assert steps == list(range(18))
    found = images.reshape(PIXELS, PIXELS).T
    error = torch.linalg.norm(found @ found.mH - covariance) / torch.linalg.norm(covariance)
    assert float(error) < 0.12


def test_items_do_not_see_each_other(covariance):
    noise = unit_noise(torch.zeros(3, SIDE, SIDE, dtype=torch.complex128), torch_generator("items"))
    mask = torch.tensor([[[True, True, False]], [[True, True, True]], [[False, True, True]]])
    maps = torch.ones(3, 1, SIDE, SIDE, dtype=torch.complex128)
    together = sample_teacher(GaussianDenoiser(covariance), sense(maps, mask), noise, 5)
    for i in range(3):
        own = sense(maps[i : i + 1], mask[i : i + 1])
        alone = sample_teacher(GaussianDenoiser(covariance), own, noise[i : i + 1], 5)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("sampler", "last_is_zero", "calls"), [(heun, True, 13), (heun, False, 12), (euler, True, 7)])
def test_number_of_evaluations(sampler, last_is_zero, calls):
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return x / 2

    ladder = karras_ladder(7)
    sampler(denoise, torch.ones(2, 1, 1, dtype=torch.complex128), ladder if last_is_zero else ladder[:-1])
    assert len(seen) == calls
    assert min(seen) > 0


def test_a_final_step_to_zero_lands_on_the_estimate():
    x = torch.ones(1, 1, 1, dtype=torch.complex128)
    found = heun(lambda state, sigma: state * 0 + 5, x, torch.tensor([3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found, 5 * x)
