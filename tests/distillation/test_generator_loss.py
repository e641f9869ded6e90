"""Losses of the generator against the written formulas, with Gaussian scores in closed form and dense matrices."""

import copy

import numpy as np
import pytest
import torch
from references import conditional_gain, random_covariance, random_maps, sense_matrix
from scipy import stats
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser, GaussianDenoiser
from rsdmri.diffusion.schedule import karras_sigma, unit_noise
from rsdmri.diffusion.unet import UNet
from rsdmri.distillation.generator import Generator
from rsdmri.distillation.objectives import GeneratorLoss, draw_level, generator_loss
from rsdmri.physics.sense import Sense, sense
from rsdmri.runtime import numpy_generator, torch_generator

HEIGHT, WIDTH, PIXELS = 3, 4, 12
OBJECTIVES = ["sid", "dmd", "sds"]
LINES = ["0110", "1011", "1111"]
ALPHA = 1.2


def gaussian(name: str) -> GaussianDenoiser:
    return GaussianDenoiser(torch.as_tensor(random_covariance(numpy_generator(name), PIXELS, floor=0.1)))


def batch() -> Batch:
    rng = numpy_generator("batch")
    maps = torch.as_tensor(np.stack([random_maps(rng, 2, HEIGHT, WIDTH) for _ in LINES]))
    shown = torch.tensor([[[c == "1" for c in lines]] for lines in LINES])
    kspace = torch.full(maps.shape, torch.nan, dtype=torch.complex128)  # these losses read no measurement
    return Batch(kspace, maps, torch.ones_like(shown), shown, torch.zeros(len(kspace)))


def images_and_draw() -> tuple[Tensor, NoiseDraw]:
    like = torch.zeros(len(LINES), HEIGHT, WIDTH, dtype=torch.complex128)
    generator = torch_generator("images")
    images = unit_noise(like, generator)
    return images, NoiseDraw(torch.tensor([0.05, 0.6, 7.0], dtype=torch.float64), unit_noise(like, generator))


class Dense:
    """One item by plain matrices: f_phi = P x_s, f_psi = Q x_s, with w constant."""

    def __init__(self, item: int, teacher: GaussianDenoiser, fake: GaussianDenoiser):
        images, draw = images_and_draw()
        data = batch()
        matrix = sense_matrix(data.maps[item].numpy(), data.further_mask[item, 0].numpy())
        normal, sigma = matrix.conj().T @ matrix, float(draw.sigma[item])
        self.x = images[item].reshape(-1).numpy()
        self.noisy = self.x + sigma * draw.noise[item].reshape(-1).numpy()
        self.p = conditional_gain(teacher.covariance.numpy(), normal, sigma) @ normal
        self.q = conditional_gain(fake.covariance.numpy(), normal, sigma) @ normal
        self.real, self.fake = self.p @ self.noisy, self.q @ self.noisy
        self.gap = self.real - self.fake
        self.weight = max(float(np.abs(self.x - self.real).mean()), 1e-5)

    def sid(self) -> tuple[float, np.ndarray]:
        """Value, and gradient dL/dRe x + i dL/dIm x of Re <g, (f_phi - x) - alpha g> / (n w), g = f_phi - f_psi."""
        k, identity = self.p - self.q, np.eye(PIXELS)
        inner = self.real - self.x - ALPHA * self.gap
        value = np.vdot(self.gap, inner).real
        gradient = k.conj().T @ inner + (self.p - identity - ALPHA * k).conj().T @ self.gap
        return value / (PIXELS * self.weight), gradient / (PIXELS * self.weight)

    def dmd(self) -> np.ndarray:
        return -self.gap / (PIXELS * self.weight)

    def sds(self) -> np.ndarray:
        return (self.x - self.real) / (PIXELS * self.weight)


def evaluate(objective: str, teacher: nn.Module, fake: nn.Module, alpha: float = ALPHA):
    images, draw = images_and_draw()
    images.requires_grad_()
    found = generator_loss(objective, images, teacher, fake, batch(), draw, alpha)
    found.loss.sum().backward()
    return GeneratorLoss(found.loss.detach(), found.gap), images.grad


def test_sid_value_and_gradient_are_the_written_formula():
    teacher, fake = gaussian("teacher"), gaussian("fake")
    found, gradient = evaluate("sid", teacher, fake)
    for i in range(len(LINES)):
        dense = Dense(i, teacher, fake)
        value, expected = dense.sid()
        assert float(found.loss[i]) == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(gradient[i].reshape(-1).numpy(), expected, atol=1e-7 * np.abs(expected).max())
        assert float(found.gap[i]) == pytest.approx(np.sqrt((np.abs(dense.gap) ** 2).mean()), rel=1e-6)


def test_sid_gradient_is_that_of_finite_differences_with_the_weight_held():
    teacher, fake = gaussian("teacher"), gaussian("fake")
    images, draw = images_and_draw()
    _, gradient = evaluate("sid", teacher, fake)
    step = 1e-6 * unit_noise(images, torch_generator("step"))

    def weighted(x: Tensor) -> Tensor:
        value = generator_loss("sid", x, teacher, fake, batch(), draw, ALPHA).loss
        shown = sense(batch().maps, batch().further_mask)
        real = teacher(shown.normal(x + draw.noise * draw.sigma[:, None, None]), shown, draw.sigma)
        return value * (x - real).abs().mean(dim=(1, 2))

    shown = sense(batch().maps, batch().further_mask)
    real = teacher(shown.normal(images + draw.noise * draw.sigma[:, None, None]), shown, draw.sigma)
    held = (images - real).abs().mean(dim=(1, 2))
    difference = (weighted(images + step) - weighted(images - step)) / (2 * held)
    slope = (gradient.conj() * step).real.sum(dim=(1, 2))
    torch.testing.assert_close(difference, slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("objective", "direction"), [("dmd", Dense.dmd), ("sds", Dense.sds)])
def test_gradient_of_dmd_and_sds_is_the_written_direction(objective, direction):
    teacher, fake = gaussian("teacher"), gaussian("fake")
    _, gradient = evaluate(objective, teacher, fake)
    for i in range(len(LINES)):
        expected = direction(Dense(i, teacher, fake))
        np.testing.assert_allclose(gradient[i].reshape(-1).numpy(), expected, atol=1e-7 * np.abs(expected).max())


def test_sds_does_not_use_the_fake_score():
    def refuse(*_: object) -> Tensor:
        raise AssertionError("evaluated")

    evaluate("sds", gaussian("teacher"), refuse)


def real_network() -> Denoiser:
    network = UNet(channels=(8, 16)).double().eval()
    generator = torch_generator("network")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return Denoiser(network, 0.7).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["gaussian", "network"])
def test_nothing_pulls_where_the_fake_score_is_the_teacher(kind):
    teacher = gaussian("teacher") if kind == "gaussian" else real_network()
    fake = copy.deepcopy(teacher)
    found, gradient = evaluate("dmd", teacher, fake)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert torch.equal(found.gap, torch.zeros_like(found.gap))
    found, gradient = evaluate("sid", teacher, fake)
    assert torch.equal(found.loss, torch.zeros_like(found.loss))
    assert float(gradient.abs().max()) < 1e-6
    _, other = evaluate("sid", teacher, gaussian("other"))
    assert float(other.abs().max()) > 1e-3


def test_sid_with_no_correction_is_the_plain_model_loss():
    """alpha = 0: Re <f_phi - f_psi, f_phi - x>."""
    teacher, fake = gaussian("teacher"), gaussian("fake")
    found, _ = evaluate("sid", teacher, fake, alpha=0.0)
    for i in range(len(LINES)):
        dense = Dense(i, teacher, fake)
        expected = np.vdot(dense.gap, dense.real - dense.x).real / (PIXELS * dense.weight)
        assert float(found.loss[i]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_items_do_not_see_each_other(objective):
    teacher, fake = gaussian("teacher"), gaussian("fake")
    together, gradient = evaluate(objective, teacher, fake)
    images, draw = images_and_draw()
    for i in range(len(LINES)):
        one = slice(i, i + 1)
        own = images[one].clone().requires_grad_()
        alone = generator_loss(objective, own, teacher, fake, batch()[one], draw[one], ALPHA)
        alone.loss.sum().backward()
        torch.testing.assert_close(alone.loss[0], together.loss[i], rtol=1e-9, atol=0)
        torch.testing.assert_close(own.grad[0], gradient[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_images_take_a_gradient(objective):
    teacher, fake = real_network(), real_network()
    evaluate(objective, teacher, fake)
    assert all(p.grad is None for p in [*teacher.parameters(), *fake.parameters()])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weight_has_a_floor_where_the_teacher_agrees_with_the_images(objective):
    images, draw = images_and_draw()
    echo = lambda u, operator, sigma: images  # noqa: E731
    images.requires_grad_()
    found = generator_loss(objective, images, echo, gaussian("fake"), batch(), draw)
    found.loss.sum().backward()
    assert found.loss.isfinite().all()
    assert images.grad.isfinite().all()
    if objective == "dmd":
        fake = gaussian("fake")
        shown = sense(batch().maps, batch().further_mask)
        noisy = images.detach() + draw.noise * draw.sigma[:, None, None]
        expected = (fake(shown.normal(noisy), shown, draw.sigma) - images.detach()) / (1e-5 * PIXELS)
        torch.testing.assert_close(images.grad, expected)


@pytest.mark.parametrize("t_max", [0.3, 1.0])
def test_levels_of_the_generator_step(t_max):
    kspace = torch.zeros(4000, 1, 2, 2, dtype=torch.complex64)
    wide = Batch(kspace, kspace, kspace.real > 0, kspace.real > 0, torch.zeros(len(kspace)))
    draw = draw_level(wide, torch_generator("levels"), t_max)
    again = draw_level(wide, torch_generator("levels"), t_max)
    assert torch.equal(draw.sigma, again.sigma)
    assert torch.equal(draw.noise, again.noise)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    t = (draw.sigma.double().numpy() ** (1 / 7) - low) / (high - low)  # 0 at the least noise
    assert t.min() >= -1e-6
    assert t.max() <= t_max + 1e-6
    assert stats.kstest(t, "uniform", args=(0, t_max)).pvalue > 1e-4
    assert float(draw.sigma.max()) <= float(karras_sigma(torch.tensor(t_max))) * (1 + 1e-5)


def test_generator_is_one_evaluation_of_its_denoiser_at_its_level():
    class Seen(nn.Module):
        calls: list = []  # noqa: RUF012

        def forward(self, u: Tensor, operator: Sense, sigma: Tensor) -> Tensor:
            self.calls.append((u, sigma))
            return 3 * u

    data = batch()
    shown = sense(data.maps, data.further_mask)
    noise = unit_noise(data.image, torch_generator("latent"))
    found = Generator(Seen(), 2.5)(noise, shown)
    assert len(Seen.calls) == 1
    u, sigma = Seen.calls[0]
    torch.testing.assert_close(u, shown.normal(2.5 * noise))
    assert sigma.tolist() == [2.5] * len(LINES)
    torch.testing.assert_close(found, 3 * u)
