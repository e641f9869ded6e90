"""Teachers sampled through their operators: coil noise, churn, truncation, real images, items on their own."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from references import conditional_gain, random_covariance, random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.sample import Churn, SamplerSettings, Trajectory, sample_teacher
from rsdmri.diffusion.schedule import SIGMA_MAX, SIGMA_MIN, karras_ladder, unit_noise
from rsdmri.physics.sense import Sampling, sense
from rsdmri.runtime import numpy_generator, torch_generator

SIDE = 3
PIXELS = SIDE * SIDE
EVERY = [
    SamplerSettings("heun", 4),
    SamplerSettings("euler", 5),
    SamplerSettings("dpmpp-2m", 5),
    SamplerSettings("heun", 4, Churn(2.0, 0.01, 50.0, 1.003)),
]


@pytest.fixture(scope="module")
def covariance() -> Tensor:
    return torch.as_tensor(random_covariance(numpy_generator("prior"), PIXELS, floor=0.02))


def full(batch: int):
    """Fully sampled single coil: A is the Fourier transform, A^H A the identity."""
    maps = torch.ones(batch, 1, SIDE, SIDE, dtype=torch.complex128)
    return sense(maps, torch.ones(batch, 1, SIDE, dtype=torch.bool))


class Recorded(GaussianDenoiser):
    """The exact denoiser, which notes what it was given."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__(covariance)
        self.levels: list[float] = []

    def forward(self, u: Tensor, operator, sigma: Tensor) -> Tensor:
        self.levels.append(float(sigma[0]))
        return super().forward(u, operator, sigma)


class Diagonal(nn.Module):
    """The exact denoiser of independent pixels that are all seen, of ``variances`` (y, x)."""

    def __init__(self, variances: Tensor) -> None:
        super().__init__()
        self.variances = variances

    def forward(self, u: Tensor, operator, sigma: Tensor) -> Tensor:
        return u * self.variances / (self.variances + sigma[:, None, None] ** 2)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (SamplerSettings(), 0.12),
        (SamplerSettings("dpmpp-2m", 18), 0.14),
        (SamplerSettings("dpmpp-2m", 35), 0.03),
        (SamplerSettings("euler", 35), 0.16),
    ],
)
def test_how_close_few_steps_come_to_the_prior(covariance, settings, error):
    """Largest relative error of the covariance: the published 35 evaluations, the same number and half of others."""
    denoiser, states = Recorded(covariance), Trajectory()
    units = torch.eye(PIXELS, dtype=torch.complex128).reshape(PIXELS, SIDE, SIDE)
    images = sample_teacher(denoiser, full(PIXELS), units, settings, on_step=states)
    assert len(denoiser.levels) == settings.evaluations
    assert states.sigmas.tolist() == pytest.approx(karras_ladder(settings.steps)[:-1].tolist())
    found = images.reshape(PIXELS, PIXELS).T
    relative = torch.linalg.norm(found @ found.mH - covariance) / torch.linalg.norm(covariance)
    assert error / 2 < float(relative) < error


@pytest.mark.parametrize("level", [0.4, 0.0005])
def test_truncation_ends_with_the_estimate_at_the_level_of_the_measurements(covariance, level):
    """Covariance C (C + sigma_y^2)^-1 C at that very level; levels below the ladder's own end change nothing."""
    denoiser = Recorded(covariance)
    units = torch.eye(PIXELS, dtype=torch.complex128).reshape(PIXELS, SIDE, SIDE)
    settings = SamplerSettings("dpmpp-2m", 60)
    images = sample_teacher(denoiser, full(PIXELS), units, settings, sigma_y=level)
    last = max(level, SIGMA_MIN)
    churned = Trajectory()
    settings, generators = SamplerSettings(steps=4, churn=Churn(3.0)), [torch_generator("end")] * PIXELS
    sample_teacher(
        Recorded(covariance), full(PIXELS), units, settings, sigma_y=level, generators=generators, on_step=churned
    )
    assert churned.sigmas[-1] == pytest.approx(last)
    assert denoiser.levels[-1] == pytest.approx(last)
    found = images.reshape(PIXELS, PIXELS).T
    closed = covariance @ torch.linalg.inv(covariance + last**2 * torch.eye(PIXELS)) @ covariance
    torch.testing.assert_close(found @ found.mH, closed, rtol=0, atol=0.01)


def multicoil(batch: int):
    """Batched operators of 2 coils on 3 x 4 pixels, each with its own maps and lines."""
    rng = numpy_generator("multicoil")
    maps = np.stack([random_maps(rng, 2, 3, 4) for _ in range(batch)])
    mask = np.ones((batch, 1, 4), dtype=bool)
    for i in range(batch):
        mask[i, 0, i % 4] = False
    return maps, mask, sense(torch.as_tensor(maps), torch.as_tensor(mask))


@pytest.mark.parametrize("churn", [Churn(), Churn(3.0, 0.01, 50.0, 1.003)])
def test_heun_agrees_with_dense_matrices_through_multicoil_operators_and_coil_noise(churn):
    """x_s, A~^H A~, c and the exact gain as plain matrices, algorithm 2 of Karras et al. written out."""
    batch, steps = 3, 6
    covariance = random_covariance(numpy_generator("coils"), 12, floor=0.05)
    maps, mask, operator = multicoil(batch)
    like = torch.zeros(batch, 3, 4, dtype=torch.complex128)
    noise = unit_noise(like, torch_generator("noise"))
    coil_noise = operator.normal(unit_noise(like, torch_generator("coil noise")))
    found = sample_teacher(
        GaussianDenoiser(torch.as_tensor(covariance)),
        operator,
        noise,
        SamplerSettings("heun", steps, churn),
        coil_noise=coil_noise,
        generators=[torch_generator("churn", i) for i in range(batch)],
    )
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    ladder = [*((high + k / (steps - 1) * (low - high)) ** 7 for k in range(steps)), 0.0]
    for i in range(batch):
        matrix = sense_matrix(maps[i], mask[i, 0])
        normal = matrix.conj().T @ matrix
        generator, c = torch_generator("churn", i), coil_noise[i].numpy().ravel()

        def slope(x, s, normal=normal, c=c):
            return (x - conditional_gain(covariance, normal, s) @ (normal @ x + s * c)) / s

        x = 80 * noise[i].numpy().ravel()
        for now, after in pairwise(ladder):
            churned = churn.lowest <= now <= churn.highest
            gain = min(churn.amount / steps, math.sqrt(2) - 1) if churned and after > 0 else 0
            raised = now * (1 + gain)
            if gain > 0:
                fresh = unit_noise(like[i], generator).numpy().ravel()
                x = x + math.sqrt(raised**2 - now**2) * churn.noise * fresh
            first = slope(x, raised)
            ahead = x + (after - raised) * first
            x = x + (after - raised) * (first + slope(ahead, after)) / 2 if after > 0 else ahead
        np.testing.assert_allclose(found[i].numpy().ravel(), x, rtol=1e-6, atol=1e-8)


def test_churn_keeps_the_law_of_what_the_teacher_sees():
    """u = A~^H (A~ x + s n) at the raised level: covariance B C B + s^2 B per real channel, B = A~^H A~.

    The teacher's first evaluation is at sqrt(2) 80, from x_80 = x + 80 e. Every entry within 5 standard errors of the
    mean of 20000 draws, where a coil part left at 80 would be off by more than 15.
    """
    count, first = 20_000, []
    rng = numpy_generator("law")
    covariance = SIGMA_MAX**2 * random_covariance(rng, PIXELS)
    maps = torch.as_tensor(random_maps(rng, 2, SIDE, SIDE)[None], dtype=torch.complex64)
    mask = torch.tensor([[[True, False, True]]])
    bank = Acquisitions(maps, mask, coil_noise=True)
    operator = sense(maps.expand(count, -1, -1, -1), mask.expand(count, -1, -1))
    generator = torch_generator("law")

    class Seen(nn.Module):
        def forward(self, u: Tensor, operator, sigma: Tensor) -> Tensor:
            first.append((u, float(sigma[0])))
            return torch.zeros_like(u)

    root = torch.as_tensor(np.linalg.cholesky(covariance), dtype=torch.complex64)
    like = torch.empty(count, PIXELS, dtype=torch.complex64)
    x = (unit_noise(like, generator) @ root.T).reshape(count, SIDE, SIDE)
    noise = x / SIGMA_MAX + bank.draw_noise(operator, generator)
    coil_noise = bank.draw_coil_noise(operator, generator)
    settings = SamplerSettings("heun", 2, Churn(10.0))
    generators = [torch_generator("law", i) for i in range(count)]
    sample_teacher(Seen(), operator, noise, settings, coil_noise=coil_noise, generators=generators)

    u, level = first[0]
    assert level == pytest.approx(math.sqrt(2) * SIGMA_MAX)
    drawn = u.reshape(count, PIXELS).to(torch.complex128).numpy()
    found = drawn.T @ drawn.conj() / (2 * count)
    matrix = sense_matrix(maps[0].numpy().astype(np.complex128), mask[0, 0].numpy())
    normal = matrix.conj().T @ matrix
    closed = normal @ covariance @ normal + level**2 * normal
    spread = np.diag(closed).real
    error = np.sqrt(np.outer(spread, spread) / count)
    assert np.abs((found - closed) / error).max() < 5

    low = coil_noise.reshape(count, PIXELS).to(torch.complex128).numpy()
    missed = (level**2 - SIGMA_MAX**2) * (low.T @ low.conj()) / (2 * count)
    assert np.abs(missed / error).max() > 15


@pytest.mark.parametrize("real", [False, True])
def test_churned_samples_have_the_variances_of_the_settings(real):
    """Against the sum of the squared gains of every noise, within 5 standard errors of 4000 draws."""
    count, settings = 4000, SamplerSettings("heun", 10, Churn(8.0, 0.02, 60.0))
    variances = torch.linspace(0.1, 2.0, 10).reshape(2, 5)
    kind = torch.float32 if real else torch.complex64

    def images(batch: int) -> Sampling:
        return Sampling(torch.ones(batch, 2, 5, dtype=torch.bool), (batch, 2, 5))

    noise = unit_noise(torch.empty(count, 2, 5, dtype=kind), torch_generator("start", real))
    generators = [torch_generator("churned", real, i) for i in range(count)]
    denoiser = Diagonal(variances)
    drawn = sample_teacher(denoiser, images(count), noise, settings, generators=generators)
    assert drawn.dtype == kind

    gains, share = propagated(denoiser.double(), settings)
    assert 0.2 < share < 1  # of the fresh noise in the variance
    numbers = 1 if real else 2
    found = drawn.abs().double().square().mean(0) / numbers
    error = gains * math.sqrt(2 / (numbers * count))
    assert float(((found - gains) / error).abs().max()) < 5


def propagated(denoiser: Diagonal, settings: SamplerSettings) -> tuple[Tensor, float]:
    """Exact variances of churned samples, and how much of them comes from the fresh noise."""
    denoiser.variances = denoiser.variances.double()
    ladder, steps = karras_ladder(settings.steps).tolist(), settings.steps
    start, fresh = 80.0 * torch.ones(2, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    for now, after in pairwise(ladder):
        raised = settings.churn.raised(now, steps)
        slope = raised / (denoiser.variances + raised**2)  # (x - D) / s = s x / (v + s^2)
        gain = 1 + (after - raised) * slope
        if after > 0:
            gain = 1 + (after - raised) * (slope + gain * after / (denoiser.variances + after**2)) / 2
        start, fresh = start * gain, (fresh + raised**2 - now**2) * gain**2
    return start**2 + fresh, float((fresh / (start**2 + fresh)).mean())


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_items_do_not_see_each_other(settings):
    covariance = torch.as_tensor(random_covariance(numpy_generator("items"), 12))
    _, _, operator = multicoil(3)
    noise = unit_noise(torch.zeros(3, 3, 4, dtype=torch.complex128), torch_generator("items"))
    coil_noise = operator.normal(noise.flip(0))

    def drawn(own, items: list[int]) -> Tensor:
        generators = [torch_generator("items", i) for i in items]
        denoiser, start, coils = GaussianDenoiser(covariance), noise[items], coil_noise[items]
        return sample_teacher(denoiser, own, start, settings, coil_noise=coils, generators=generators)

    together = drawn(operator, [0, 1, 2])
    for i in range(3):
        alone = drawn(sense(operator.maps[i : i + 1], operator.mask[i : i + 1]), [i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_real_images_stay_real_and_agree_with_the_real_part_in_double_precision(settings):
    """Inpainting masks of odd and even sizes, float32, each item the same alone."""
    mask = torch.rand(3, 4, 5, generator=torch_generator("inpainting")) < 0.7
    noise = unit_noise(torch.zeros(3, 4, 5), torch_generator("real"))
    covariance = torch.diag(torch.linspace(0.1, 1.5, 20))

    def drawn(kind: torch.dtype, items: list[int]) -> Tensor:
        generators = [torch_generator("real", i) for i in items]
        own = Sampling(mask[items], (len(items), 4, 5))
        denoiser = GaussianDenoiser(covariance.to(kind))
        return sample_teacher(denoiser, own, noise[items].to(kind), settings, generators=generators)

    found = drawn(torch.float32, [0, 1, 2])
    assert found.dtype == torch.float32
    assert float(found[~mask].abs().max()) < 1e-4  # nothing is known there: the mean of the prior
    for i in range(3):
        torch.testing.assert_close(drawn(torch.float32, [i])[0], found[i], rtol=1e-4, atol=1e-5)
    if settings.churn.amount == 0:  # complex fresh noise is another draw
        torch.testing.assert_close(found.to(torch.complex128), drawn(torch.complex128, [0, 1, 2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": SamplerSettings(churn=Churn(1.0))}, "churn needs one for each of 2 images, got none"),
        ({"settings": SamplerSettings(churn=Churn(1.0)), "generators": []}, "one for each of 2 images, got 0"),
        ({"sigma_y": 80.0}, "from 0 to below 80, got 80"),
        ({"sigma_y": -0.1}, "from 0 to below 80, got -0.1"),
        ({"sigma_y": math.nan}, "got nan"),
    ],
)
def test_what_cannot_be_sampled_is_refused(covariance, arguments, message):
    noise = torch.zeros(2, SIDE, SIDE, dtype=torch.complex128)
    with pytest.raises(ValueError, match=message):
        sample_teacher(GaussianDenoiser(covariance), full(2), noise, **arguments)
