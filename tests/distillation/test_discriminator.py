"""The discriminator: losses against formulas, R1 by finite differences, rest at equal distributions, items apart."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.discriminator import Discriminator, View, gradient_penalty, play
from rsdmri.runtime import torch_generator


def drawn(*key: object, scale: float = 0.2, sigma_data: float = 1.0, parts: int = 2, **more: object) -> Discriminator:
    """A discriminator in float64 none of whose weights is zero."""
    found = Discriminator(sigma_data, parts, (8, 16), **more).double()
    generator = torch_generator("weights", *key)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return found


def views(count: int = 4, height: int = 7, width: int = 6, *, parts: int = 2) -> View:
    generator = torch_generator("views", height, width)
    kind = torch.complex128 if parts == 2 else torch.float64
    mask = torch.rand(count, 1, width, generator=generator) < 0.6
    return View(torch.where(mask, unit_noise(torch.zeros(count, height, width, dtype=kind), generator), 0), mask)


def frozen(discriminator: Discriminator) -> Discriminator:
    return copy.deepcopy(discriminator).requires_grad_(False)


def gradients(loss: Tensor, discriminator: Discriminator) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(discriminator.parameters())))


def test_losses_are_those_of_the_paper():
    network, real, fake = drawn(), views(), views(height=6)
    game = play(network, frozen(network), real, fake, r1=0.3)
    truth, guess = network(real).detach().numpy(), network(fake).detach().numpy()
    penalty = gradient_penalty(network, real)[1].detach().numpy()
    np.testing.assert_allclose(game.generator.detach(), np.logaddexp(0, -guess))
    expected = np.logaddexp(0, -truth) + np.logaddexp(0, guess) + 0.3 * penalty
    np.testing.assert_allclose(game.discriminator.detach(), expected)
    np.testing.assert_allclose(game.real, truth)
    np.testing.assert_allclose(game.fake, guess)
    assert penalty.min() > 1e-3  # so that it counts above


@pytest.mark.parametrize("parts", [1, 2])
def test_the_penalty_is_the_slope_that_finite_differences_find(parts):
    network, view = drawn(sigma_data=0.7, parts=parts), views(2, 3, 4, parts=parts)
    _, penalty = gradient_penalty(network, view)
    power, step = torch.zeros(2, dtype=torch.float64), 1e-5
    for pixel in range(12):
        for unit in (1, 1j)[:parts]:
            move = torch.zeros_like(view.images).reshape(2, -1)
            move[:, pixel] = unit * step
            ends = [network(View(view.images + s * move.view_as(view.images), view.mask)) for s in (1, -1)]
            power += ((ends[0] - ends[1]) / (2 * step)).detach() ** 2
    torch.testing.assert_close(penalty.detach(), 12 * parts / 2 * 0.7**2 * power, rtol=1e-6, atol=0)


def test_the_gradient_of_the_penalty_is_what_finite_differences_find():
    network, view = drawn(), views(3, 5, 4)
    *weights, _ = network.parameters()  # the last one, a bias, moves all logits alike and no slope
    found = torch.autograd.grad(gradient_penalty(network, view)[1].sum(), weights)
    generator = torch_generator("direction")
    for parameter, gradient in zip(weights, found, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
            ends.append(float(gradient_penalty(network, view)[1].detach().sum()))
            with torch.no_grad():
                parameter -= step * direction
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-7)


def test_at_equal_distributions_an_undecided_discriminator_moves_nothing():
    """Logits of 0 everywhere, the optimum there: both players rest, and neither does once the images differ."""
    network, real = drawn(), views()
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.zero_()
    order = torch.tensor([2, 0, 3, 1])
    images = real.images[order].requires_grad_(True)
    game = play(network, frozen(network), real, View(images, real.mask[order]), r1=1.0)
    (pull,) = torch.autograd.grad(game.generator.sum(), images)
    assert float(pull.abs().max()) == 0
    assert all(float(g.abs().max()) < 1e-12 for g in gradients(game.discriminator.mean(), network))
    louder = play(network, frozen(network), real, View(1.5 * images.detach(), real.mask[order]), r1=1.0)
    assert max(float(g.abs().max()) for g in gradients(louder.discriminator.mean(), network)) > 1e-3


def test_each_loss_moves_its_own_player():
    network, real, fake = drawn(), views(), views(height=6)
    images = fake.images.requires_grad_(True)
    game = play(network, frozen(network), real, View(images, fake.mask), r1=0.1)
    weights = list(network.parameters())
    assert all(
        g is None for g in torch.autograd.grad(game.generator.sum(), weights, retain_graph=True, allow_unused=True)
    )
    assert torch.autograd.grad(game.discriminator.sum(), images, retain_graph=True, allow_unused=True) == (None,)
    (pull,) = torch.autograd.grad(game.generator.sum(), images)
    step = 1e-3 / float(pull.abs().max())
    assert (network(View(images - step * pull, fake.mask)) > network(fake)).all()  # towards what is taken for real


@pytest.mark.parametrize(("height", "width"), [(7, 6), (8, 8), (1, 3)])
def test_items_of_a_batch_do_not_meet(height, width):
    network, view = drawn(), views(3, height, width)
    logits, penalty = gradient_penalty(network, view)
    for k in range(3):
        one = gradient_penalty(network, View(view.images[k : k + 1], view.mask[k : k + 1]))
        torch.testing.assert_close(one, (logits[k : k + 1], penalty[k : k + 1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_logits_and_penalty_know_no_units(scale):
    view, found = views(), []
    for factor in (1.0, scale):
        network = drawn(sigma_data=0.5 * factor)
        found.append(gradient_penalty(network, View(factor * view.images, view.mask)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)


def test_the_mask_the_position_and_the_conditions_count():
    network, view = drawn(conditions=("contrast", "field")), views()
    plain = network(view)
    assert not torch.allclose(plain, network(View(view.images, ~view.mask)))
    assert not torch.allclose(plain, network(View(view.images.roll(2, 1), view.mask)))
    known = torch.tensor([[1.0, 3.0]]).expand(4, -1)
    assert not torch.allclose(plain, network(View(view.images, view.mask, known)))
    torch.testing.assert_close(plain, network(View(view.images, view.mask, torch.zeros(4, 2))))


def test_fresh_weights_come_from_their_generator():
    one, two, other = (Discriminator(1.0, 2, (8, 16)) for _ in range(3))
    for network, key in ((one, "a"), (two, "a"), (other, "b")):
        network.initialise(torch_generator(key))
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.conv_in.weight, other.conv_in.weight)
    assert bool(one.out.weight.any())  # else the generator would hear nothing at first
