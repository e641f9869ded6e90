"""Dropout by seeds of items: Bernoulli, repeatable, independent of batches, threads and the global generator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rsdmri.diffusion.dropout import Dropout, item_seeds
from rsdmri.diffusion.unet import UNet
from rsdmri.runtime import torch_generator


def ones(count: int) -> torch.Tensor:
    return torch.ones(count, 8, 25, 21)


def test_masks_are_bernoulli_and_keep_the_mean():
    layer = Dropout(0.3)
    with item_seeds(range(20)):
        out = layer(ones(20))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    numbers = out.numel()
    assert float((out == 0).double().mean()) == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / numbers) ** 0.5)
    kept = (out > 0).double().flatten(1)
    correlation = torch.corrcoef(kept)[~torch.eye(20, dtype=torch.bool)]
    assert float(correlation.abs().max()) < 6 / kept.shape[1] ** 0.5  # items are independent


def test_an_item_has_its_mask_alone_and_in_any_batch_and_thread():
    layer, seeds = Dropout(0.5, number=3), [5, 1, 7, 7, 2]
    with item_seeds(seeds):
        whole = layer(ones(5))
        assert torch.equal(layer(ones(5)), whole)  # however often it is asked for
    assert torch.equal(whole[2], whole[3])
    assert not torch.equal(whole[0], whole[1])

    def share(k: int) -> torch.Tensor:
        with item_seeds(seeds[k::2]):
            return layer(ones(5)[k::2])

    with ThreadPoolExecutor(2) as pool:
        for k, part in enumerate(pool.map(share, range(2))):
            assert torch.equal(part, whole[k::2])


def test_layers_of_a_network_differ():
    network = UNet(channels=(8, 16), blocks=2, dropout=0.5)
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    assert [layer.number for layer in layers] == list(range(9))
    with item_seeds([4]):
        masks = [layer(ones(1)) for layer in layers]
    assert not any(torch.equal(masks[0], other) for other in masks[1:])


def test_the_global_generator_neither_moves_nor_matters():
    network = UNet(channels=(8, 16), dropout=0.4)
    generator = torch_generator("weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    x, noise = torch.randn(3, 3, 9, 10, generator=generator), torch.zeros(3)
    state = torch.get_rng_state()
    with item_seeds([1, 2, 3]):
        first = network(x, noise)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]), item_seeds([1, 2, 3]):
        torch.rand(7)
        assert torch.equal(network(x, noise), first)
    with item_seeds([1, 2, 4]):
        other = network(x, noise)
    assert torch.equal(other[:2], first[:2])
    assert not torch.equal(other[2], first[2])


def test_half_precision_stays_half():
    with item_seeds([0, 1]):
        assert Dropout(0.5)(ones(2).bfloat16()).dtype == torch.bfloat16


def test_in_evaluation_and_without_a_share_nothing_happens():
    x = ones(2)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_training_without_seeds_is_refused():
    layer = Dropout(0.5)
    with pytest.raises(ValueError, match="expected 2 seeds, one an item, got none"):
        layer(ones(2))
    with item_seeds([1]), pytest.raises(ValueError, match="expected 2 seeds, one an item, got 1"):
        layer(ones(2))
