"""The ambient loss: its minimiser is E[x | u, M~] where every line can be acquired given M~, and not otherwise.

Expectations over the image and the noise are exact: the loss of a linear denoiser is quadratic in both, so its mean is
the sum of its values on scaled unit vectors. Masks given M~ are enumerated.
"""

import itertools

import numpy as np
import pytest
import torch
from exact_loss import Linear, distance, minimiser
from references import conditional_gain, random_covariance, random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.objectives import ambient_loss, draw_noise, image_loss, line_weights
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics import masks
from rsdmri.physics.sense import Sense, sense
from rsdmri.runtime import numpy_generator, torch_generator

HEIGHT, WIDTH, PIXELS = 4, 6, 24
ACS = {2, 3}
FORMS = ["published", "operator"]


class Problem:
    """A Gaussian image (prior C), coils, one further mask M~ and the masks M that may lie behind it."""

    def __init__(self, coils: int, shown: set[int], behind: list[set[int]], form: str, sigma: float = 0.3):
        rng = numpy_generator("problem", coils)
        self.covariance = random_covariance(rng, PIXELS, floor=0.05)
        self.maps = random_maps(rng, coils, HEIGHT, WIDTH)
        self.shown, self.behind, self.form, self.sigma = mask_of(shown), behind, form, sigma
        matrix = sense_matrix(self.maps, self.shown)
        self.normal = matrix.conj().T @ matrix
        self.best = torch.as_tensor(conditional_gain(self.covariance, self.normal, sigma))
        self.batch, self.draw = self._exact()

    def _exact(self) -> tuple[Batch, NoiseDraw]:
        """Items whose losses add up to the expectation: every eigenvector of x and of e, for every M."""
        values, vectors = np.linalg.eigh(self.covariance)
        x = np.concatenate([(vectors * np.sqrt(2 * values)).T, np.zeros((PIXELS, PIXELS))])
        e = np.concatenate([np.zeros((PIXELS, PIXELS)), np.sqrt(2) * np.eye(PIXELS)])
        kspace, masks_behind = [], []
        for behind in self.behind:
            mask = mask_of(behind)
            kspace.append(x @ sense_matrix(self.maps, mask).T)
            masks_behind += [mask] * len(x)
        count, coils = len(self.behind), len(self.maps)
        batch = Batch(
            torch.as_tensor(np.concatenate(kspace)).reshape(-1, coils, HEIGHT, WIDTH),
            torch.as_tensor(self.maps).expand(count * len(x), -1, -1, -1),
            torch.as_tensor(np.stack(masks_behind))[:, None],
            torch.as_tensor(self.shown).expand(count * len(x), 1, -1),
            torch.zeros(count * len(x), dtype=torch.float64),
        )
        noise = torch.as_tensor(np.tile(e, (count, 1)), dtype=torch.complex128).reshape(-1, HEIGHT, WIDTH)
        return batch, NoiseDraw(torch.full((len(noise),), self.sigma, dtype=torch.float64), noise)

    def loss(self, denoiser: Linear) -> Tensor:
        """Expected loss, M uniform over those behind M~."""
        return ambient_loss(denoiser, self.batch, self.draw).sum() / len(self.behind)

    def gradient(self, gain: Tensor) -> Tensor:
        denoiser = Linear(gain, self.form)
        self.loss(denoiser).backward()
        return denoiser.gain.grad

    def fit(self) -> Tensor:
        return minimiser(self.gradient, self._law())

    def _law(self) -> np.ndarray:
        """Covariance of u."""
        return self.normal @ (self.covariance + self.sigma**2 * np.eye(PIXELS)) @ self.normal

    def distance(self, gain: Tensor) -> float:
        """From E[x | u, M~], see `exact_loss.distance`."""
        return distance(gain, self.best, self._law())


def mask_of(lines: set[int]) -> np.ndarray:
    return np.isin(np.arange(WIDTH), sorted(lines))


def one_more(shown: set[int], possible: set[int]) -> list[set[int]]:
    """Masks behind ``shown`` when exactly one line was dropped: each of the others that can be acquired."""
    return [shown | {line} for line in sorted(possible - shown)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("coils", [1, 2])
@pytest.mark.parametrize("outer", [set(), {0}, {1, 5}])
def test_minimiser_is_the_conditional_mean(form, coils, outer):
    shown = ACS | outer
    problem = Problem(coils, shown, one_more(shown, set(range(WIDTH))), form)
    size = float(problem.gradient(torch.zeros_like(problem.best)).abs().max())
    assert float(problem.gradient(problem.best).abs().max()) < 1e-9 * size
    assert problem.distance(problem.fit()) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_weights_do_not_move_the_minimiser_but_the_mask_must_be_larger_than_what_is_shown(form):
    """M = M~: the loss then asks nothing about the lines that were not shown, and one coil leaves them open."""
    shown = ACS | {0}
    problem = Problem(1, shown, [shown], form)
    assert float(problem.gradient(problem.best).abs().max()) < 1e-10
    assert problem.distance(problem.fit()) > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_a_line_that_is_never_acquired_stays_undetermined(form):
    never, shown = 4, ACS | {0}
    problem = Problem(1, shown, one_more(shown, set(range(WIDTH)) - {never}), form)
    of_line = torch.as_tensor(sense_matrix(problem.maps, mask_of({never})))
    projector = of_line.mH @ of_line
    shift = projector @ torch.randn(PIXELS, PIXELS, dtype=torch.complex128, generator=torch_generator("shift"))
    best = problem.loss(Linear(problem.best, form)).detach()
    moved = problem.loss(Linear(problem.best + shift, form)).detach()
    torch.testing.assert_close(moved, best, rtol=1e-10, atol=1e-10)
    fitted = problem.fit()
    assert problem.distance(fitted) > 0.1  # what the line holds given the others was never learnt ...
    assert problem.distance(fitted + projector @ problem.best) < 1e-5  # ... and it alone is missing
    assert float((projector @ fitted).abs().max()) < 1e-10


def draws(count: int, form: str) -> tuple[Batch, NoiseDraw, GaussianDenoiser]:
    """Random images, masks of the random family and further masks, all by the functions that training uses."""
    rng = numpy_generator("draws")
    covariance = random_covariance(rng, PIXELS, floor=0.05)
    root = np.linalg.cholesky(covariance)
    x = (rng.normal(size=(count, PIXELS)) + 1j * rng.normal(size=(count, PIXELS))) @ root.T
    maps = torch.as_tensor(random_maps(rng, 2, HEIGHT, WIDTH)).expand(count, -1, -1, -1)
    mask = torch.stack(
        [masks.draw_mask("random", WIDTH, acceleration=1.5, center_fraction=1 / 3, key=(i,)) for i in range(count)]
    )[:, None]
    shown = masks.further_mask(mask, 1, acs=2, generator=torch_generator("further"))
    kspace = sense(maps, mask).forward(torch.as_tensor(x).reshape(count, HEIGHT, WIDTH))
    batch = Batch(kspace, maps, mask, shown, torch.zeros(len(kspace)))
    denoiser = GaussianDenoiser(torch.as_tensor(covariance))
    denoiser.preconditioning, denoiser.sigma_data = form, torch.tensor(0.6, dtype=torch.float64)
    return batch, draw_noise(batch, torch_generator("noise"), mean=-1.0, std=0.5), denoiser


@pytest.mark.parametrize("form", FORMS)
def test_random_draws_of_masks_and_noise_agree_with_the_expectation(form):
    """At the exact denoiser the slope of the loss is zero within its standard error, in any direction; away from it
    the slope is clear."""
    count = 1500
    batch, draw, exact = draws(count, form)
    answer = {}

    class Moved(nn.Module):
        preconditioning, sigma_data = exact.preconditioning, exact.sigma_data

        def __init__(self, by: Tensor):
            super().__init__()
            self.by = by

        def forward(self, u: Tensor, operator: Sense, sigma: Tensor) -> Tensor:
            if "exact" not in answer:
                answer["exact"] = exact(u, operator, sigma)
            return answer["exact"] + self.by[:, None, None] * direction(u)

    matrix = torch.randn(PIXELS, PIXELS, dtype=torch.complex128, generator=torch_generator("direction", form)) / 5

    def direction(u: Tensor) -> Tensor:
        return (u.reshape(-1, PIXELS) @ matrix.T).reshape(u.shape)

    def slope_in_errors(at: float) -> float:
        by = torch.full((count,), at, dtype=torch.float64, requires_grad=True)
        ambient_loss(Moved(by), batch, draw).sum().backward()
        return float(by.grad.mean() / by.grad.std() * count**0.5)

    assert abs(slope_in_errors(0.0)) < 4
    assert slope_in_errors(0.3) > 10
    assert slope_in_errors(-0.3) < -10


@pytest.mark.parametrize("form", FORMS)
def test_image_loss_is_the_ambient_loss_of_a_noise_free_measurement(form):
    batch, draw, denoiser = draws(6, form)
    images = unit_noise(batch.measured[:, 0], torch_generator("images"))
    measured = Batch(
        sense(batch.maps, batch.mask).forward(images), batch.maps, batch.mask, batch.further_mask, batch.sigma_y
    )
    torch.testing.assert_close(image_loss(denoiser, images, batch, draw), ambient_loss(denoiser, measured, draw))


def test_image_loss_reads_no_measurement():
    batch, draw, denoiser = draws(3, "operator")
    blind = Batch(torch.full_like(batch.measured, torch.nan), batch.maps, batch.mask, batch.further_mask, batch.sigma_y)
    images = unit_noise(batch.measured[:, 0], torch_generator("images"))
    assert torch.equal(image_loss(denoiser, images, blind, draw), image_loss(denoiser, images, batch, draw))


@pytest.mark.parametrize("form", FORMS)
def test_items_do_not_see_each_other(form):
    batch, draw, denoiser = draws(7, form)
    together = ambient_loss(denoiser, batch, draw)
    assert together.shape == (7,)
    for i in range(7):
        one = slice(i, i + 1)
        torch.testing.assert_close(ambient_loss(denoiser, batch[one], draw[one])[0], together[i], rtol=1e-9, atol=0)


def test_line_weights():
    batch, _, denoiser = draws(3, "operator")
    sigma, sd = torch.tensor([0.01, 0.5, 40.0], dtype=torch.float64), 0.6
    found = line_weights(batch, sigma, denoiser)
    for i, item in itertools.product(range(3), range(WIDTH)):
        expected = 0.0
        if batch.mask[i, 0, item]:
            expected = 1 / sd**2
        if batch.further_mask[i, 0, item]:
            expected += min(1 / float(sigma[i]) ** 2, 4 / sd**2)
        assert float(found[i, 0, item]) == pytest.approx(expected)
    denoiser.preconditioning = "published"
    published = line_weights(batch, sigma, denoiser)
    expected = (sigma**2 + sd**2) / (sigma * sd) ** 2
    torch.testing.assert_close(published, expected[:, None, None] * batch.mask)


def test_loss_is_the_written_formula():
    """One item, dense numpy: mean over 2 x pixels of w |A D(u) - y|^2 with u = A~^H y~ + s A~^H A~ e."""
    batch, draw, denoiser = draws(1, "operator")
    noise = draw.noise[0].reshape(-1).numpy()
    sigma, maps = float(draw.sigma[0]), batch.maps[0].numpy()
    outer, inner = (sense_matrix(maps, m[0, 0].numpy()) for m in (batch.mask, batch.further_mask))
    normal = inner.conj().T @ inner
    y = batch.measured.reshape(-1).numpy()
    u = inner.conj().T @ y + sigma * normal @ noise
    estimate = conditional_gain(denoiser.covariance.numpy(), normal, sigma) @ u
    weights = np.broadcast_to(line_weights(batch, draw.sigma, denoiser)[0].numpy(), (2, HEIGHT, WIDTH)).reshape(-1)
    expected = (weights * np.abs(outer @ estimate - y) ** 2).sum() / (2 * PIXELS)
    assert float(ambient_loss(denoiser, batch, draw)[0]) == pytest.approx(expected, rel=1e-6)
