"""A linear generator, distilled by the real losses, reaches the law of low-rank images where the masks allow it."""

import numpy as np
import pytest
import torch

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.objectives import image_loss
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.linear import LinearDenoiser, distil, exact_draws, line_law, low_rank, principal_angles
from rsdmri.physics.sense import sense
from rsdmri.runtime import torch_generator

HEIGHT, WIDTH, PIXELS = 1, 5, 5
VARIANCES = [1.0, 0.5]
BASIS, TARGET = low_rank(PIXELS, VARIANCES, torch_generator("images"))
ALL = ((0, 1, 3, 4),)  # one group of outer lines
UNSEEN = ((0, 1, 3),)  # line 4 is never acquired
APART = ((0, 1), (3, 4))  # every line is acquired, 0 and 3 never in one scan


def follow(objective: str, groups: tuple = ALL, **settings: float) -> tuple[np.ndarray, np.ndarray]:
    """Principal angles and variances (eigenvalues, largest first) at every step."""
    seed = torch_generator("start")
    path = list(distil(TARGET, line_law(WIDTH, groups), objective, seed, **settings))
    angles = [principal_angles(covariance, BASIS).numpy() for covariance in path]
    return np.array(angles), torch.linalg.eigvalsh(torch.stack(path)).flip(-1).numpy()


@pytest.mark.parametrize(
    ("objective", "alpha", "steps"), [("dmd", 0.0, 300), ("sid", 0.8, 200), ("sid", 1.0, 200), ("sid", 1.2, 200)]
)
def test_generator_reaches_the_eigenspace_and_the_variances(objective, alpha, steps):
    angles, variances = follow(objective, alpha=alpha, steps=steps)
    assert angles[0, 0] > 0.5
    largest = angles[:: steps // 4, 0]
    assert (largest[1:] < largest[:-1]).all()
    assert largest[2] < 0.01
    assert largest[-1] < 1e-3
    np.testing.assert_allclose(variances[-1, :2], VARIANCES, rtol=0.01)
    assert variances[-1, 2] < 2e-3


@pytest.mark.parametrize("objective", ["dmd", "sid"])
@pytest.mark.parametrize("groups", [UNSEEN, APART], ids=["a line never acquired", "two lines never in one scan"])
def test_masks_that_break_the_condition_leave_the_eigenspace_unknown(objective, groups):
    angles, _ = follow(objective, groups, steps=80)
    assert angles[:, 0].min() > 0.4
    assert np.ptp(angles[60:, 0]) < 0.02  # it has come to rest


def test_sds_collapses():
    """Without a fake score nothing keeps the generated images from the mode."""
    _, variances = follow("sds", steps=60)
    assert variances[-1, 0] < 0.1


def test_alpha_above_one_diverges_where_most_levels_are_below_the_wrong_variance():
    """Q (1 - alpha Q) moves a variance v that should be 0; it is negative for s^2 < (alpha - 1) v."""
    _, diverged = follow("sid", alpha=1.2, sigma_min=0.002, rate=0.1, steps=80)
    assert diverged[-1, 0] > 3
    assert diverged[-1, 2] > 2 * diverged[0, 2]
    _, reached = follow("sid", alpha=0.8, sigma_min=0.002, rate=0.1, steps=80)
    assert reached[-1, 2] < 0.02


def outer_line(shown: torch.Tensor) -> torch.Tensor:
    """The one line of M~ beside the centre."""
    return shown[:, 0].long() @ torch.tensor([0, 1, 0, 3, 4])


def scans(groups: tuple) -> tuple[Batch, NoiseDraw, torch.Tensor]:
    """Every pair of masks with every draw of `exact_draws`, each pair at a level of its own for its M~."""
    law, points = line_law(WIDTH, groups), 2 * PIXELS
    mask, shown = (lines.repeat_interleave(points, 0) for lines in (law.mask, law.further_mask))
    latent, noise = (part.reshape(points, HEIGHT, WIDTH) for part in exact_draws(PIXELS, torch_generator("draws")))
    root = BASIS * torch.tensor(VARIANCES, dtype=torch.float64).sqrt() @ BASIS.mH
    images = (root @ latent.reshape(points, PIXELS, 1)).reshape(latent.shape).repeat(len(law.mask), 1, 1)
    maps = torch.ones(len(mask), 1, HEIGHT, WIDTH, dtype=torch.complex128)
    batch = Batch(torch.full_like(maps, torch.nan), maps, mask, shown, torch.zeros(len(mask)))
    sigma = 0.1 + 0.2 * outer_line(shown).double()
    return batch, NoiseDraw(sigma, noise.repeat(len(law.mask), 1, 1)), images


@pytest.mark.parametrize("groups", [ALL, UNSEEN, APART])
def test_the_linear_denoiser_minimises_the_loss_of_teacher_and_fake_score(groups):
    """The gradient of the mean loss vanishes for the estimate plus any linear map of u of its own for each M~."""
    batch, draw, images = scans(groups)
    law = line_law(WIDTH, groups)

    class Moved(LinearDenoiser):
        change = torch.zeros(WIDTH, PIXELS, PIXELS, dtype=torch.complex128, requires_grad=True)

        def forward(self, u, operator, sigma):
            lines = self.change[outer_line(operator.mask)]
            return super().forward(u, operator, sigma) + (lines @ u.reshape(len(u), -1, 1)).reshape(u.shape)

    def slope(covariance: torch.Tensor) -> float:
        loss = image_loss(Moved(covariance, law), images, batch, draw).mean()
        return float(torch.autograd.grad(loss, Moved.change)[0].abs().max())

    assert slope(TARGET) < 1e-10
    assert slope(1.1 * TARGET) > 1e-4


def test_the_linear_denoiser_is_the_posterior_mean_where_every_line_can_be_acquired():
    law = line_law(WIDTH, ALL)
    like = torch.empty(len(law.mask), HEIGHT, WIDTH, dtype=torch.complex128)
    shown = sense(torch.ones_like(like)[:, None], law.further_mask)
    sigma = torch.linspace(0.05, 3, len(like), dtype=torch.float64)
    u = shown.normal(unit_noise(like, torch_generator("u")))
    found, expected = (score(u, shown, sigma) for score in (LinearDenoiser(TARGET, law), GaussianDenoiser(TARGET)))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_exact_draws_have_the_second_moments_of_noise():
    both = torch.cat(exact_draws(4, torch_generator("moments")), dim=1)
    assert both.shape == (8, 8)
    torch.testing.assert_close(both.mH @ both / 8, 2 * torch.eye(8, dtype=both.dtype))


def test_principal_angles_of_known_planes():
    basis = torch.eye(4, dtype=torch.complex128)[:, :2]
    turned = basis.clone()
    turned[0, 0], turned[3, 0] = np.cos(0.3), 1j * np.sin(0.3)
    covariance = turned @ torch.diag(torch.tensor([2.0, 1.0], dtype=basis.dtype)) @ turned.mH
    assert principal_angles(covariance, basis).tolist() == pytest.approx([0.3, 0.0], abs=1e-7)


def test_line_law():
    law = line_law(5, APART)
    assert law.mask.shape == law.further_mask.shape == (4, 1, 5)
    assert (law.further_mask <= law.mask).all()
    assert law.mask[:, 0].sum(dim=-1).tolist() == [3] * 4
    assert law.further_mask[:, 0].long().tolist()[0] == [1, 0, 1, 0, 0]
