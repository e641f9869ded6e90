"""Moving average of weights: the decay's half-life and the average itself."""

import itertools

import pytest
import torch
from torch import nn

from rsdmri.runtime import torch_generator
from rsdmri.training.ema import Averages, average_decay, power_decay, power_gamma, update_average


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


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.2, 12**-0.5])
def test_the_length_is_the_standard_deviation_of_the_profile(sigma_rel):
    """Of (gamma + 1) tau^gamma on [0, 1], by its moments (gamma + 1) / (gamma + k + 1)."""
    gamma = power_gamma(sigma_rel)
    mean, square = ((gamma + 1) / (gamma + k + 1) for k in (1, 2))
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan")])
def test_lengths_that_no_profile_has_are_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"sigma_rel: expected a share above 0 and at most 0\.2887"):
        power_gamma(sigma_rel)


def test_power_decay_gives_the_profile_and_forgets_the_start():
    """After t steps, step s weighs (s / t)^(gamma + 1) - ((s - 1) / t)^(gamma + 1): the profile over that step."""
    sigma_rel, steps = 0.1, 20
    exponent, weights = power_gamma(sigma_rel) + 1, [1.0]  # the start
    for step in range(1, steps + 1):
        decay = power_decay(step, sigma_rel)
        weights = [decay * w for w in weights] + [1 - decay]
    edges = [(step / steps) ** exponent for step in range(steps + 1)]
    assert weights[0] == 0
    assert weights[1:] == pytest.approx([b - a for a, b in itertools.pairwise(edges)], abs=1e-12)


def averages(kind: str = "exponential", tracked: bool = True) -> Averages:
    return Averages(Module("start"), kind, 4, 100.0, tracked=tracked)


@pytest.mark.parametrize(
    ("kind", "tracked", "names"),
    [
        ("exponential", True, {"average", "power_050", "power_100"}),
        ("exponential", False, {"average"}),
        ("power", True, {"power_050", "power_100"}),
        ("power", False, {"power_050", "power_100"}),
    ],
)
def test_averages_that_are_kept(kind, tracked, names):
    kept, models = averages(kind, tracked), [Module("model", i) for i in range(6)]
    for step, model in enumerate(models, 1):
        kept.update(model, step)
    assert {key.partition(".")[0] for key in kept.state()} == names
    assert {key.partition(".")[0] for key in kept.snapshot()} == names - {"average"}
    expected = Module("start")
    for step, model in enumerate(models, 1):
        decay = average_decay(4, 4 * step, 100.0) if kind == "exponential" else power_decay(step, 0.10)
        update_average(expected, model, decay)
    assert torch.equal(kept.result.first, expected.first)
    assert not kept.result.training
    assert not kept.result.first.requires_grad
    other = averages(kind, tracked)
    other.load_state({**kept.state(), "adam.0.step": torch.ones(())})
    assert all(torch.equal(other.state()[key], tensor) for key, tensor in kept.state().items())
    assert torch.equal(other.result.first, kept.result.first)
