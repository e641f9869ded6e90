"""Moving average of weights: the decay's half-life and the average itself."""

import pytest
import torch
from torch import nn

from rsdmri.runtime import torch_generator
from rsdmri.training.ema import average_decay, update_average


@pytest.mark.parametrize(("batch", "half_life"), [(1, 10), (16, 500), (24, 20_000)])
def test_a_weight_halves_after_the_half_life(batch, half_life):
    decay = average_decay(batch, images=10**9, half_life=half_life)
    assert decay ** (half_life / batch) == pytest.approx(0.5)


def test_half_life_is_at_most_a_share_of_the_images_so_far():
    assert average_decay(16, 1600, 50_000) == pytest.approx(0.5 ** (16 / 80))
    assert average_decay(16, 1600, 50_000, ramp=0.1) == pytest.approx(0.5 ** (16 / 160))
    assert average_decay(16, 10**8, 50_000) == pytest.approx(0.5 ** (16 / 50_000))
    assert average_decay(16, 16, 0.0) == 0.0  # no average: the weights themselves


class Module(nn.Module):
    def __init__(self, *key: object):
        super().__init__()
        generator = torch_generator(*key)
        self.first = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.second = nn.Parameter(torch.randn(5, generator=generator))
        self.register_buffer("kept", torch.randn(2, generator=generator))


def test_average_is_the_written_formula_over_many_steps():
    average, models = Module("average"), [Module("model", i) for i in range(5)]
    average.requires_grad_(False)
    expected = [p.detach().double() for p in average.parameters()]
    for i, model in enumerate(models):
        decay = 0.3 + 0.1 * i
        before = [p.detach().clone() for p in model.parameters()]
        update_average(average, model, decay)
        expected = [decay * e + (1 - decay) * p.double() for e, p in zip(expected, before, strict=True)]
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert torch.equal(average.kept, model.kept)
    for parameter, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, rtol=1e-6, atol=1e-6)
        assert not parameter.requires_grad


def test_decay_zero_copies_and_one_keeps():
    average, model = Module("average"), Module("model")
    kept = average.first.detach().clone()
    update_average(average, model, 1.0)
    assert torch.equal(average.first, kept)
    update_average(average, model, 0.0)
    assert torch.equal(average.first, model.first)
    assert average.first.data_ptr() != model.first.data_ptr()
