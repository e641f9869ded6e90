"""Every objective on noisy measurements: its minimiser is E[x | u, M~], of the clean image, and not otherwise.

Expectations over the image, the noise of the measurement and the noise that is added are exact (`exact_loss`); the
masks M behind one further mask M~ are enumerated. The reference is E[x | v] of the samples v, by dense algebra.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from exact_loss import Linear, distance, minimiser
from references import random_covariance, random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch, NoiseDraw, draw_noise
from rsdmri.diffusion.objectives import draw_for, line_weights, measurement_loss, teacher_loss
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics import masks
from rsdmri.physics.sense import Sampling, Sense, sense
from rsdmri.runtime import numpy_generator, torch_generator

HEIGHT, WIDTH, PIXELS = 3, 4, 12
SIGMA = 0.3
FORMS = ["published", "operator", "consistent"]


@dataclass(frozen=True)
class Case:
    """One objective on one kind of measurement."""

    objective: str
    real: bool = False
    coils: int = 0  # 0: images
    missing: bool = False  # pixels or lines
    sigma_y: float = 0.0

    def __str__(self) -> str:
        kind = f"{self.coils} coils" if self.coils else "real" if self.real else "complex"
        return f"{self.objective}, {kind}{', missing' * self.missing}, s_y = {self.sigma_y:g}"


CASES = [
    *(Case("edm", real) for real in (True, False)),
    *(Case("ambient-tweedie", real, sigma_y=0.2) for real in (True, False)),
    *(Case("ambient", real, missing=True, sigma_y=s_y) for real in (True, False) for s_y in (0.0, 0.2)),
    *(Case("fourier-ambient", coils=coils, missing=True, sigma_y=s_y) for coils in (1, 2) for s_y in (0.0, 0.2)),
]
NOISY = [case for case in CASES if case.sigma_y]


class Problem:
    """A Gaussian image (prior C), one further mask M~ and the masks M behind it, each one position larger."""

    def __init__(self, case: Case, form: str = "operator"):
        rng = numpy_generator("problem", case.coils, case.real)
        self.case, self.form = case, form
        covariance = random_covariance(rng, PIXELS)
        self.covariance = covariance.real if case.real else covariance
        self.maps = random_maps(rng, case.coils, HEIGHT, WIDTH) if case.coils else None
        positions = np.array([1, 2]) if case.coils else rng.permutation(PIXELS)[:5]
        columns = (1, WIDTH) if case.coils else (HEIGHT, WIDTH)
        every = np.ones(columns, bool)
        self.shown = np.isin(np.arange(every.size), positions).reshape(columns) if case.missing else every
        self.behind = [self.shown]
        if case.missing:
            others = np.flatnonzero(~self.shown)
            self.behind = [self.shown | np.isin(np.arange(every.size), [k]).reshape(columns) for k in others]
        self.batch, self.draw = self._exact()

    def matrix(self, mask: np.ndarray) -> np.ndarray:
        """A of ``mask``, dense."""
        if self.maps is None:
            return np.diag(mask.reshape(-1).astype(float))
        return sense_matrix(self.maps, np.broadcast_to(mask, (HEIGHT, WIDTH)))

    def _exact(self) -> tuple[Batch, NoiseDraw]:
        """Items whose losses add up to the expectation."""
        case = self.case
        size = len(self.matrix(self.shown))
        values, vectors = np.linalg.eigh(self.covariance)
        count = PIXELS + 2 * size
        unit = np.eye(count) * (1 if case.real else np.sqrt(2))
        x = unit[:, :PIXELS] @ (vectors * np.sqrt(values.clip(0))).T
        own, added = unit[:, PIXELS : PIXELS + size], unit[:, PIXELS + size :]
        measured = np.concatenate([x @ self.matrix(m).T + case.sigma_y * own @ self._samples(m) for m in self.behind])
        every, kind = len(measured), torch.float64 if case.real else torch.complex128
        shape = (every, case.coils, HEIGHT, WIDTH) if case.coils else (every, HEIGHT, WIDTH)
        batch = Batch(
            torch.as_tensor(measured).to(kind).reshape(shape),
            None if self.maps is None else torch.as_tensor(self.maps).expand(every, -1, -1, -1),
            torch.as_tensor(np.repeat(np.stack(self.behind), count, axis=0)),
            torch.as_tensor(self.shown).expand(every, -1, -1),
            torch.full((every,), case.sigma_y, dtype=torch.float64),
        )
        noise = torch.as_tensor(np.tile(added, (len(self.behind), 1))).to(kind).reshape(shape)
        return batch, NoiseDraw(torch.full((every,), SIGMA, dtype=torch.float64), noise)

    def _samples(self, mask: np.ndarray) -> np.ndarray:
        """The projection onto the samples of ``mask``, dense."""
        plane = np.broadcast_to(mask, (HEIGHT, WIDTH)).reshape(-1)
        return np.diag(np.tile(plane, max(1, self.case.coils)).astype(float))

    @property
    def best(self) -> Tensor:
        """L with L u = E[x | v], v = A~ x + s n, u = A~^H v."""
        acquired = np.diag(self._samples(self.shown)) > 0
        matrix = self.matrix(self.shown)[acquired]
        of_v = matrix @ self.covariance @ matrix.conj().T + SIGMA**2 * np.eye(len(matrix))
        of_samples = self.covariance @ matrix.conj().T @ np.linalg.inv(of_v)
        found = of_samples @ np.linalg.pinv(matrix.conj().T)
        assert np.allclose(found @ matrix.conj().T, of_samples)  # u says all about x that v says
        return torch.as_tensor(found)

    @property
    def law(self) -> np.ndarray:
        """Covariance of u."""
        matrix = self.matrix(self.shown)
        normal = matrix.conj().T @ matrix
        return normal @ self.covariance @ normal + SIGMA**2 * normal

    def loss(self, denoiser: Linear) -> Tensor:
        """Expected loss, M uniform over those behind M~."""
        return teacher_loss(self.case.objective, denoiser, self.batch, self.draw).sum() / len(self.behind)

    def gradient(self, gain: Tensor, loss=None) -> Tensor:
        denoiser = Linear(gain, self.form)
        (loss or self.loss)(denoiser).backward()
        return denoiser.gain.grad

    def slope(self, loss=None) -> float:
        """Gradient at E[x | u, M~] relative to that at 0."""
        at_best, at_zero = (self.gradient(gain, loss) for gain in (self.best, torch.zeros_like(self.best)))
        return float(at_best.abs().max() / at_zero.abs().max())

    def written(self, denoiser: Linear, tweedie_on: list[np.ndarray], sigma_y: float) -> Tensor:
        """The written formula, dense, with q on ``tweedie_on`` and a level of the measurement that is believed."""
        count, total = len(self.batch) // len(self.behind), torch.zeros(())
        numbers = 1 if self.case.real else 2
        inner = torch.as_tensor(self.matrix(self.shown)).to(denoiser.gain.dtype)
        weights = line_weights(self.batch, self.draw.sigma, denoiser)
        for k, (mask, tweedie) in enumerate(zip(self.behind, tweedie_on, strict=True)):
            items = slice(k * count, (k + 1) * count)
            y, n = (part[items].reshape(count, -1) for part in (self.batch.measured, self.draw.noise))
            added = np.sqrt(SIGMA**2 - self.case.sigma_y**2)
            v = (y + added * n) @ torch.as_tensor(self._samples(self.shown)).to(y.dtype)
            estimate = (v @ inner.conj()) @ denoiser.gain.T
            share = sigma_y**2 / SIGMA**2 * torch.as_tensor(np.diag(self._samples(tweedie)).copy())
            residual = (1 - share) * (estimate @ torch.as_tensor(self.matrix(mask)).to(y.dtype).T) + share * v - y
            weight = weights[k * count].expand(HEIGHT, WIDTH).reshape(-1).repeat(max(1, self.case.coils))
            total = total + (weight * residual.abs() ** 2).sum() / (numbers * PIXELS)
        return total / len(self.behind)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_minimiser_is_the_conditional_mean_of_the_clean_image(case, form):
    problem = Problem(case, form)
    assert problem.slope() < 1e-9
    assert distance(minimiser(problem.gradient, problem.law), problem.best, problem.law) < 1e-5


@pytest.mark.parametrize("case", NOISY, ids=str)
def test_noise_that_is_ignored_moves_the_minimiser(case):
    problem = Problem(case)
    assert problem.slope(lambda d: problem.written(d, [problem.shown] * len(problem.behind), case.sigma_y)) < 1e-9
    assert problem.slope(lambda d: problem.written(d, [problem.shown] * len(problem.behind), 0.0)) > 0.02


@pytest.mark.parametrize("case", [case for case in NOISY if case.missing], ids=str)
def test_tweedie_on_the_held_out_positions_moves_the_minimiser(case):
    """Their noise is not in u: only the plain residual is unbiased there."""
    problem = Problem(case)
    assert problem.slope(lambda d: problem.written(d, problem.behind, case.sigma_y)) > 5e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_is_the_written_formula(case, form):
    problem = Problem(case, form)
    gain = torch.randn(PIXELS, PIXELS, dtype=problem.best.dtype, generator=torch_generator("gain"))
    denoiser = Linear(gain, form)
    dense = problem.written(denoiser, [problem.shown] * len(problem.behind), case.sigma_y)
    torch.testing.assert_close(problem.loss(denoiser), dense, rtol=1e-10, atol=0)


class ExactFromSamples(nn.Module):
    """E[x | u, M~] for u = A~^H (A~ x + s n): C B (B C B + s^2 B)^+ u with B = A~^H A~."""

    def __init__(self, covariance: Tensor, form: str):
        super().__init__()
        self.covariance, self.preconditioning = covariance, form
        self.sigma_data = torch.tensor(0.6, dtype=torch.float64)

    def forward(self, u: Tensor, operator: Sense | Sampling, sigma: Tensor) -> Tensor:
        batch, height, width = u.shape
        basis = torch.eye(height * width, dtype=u.dtype).reshape(-1, 1, height, width)
        columns = [operator.normal(e.expand(batch, -1, -1)).reshape(batch, -1) for e in basis]
        normal = torch.stack(columns, dim=-1)
        law = normal @ self.covariance @ normal + (sigma**2)[:, None, None] * normal
        gain = self.covariance @ normal @ torch.linalg.pinv(law, hermitian=True, rtol=1e-9)
        return (gain @ u.reshape(batch, -1, 1)).reshape(u.shape)


def random_batch(case: Case, count: int) -> tuple[Batch, Tensor]:
    """Random images, masks and noise of ``case``, and the covariance."""
    rng, generator = numpy_generator("draws", str(case)), torch_generator("draws", str(case))
    covariance = random_covariance(rng, PIXELS)
    covariance = torch.as_tensor(covariance.real if case.real else covariance)
    kind = covariance.dtype
    x = unit_noise(torch.empty(count, PIXELS, dtype=kind), generator) @ torch.linalg.cholesky(covariance).T
    x = x.reshape(count, HEIGHT, WIDTH)
    if case.coils:
        maps = torch.as_tensor(random_maps(rng, case.coils, HEIGHT, WIDTH)).expand(count, -1, -1, -1)
        mask = torch.rand(count, 1, WIDTH, generator=generator) < 0.6
        mask[..., 1:3] = True
        shown = masks.further_mask(mask, 1, acs=2, generator=generator)
        clean = sense(maps, mask).forward(x)
    else:
        maps, every = None, torch.ones(count, HEIGHT, WIDTH, dtype=torch.bool)
        mask = shown = every
        if case.missing:
            mask = torch.rand(every.shape, generator=generator) < 0.5
            shown = mask & (torch.rand(every.shape, generator=generator) < 0.7)
        clean = Sampling(mask, tuple(x.shape)).forward(x)
    level = case.sigma_y * (0.5 + torch.rand(count, dtype=torch.float64, generator=generator))
    noise = unit_noise(clean, generator) * level.reshape(-1, *[1] * (clean.ndim - 1))
    plane = mask if maps is None else mask[:, None]
    return Batch(clean + torch.where(plane, noise, 0), maps, mask, shown, level), covariance


@pytest.mark.parametrize("form", ["published", "operator"])
@pytest.mark.parametrize("case", [c for c in CASES if c.sigma_y or c.objective == "edm"], ids=str)
def test_random_draws_of_masks_levels_and_noise_agree_with_the_expectation(case, form):
    """At the exact denoiser the slope of the loss is zero within its standard error; away from it it is clear."""
    batch, covariance = random_batch(case, 1500)
    draw = draw_for(case.objective, batch, torch_generator("noise"), -1.0, 0.5)
    assert bool((draw.sigma > batch.sigma_y).all())
    exact = ExactFromSamples(covariance, form)
    matrix = torch.randn(PIXELS, PIXELS, dtype=covariance.dtype, generator=torch_generator("direction", form)) / 5
    seen = {}

    class Moved(nn.Module):
        preconditioning, sigma_data = exact.preconditioning, exact.sigma_data

        def __init__(self, by: Tensor):
            super().__init__()
            self.by = by

        def forward(self, u: Tensor, operator: Sense | Sampling, sigma: Tensor) -> Tensor:
            if not seen:
                seen["exact"] = exact(u, operator, sigma)
            return seen["exact"] + self.by[:, None, None] * (u.reshape(len(u), -1) @ matrix.T).reshape(u.shape)

    def slope_in_errors(at: float) -> float:
        by = torch.full((len(batch),), at, dtype=torch.float64, requires_grad=True)
        teacher_loss(case.objective, Moved(by), batch, draw).sum().backward()
        return float(by.grad.mean() / by.grad.std() * len(batch) ** 0.5)

    assert abs(slope_in_errors(0.0)) < 4
    assert slope_in_errors(0.4) > 8
    assert slope_in_errors(-0.4) < -8


@pytest.mark.parametrize("case", CASES, ids=str)
def test_items_do_not_see_each_other_and_what_was_not_acquired_is_not_read(case):
    batch, covariance = random_batch(case, 5)
    draw = draw_for(case.objective, batch, torch_generator("noise"), -1.0, 0.5)
    plane = batch.mask if batch.maps is None else batch.mask[:, None]
    poisoned = Batch(
        torch.where(plane, batch.measured, torch.nan), batch.maps, batch.mask, batch.further_mask, batch.sigma_y
    )
    denoiser = Linear(ExactFromSamples(covariance, "operator").covariance, "operator")
    losses = [teacher_loss(case.objective, denoiser, each, draw) for each in (batch, poisoned)]
    gradients = [torch.autograd.grad(loss.sum(), denoiser.gain)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    for i in range(5):
        one = slice(i, i + 1)
        alone = teacher_loss(case.objective, denoiser, batch[one], draw[one])
        torch.testing.assert_close(alone[0], losses[0][i], rtol=1e-9, atol=0)


def test_levels_of_all_noise_lie_above_that_of_the_measurement_and_follow_the_law_where_there_is_none():
    like, every = torch.zeros(4000, 1, 1), torch.ones(4000, 1, 1, dtype=torch.bool)
    clean, noisy = (Batch(like, None, every, every, torch.full((4000,), s)) for s in (0.0, 0.25))
    first, second = (draw_noise(batch, torch_generator("levels"), -1.2, 1.2).sigma for batch in (clean, noisy))
    assert float(first.log().mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(first.log().std()) == pytest.approx(1.2, abs=0.02)
    torch.testing.assert_close(second, torch.hypot(first, torch.tensor(0.25)))


def test_a_level_below_the_noise_of_the_measurement_is_refused():
    batch, covariance = random_batch(NOISY[0], 3)
    draw = NoiseDraw(batch.sigma_y * torch.tensor([1.1, 0.9, 1.0]), torch.zeros_like(batch.measured))
    with pytest.raises(ValueError, match="sigma: below the noise of the measurements; draw it with `draw_noise`"):
        measurement_loss(Linear(covariance, "operator"), batch, draw)
