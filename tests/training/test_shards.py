"""Gradients by shares of a batch: the same as of the whole, in the batch's order, the same at every repeat."""

import numpy as np
import pytest
import torch
from references import random_maps
from torch import Tensor

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.objectives import ambient_loss, draw_noise
from rsdmri.diffusion.unet import UNet
from rsdmri.physics import masks
from rsdmri.physics.sense import sense
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.training.shards import Shards, interleave

CPU = torch.device("cpu")


def problem(size: int) -> tuple[Denoiser, Batch, NoiseDraw]:
    """A network, random slices of 9 x 10 with 2 coils, and noise."""
    network = UNet(channels=(8, 16))
    generator = torch_generator("weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    rng = numpy_generator("slices", size)
    maps = torch.as_tensor(np.stack([random_maps(rng, 2, 9, 10) for _ in range(size)]), dtype=torch.complex64)
    mask = torch.as_tensor(rng.uniform(size=(size, 1, 10)) < 0.7)
    mask[..., 3:7] = True
    shown = masks.further_mask(mask, 1, acs=4, generator=torch_generator("further"))
    images = torch.randn(size, 9, 10, dtype=torch.complex64, generator=torch_generator("images", size))
    batch = Batch(sense(maps, mask).forward(images), maps, mask, shown, torch.zeros(len(maps)))
    return Denoiser(network, 0.5), batch, draw_noise(batch, torch_generator("noise"))


def gradients(shards: Shards, size: int, rounds: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    denoiser, batch, draw = problem(size)

    def loss(share: slice) -> tuple[Tensor, ...]:
        return ambient_loss(denoiser, batch[share], draw[share]), draw.sigma[share]

    return shards.gradients(loss, list(denoiser.parameters()), size, rounds=rounds)


@pytest.mark.parametrize(("workers", "rounds"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_gradients_and_values_are_those_of_the_whole_batch(workers, rounds, size):
    denoiser, batch, draw = problem(size)
    values = ambient_loss(denoiser, batch, draw)
    values.mean().backward()
    found, (loss, sigma) = gradients(Shards(workers, CPU), size, rounds)
    scale = max(float(p.grad.abs().max()) for p in denoiser.parameters())
    for gradient, parameter in zip(found, denoiser.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(loss, values.detach(), rtol=1e-5, atol=0)
    assert torch.equal(sigma, draw.sigma)
    assert not loss.requires_grad


@pytest.mark.parametrize("workers", [2, 3])
def test_repeats_are_equal_bit_for_bit(workers):
    shards = Shards(workers, CPU)
    first, (loss, _) = gradients(shards, 7)
    for _ in range(4):
        again, (other, _) = gradients(shards, 7)
        assert torch.equal(loss, other)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    again, _ = gradients(Shards(workers, CPU), 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("size", [1, 4, 5, 6, 11])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_interleave_restores_the_order(size, count):
    whole = torch.arange(2 * size).reshape(size, 2)
    assert torch.equal(interleave([whole[k::count] for k in range(min(count, size))], size), whole)


def test_parameters_that_a_share_does_not_use_have_no_gradient():
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    found, _ = Shards(2, CPU).gradients(lambda share: ((used * 3).sum() * torch.ones(4)[share],), [used, unused], 4)
    assert found[0].tolist() == [3, 3]
    assert found[1].tolist() == [0, 0]


def test_workers():
    assert Shards(3, CPU).workers == 3
    assert 1 <= Shards(0, CPU).workers <= 8
    assert Shards(4, torch.device("meta")).workers == 1
    shares = Shards(4, CPU).map(lambda share: share, 3)  # never an empty share
    assert [list(range(3))[share] for share in shares] == [[0], [1], [2]]
    shares = Shards(2, CPU).map(lambda share: share, 7, rounds=2)
    assert [list(range(7))[share] for share in shares] == [[0, 4], [1, 5], [2, 6], [3]]


def test_a_part_of_a_batch_adds_its_part_of_the_gradient():
    weight, items = torch.ones(1, requires_grad=True), torch.tensor([1.0, 2, 3, 4, 5])
    found = []
    for part in (items[0::2], items[1::2]):
        (gradient,), (values,) = Shards(1, CPU).gradients(
            lambda share, part=part: (weight * part[share],), [weight], len(part), of=5
        )
        assert torch.equal(values, part)
        found.append(float(gradient))
    assert found == pytest.approx([9 / 5, 6 / 5])


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_a_share_reach_the_caller(workers):
    def fail(share: slice) -> tuple[Tensor, ...]:
        raise ArithmeticError(f"share {share.start}")

    with pytest.raises(ArithmeticError, match="share 0"):
        Shards(workers, CPU).gradients(fail, [], 4)
