"""Samplers on a Gaussian prior, where the denoiser and the flow of the ODE are known in closed form."""

import math

import numpy as np
import pytest
import torch
from references import random_covariance
from torch import Tensor

from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.sample import (
    Churn,
    SamplerSettings,
    Trajectory,
    dpmpp_2m,
    euler,
    heun,
    item_noise,
    run_sampler,
)
from rsdmri.diffusion.schedule import karras_ladder, unit_noise
from rsdmri.errors import InputError
from rsdmri.physics.sense import sense
from rsdmri.runtime import numpy_generator, torch_generator

SIDE = 3
PIXELS = SIDE * SIDE
HIGH, LOW = 20.0, 0.02
SAMPLERS = {"euler": euler, "heun": heun, "dpmpp-2m": dpmpp_2m}
VARIANCES = torch.tensor([0.0004, 0.01, 0.09, 0.25, 1.0, 4.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def covariance() -> Tensor:
    return torch.as_tensor(random_covariance(numpy_generator("prior"), PIXELS, floor=0.02))


def exact_denoiser(covariance: Tensor):
    """E[x | x + s e] = C (C + s^2)^-1 x_s by the eigenvectors of C, the same s for all items."""
    values, vectors = torch.linalg.eigh(covariance)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        gain = (vectors * (values / (values + sigma[0].real ** 2))) @ vectors.mH
        return (x.reshape(len(x), -1) @ gain.T).reshape(x.shape)

    return denoise


def flow(covariance: Tensor, high: float, low: float) -> Tensor:
    """Exact map of the ODE dx/ds = s (C + s^2)^-1 x from ``high`` to ``low``: ((C + low^2) (C + high^2)^-1)^(1/2)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * torch.sqrt((values + low**2) / (values + high**2))) @ vectors.mH


def numerical_flow(covariance: Tensor, sampler, sigmas: Tensor) -> Tensor:
    """Matrix of the sampler, which is linear here: its images of the unit vectors."""
    units = torch.eye(PIXELS, dtype=torch.complex128).reshape(PIXELS, SIDE, SIDE)
    return sampler(exact_denoiser(covariance), units, sigmas).reshape(PIXELS, PIXELS).T


def karras(steps: int) -> Tensor:
    """Ladder of ``steps`` steps that ends at LOW."""
    return karras_ladder(steps + 1, LOW, HIGH)[:-1]


def uneven(steps: int) -> Tensor:
    """Geometric ladder whose steps are long and short by turns, 3 to 1 in ln s."""
    widths = torch.tensor([1.5, 0.5], dtype=torch.float64).repeat(steps // 2) * math.log(HIGH / LOW) / steps
    return HIGH * torch.exp(-torch.cat([torch.zeros(1, dtype=torch.float64), widths.cumsum(0)]))


def fitted_order(covariance: Tensor, sampler, ladder, steps: list[int]) -> float:
    exact = flow(covariance, HIGH, LOW)
    errors = [float(torch.linalg.norm(numerical_flow(covariance, sampler, ladder(count)) - exact)) for count in steps]
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


def test_the_reference_denoiser_is_that_of_the_package(covariance):
    """With a fully sampled single coil A is the Fourier transform, A^H A the identity."""
    maps = torch.ones(4, 1, SIDE, SIDE, dtype=torch.complex128)
    operator = sense(maps, torch.ones(4, 1, SIDE, dtype=torch.bool))
    x = unit_noise(torch.zeros(4, SIDE, SIDE, dtype=torch.complex128), torch_generator("reference"))
    for level in (HIGH, 0.5, LOW):
        sigma = torch.full((4,), level, dtype=torch.float64)
        found = GaussianDenoiser(covariance)(operator.normal(x), operator, sigma)
        torch.testing.assert_close(exact_denoiser(covariance)(x, sigma), found)


@pytest.mark.parametrize("ladder", [karras, uneven])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_order_of_convergence(covariance, name, order, ladder):
    """Slope of ln(error) over ln(steps) at 64, 128 and 256 steps, within 0.1."""
    assert fitted_order(covariance, SAMPLERS[name], ladder, [64, 128, 256]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("name", "steps", "error"), [("euler", 400, 2e-2), ("heun", 97, 2e-3), ("dpmpp-2m", 150, 2e-3)]
)
@pytest.mark.parametrize("low", [0.3, 0.0])
def test_samples_have_the_covariance_of_the_closed_form(covariance, name, steps, error, low):
    """From x ~ N(0, (C + high^2) per channel) the flow ends at C + low^2; from high^2 alone, as used, at the same
    times high^2 (C + high^2)^-1."""
    ladder = karras_ladder(steps, 0.01, HIGH) if low == 0 else karras_ladder(steps, low, HIGH)[:-1]
    found = numerical_flow(covariance, SAMPLERS[name], ladder)
    identity = torch.eye(PIXELS, dtype=torch.complex128)
    start = covariance + HIGH**2 * identity
    torch.testing.assert_close(found @ start @ found.mH, covariance + low**2 * identity, rtol=0, atol=error)
    bare = HIGH**2 * found @ found.mH
    closed = HIGH**2 * (covariance + low**2 * identity) @ torch.linalg.inv(start)
    torch.testing.assert_close(bare, closed, rtol=0, atol=error)


@pytest.mark.parametrize("name", SAMPLERS)
def test_truncated_samples_are_the_estimate_at_the_level(covariance, name):
    """With a last step from sigma_y to 0: E[x | x_sigma_y], of covariance C (C + sigma_y^2)^-1 C."""
    level = 0.4
    ladder = karras_ladder(3000 if name == "euler" else 200, level, HIGH)
    found = numerical_flow(covariance, SAMPLERS[name], ladder)
    identity = torch.eye(PIXELS, dtype=torch.complex128)
    closed = covariance @ torch.linalg.inv(covariance + level**2 * identity) @ covariance
    start = covariance + HIGH**2 * identity
    torch.testing.assert_close(found @ start @ found.mH, closed, rtol=0, atol=1e-3)
    assert float(torch.linalg.norm(closed - covariance)) > 0.1  # it is not the prior's


def diagonal(x: Tensor, sigma: Tensor) -> Tensor:
    """Exact denoiser of independent pixels with VARIANCES."""
    return x * VARIANCES / (VARIANCES + sigma[:, None] ** 2)


def churned_variances(settings: SamplerSettings) -> tuple[Tensor, int]:
    """Variances of samples, exact: every noise that goes in is propagated on its own, as one item; and their number."""
    gains = torch.zeros(settings.steps + 1, len(VARIANCES), dtype=torch.float64)
    gains[0] = torch.sqrt(VARIANCES + HIGH**2)
    drawn = iter(range(1, len(gains)))
    count = 1

    def fresh(x: Tensor) -> Tensor:
        nonlocal count
        noise = torch.zeros_like(x)
        noise[next(drawn)] = 1
        count += 1
        return noise

    ladder = karras_ladder(settings.steps, 0.002, HIGH)
    return run_sampler(settings, diagonal, gains, ladder, fresh=fresh).square().sum(0), count


@pytest.mark.parametrize("amount", [0.0, 5.0, 40.0])
def test_churn_keeps_the_law_of_the_samples(amount):
    """Variances v^2 / (v + s_min^2) of the estimate at s_min; the error falls with the square of the step."""
    errors = []
    for steps in (160, 320):
        found, noises = churned_variances(SamplerSettings("heun", steps, Churn(amount)))
        assert noises == (1 if amount == 0 else steps)
        errors.append(float((found * (VARIANCES + 0.002**2) / VARIANCES**2 - 1).abs().max()))
    assert errors[0] < 0.03
    assert errors[1] < errors[0] / 3


def test_churn_raises_levels_by_the_published_rule():
    """g = min(S_churn / N, sqrt(2) - 1) between S_tmin and S_tmax; the noise is S_noise sqrt(s'^2 - s^2)."""
    seen, added = [], []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return torch.zeros_like(x)

    def fresh(x: Tensor) -> Tensor:
        added.append(x.clone())
        return torch.ones_like(x)

    ladder = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    states = Trajectory()
    heun(denoise, torch.zeros(1, 1, 1), ladder, states, Churn(1.0, 1.5, 5.0, 1.01), fresh)
    assert seen == pytest.approx([8, 4, 5, 2, 2.5, 1, 1])
    assert states.sigmas.tolist() == pytest.approx([8, 5, 2.5, 1])
    assert len(added) == 2
    assert states.states[0, 1].item() == pytest.approx(1.01 * math.sqrt(5**2 - 4**2))
    assert Churn(100.0).raised(3.0, 10) == pytest.approx(3 * math.sqrt(2))
    assert Churn(100.0, 4.0).raised(3.0, 10) == 3


def test_churn_noise_of_an_item_is_its_own():
    """The same generator gives the same noise alone, in a batch and at another place of it."""
    x = torch.zeros(3, 4, 5, dtype=torch.complex128)
    together = item_noise([torch_generator("churn", i) for i in range(3)])
    first, second = together(x), together(x)
    for i in range(3):
        alone = item_noise([torch_generator("churn", i)])
        assert torch.equal(alone(x[:1])[0], first[i])
        assert torch.equal(alone(x[:1])[0], second[i])
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="shorter"):
        together(x.repeat(2, 1, 1))


@pytest.mark.parametrize(("name", "calls"), [("heun", 13), ("euler", 7), ("dpmpp-2m", 7)])
@pytest.mark.parametrize("ends_at_zero", [True, False])
@pytest.mark.parametrize("amount", [0.0, 3.0])
def test_number_of_evaluations(name, calls, ends_at_zero, amount):
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return x / 2

    if amount and name != "heun":
        with pytest.raises(InputError, match=f"not with --sampler {name}; use --sampler heun"):
            SamplerSettings(name, 7, Churn(amount))
        return
    ladder = karras_ladder(7) if ends_at_zero else karras_ladder(8)[:-1]
    settings = SamplerSettings(name, 7, Churn(amount))
    run_sampler(settings, denoise, torch.ones(2, 1, 1, dtype=torch.complex128), ladder, fresh=torch.zeros_like)
    assert settings.evaluations == calls
    assert len(seen) == calls + (name == "heun" and not ends_at_zero)
    assert min(seen) > 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("levels", [[3.0, 0.0], [3.0, 2.0, 0.7, 0.0], [3.0, 0.6]])
def test_a_constant_estimate_is_approached_exactly(name, levels):
    """dx/ds = (x - 5) / s from x = 1 at s = 3: x = 5 - 4 s / 3, 5 at 0."""
    x = torch.ones(1, 1, 1, dtype=torch.complex128)
    found = SAMPLERS[name](lambda state, sigma: state * 0 + 5, x, torch.tensor(levels, dtype=torch.float64))
    torch.testing.assert_close(found, (5 - 4 * levels[-1] / 3) * x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_final_step_to_zero_lands_on_the_estimate(name):
    states = Trajectory()
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(1, 6)
    found = SAMPLERS[name](diagonal, x, karras_ladder(6, 0.1, HIGH), states)
    torch.testing.assert_close(found, states.denoised[:, -1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_are_what_the_denoiser_saw(name):
    states = Trajectory()
    x = torch.linspace(-2, 2, 18, dtype=torch.float64).reshape(3, 6)
    ladder = karras_ladder(5, 0.1, HIGH)
    SAMPLERS[name](diagonal, x, ladder, states)
    assert torch.equal(states.sigmas, ladder[:-1])
    assert torch.equal(states.states[:, 0], x)
    for k, level in enumerate(ladder[:-1]):
        assert torch.equal(states.denoised[:, k], diagonal(states.states[:, k], level.expand(3)))


def test_a_trajectory_keeps_the_first_images_of_all_batches():
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(5, 6)
    whole, parts, few = Trajectory(), Trajectory(), Trajectory(3)
    ladder = karras_ladder(4, 0.1, HIGH)
    heun(diagonal, x, ladder, whole)
    for observer in (parts, few):
        for batch in (x[:2], x[2:4], x[4:]):
            heun(diagonal, batch, ladder, observer)
    assert whole.states.shape == whole.denoised.shape == (5, 4, 6)
    assert torch.equal(parts.states, whole.states)
    assert torch.equal(parts.denoised, whole.denoised)
    assert torch.equal(few.states, whole.states[:3])
    assert torch.equal(few.denoised, whole.denoised[:3])
    assert torch.equal(few.sigmas, ladder[:-1])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("levels", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, 0.0, 0.0], [1.0, -0.5], [1.0, math.nan]])
def test_impossible_ladders_are_refused(name, levels):
    with pytest.raises(ValueError, match="at least two decreasing levels"):
        SAMPLERS[name](diagonal, torch.ones(1, 6), torch.tensor(levels))


def test_churn_without_a_source_of_noise_is_refused():
    with pytest.raises(ValueError, match="give item_noise"):
        heun(diagonal, torch.ones(1, 6), karras_ladder(3), churn=Churn(1.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SamplerSettings(steps=0), "--steps 0: must be at least 1"),
        (lambda: SamplerSettings("ddim"), "--sampler ddim: unknown; use heun, euler or dpmpp-2m"),
        (lambda: Churn(-1.0), "--churn -1: must be a number of at least 0"),
        (lambda: Churn(math.nan), "--churn nan"),
        (lambda: Churn(math.inf), "--churn inf"),
        (lambda: Churn(1.0, 2.0, 1.0), "levels from 2 to 1; give 0 <= lowest <= highest"),
        (lambda: Churn(1.0, noise=0.0), "noise 0; must be positive"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_settings_name_themselves():
    assert str(SamplerSettings()) == "Heun, 18 steps"
    assert SamplerSettings().evaluations == 35
    assert str(SamplerSettings("dpmpp-2m", 35)) == "DPM-Solver++(2M), 35 steps"
    assert str(SamplerSettings(churn=Churn(2.5))) == "Heun, 18 steps, churn 2.5"
