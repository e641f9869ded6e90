"""The backbone: any size, items on their own, a silent start that learns, weights from one generator."""

import pytest
import torch
from torch import Tensor, nn

from rsdmri.config import PRESETS
from rsdmri.diffusion.unet import ResidualBlock, SelfAttention, UNet, parameter_count
from rsdmri.runtime import torch_generator


def scrambled(**settings) -> UNet:
    """Network whose every parameter is random, so that nothing is hidden behind a zero."""
    network = UNet(**{"channels": (8, 16, 24), **settings}).eval()
    generator = torch_generator("scrambled")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return network


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch_generator("input", *shape))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (16, 16), (33, 18), (8, 31)])
def test_any_size_is_padded_inside_and_cropped_back(size):
    network, x, level = scrambled(), draw(2, 3, *size), torch.tensor([-0.5, 0.2])
    out = network(x, level)
    assert out.shape == (2, 2, *size)
    assert out.isfinite().all()
    padded = nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
    torch.testing.assert_close(out, network(padded, level)[..., : size[0], : size[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 12)])
def test_gradients_are_finite_at_every_size(size):
    network, x = scrambled(blocks=2, attention=3), draw(2, 3, *size).requires_grad_()
    network(x, torch.tensor([-1.5, 1.1])).square().sum().backward()
    for tensor in (x, *network.parameters()):
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 3, 5, 0), (2, 2, 8, 8), (3, 8, 8), (1, 2, 3, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected \(batch, 3, y, x\) with y and x at least 1, got"):
        UNet(channels=(8, 16))(torch.zeros(shape), torch.zeros(len(shape[:1])))


@pytest.mark.parametrize("shift", [(8, 0), (0, 8), (8, 16)])
def test_where_the_padding_lies_changes_nothing_but_at_the_edge(shift):
    """Without attention's help: the same object, a strides' multiple further on in the same empty plane."""
    network, plane, inside = scrambled(channels=(8, 16)), torch.zeros(1, 3, 96, 96), slice(36, 52)
    plane[..., inside, inside] = draw(1, 3, 16, 16)
    moved = plane.roll(shift, dims=(-2, -1))
    level = torch.zeros(1)
    back = network(moved, level).roll([-n for n in shift], dims=(-2, -1))
    torch.testing.assert_close(back[..., inside, inside], network(plane, level)[..., inside, inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [(8,), (16, 40), (8, 16, 100), (12, 104)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_any_widths(channels, blocks):
    out = scrambled(channels=channels, blocks=blocks)(draw(1, 3, 9, 10), torch.zeros(1)).detach()
    assert out.shape == (1, 2, 9, 10)
    assert float(out.std()) > 0


def test_items_do_not_see_each_other():
    network, x, level = scrambled(), draw(5, 3, 13, 10), torch.linspace(-1.5, 1, 5)
    together = network(x, level)
    for i in range(5):
        torch.testing.assert_close(network(x[i : i + 1], level[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)
    other = x.clone()
    other[1:] = 1e3
    torch.testing.assert_close(network(other, level)[0], together[0], rtol=1e-5, atol=1e-5)


def test_output_depends_on_every_input_channel_and_on_the_level():
    network, x, level = scrambled(), draw(1, 3, 8, 8), torch.zeros(1)
    base = network(x, level)
    for channel in range(3):
        changed = x.clone()
        changed[:, channel] += 1
        assert not torch.allclose(network(changed, level), base, atol=1e-3)
    assert not torch.allclose(network(x, level + 0.5), base, atol=1e-3)


def test_network_starts_silent_and_can_learn():
    network = UNet(channels=(8, 16))
    network.initialise(torch_generator("start"))
    out = network(draw(2, 3, 9, 12), torch.zeros(2))
    assert torch.equal(out, torch.zeros(2, 2, 9, 12))
    (out - 1).square().sum().backward()
    assert float(network.conv_out.weight.grad.abs().max()) > 0
    assert float(network.conv_out.bias.grad.abs().max()) > 0


def test_gradients_reach_every_parameter():
    network = scrambled(channels=(8, 16), blocks=2)
    network(draw(2, 3, 12, 9), torch.tensor([0.1, -0.7])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_initial_weights_come_from_the_generator_alone():
    first, second, other = (UNet(channels=(8, 16)) for _ in range(3))
    first.initialise(torch_generator("weights", 0))
    state = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.rand(11)
        second = UNet(channels=(8, 16))
        second.initialise(torch_generator("weights", 0))
    assert torch.equal(torch.get_rng_state(), state)
    other.initialise(torch_generator("weights", 1))
    pairs = zip(first.state_dict().items(), second.state_dict().values(), other.state_dict().values(), strict=True)
    for (name, a), b, c in pairs:
        assert torch.equal(a, b), name
        module = first.get_submodule(name.rpartition(".")[0])
        silent = isinstance(module, nn.GroupNorm) or not bool(module.weight.any())
        assert torch.equal(a, c) == silent, name


def test_initial_weights_are_bounded_by_the_fan_in():
    network = UNet(channels=(16, 32))
    network.initialise(torch_generator("bounds"))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and bool(module.weight.any()):
            bound = module.weight[0].numel() ** -0.5
            weight = module.weight.detach()
            assert float(weight.abs().max()) <= bound, name
            assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.2), name


def test_parameter_count():
    network = UNet(channels=(8, 16))
    assert parameter_count(network) == sum(v.numel() for v in network.state_dict().values())


@pytest.mark.parametrize(
    ("attention", "widths"), [(0, []), (1, [40]), (2, [32, 40, 32]), (9, [8, 16, 32, 40, 32, 16, 8])]
)
def test_attention_at_as_many_levels_as_asked_for(attention, widths):
    network, seen = scrambled(channels=(8, 16, 32, 40), attention=attention), []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    assert network(draw(1, 3, 16, 19), torch.zeros(1)).isfinite().all()
    assert seen == widths


@pytest.mark.parametrize(("coarse", "fine", "outputs"), [(48, 16, 16), (20, 12, 24), (16, 8, 24), (8, 8, 16)])
@pytest.mark.parametrize("grad", [False, True], ids=["evaluated", "trained"])
def test_half_of_the_channels_at_half_the_resolution_count_as_repeated(coarse, fine, outputs, grad):
    block = ResidualBlock(coarse + fine, outputs, 8).double()
    generator = torch_generator("coarse", coarse)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    x, small = draw(2, fine, 10, 14).double(), draw(2, coarse, 5, 7).double()
    embedding = draw(2, 8).double()
    whole = torch.cat([nn.functional.interpolate(small, scale_factor=2, mode="nearest"), x], dim=1)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x, embedding, small), block(whole, embedding), rtol=1e-10, atol=1e-10)


def test_attention_sees_the_whole_image(monkeypatch):
    network, x = scrambled(channels=(8, 16), attention=1), draw(1, 3, 64, 64)
    other = x.clone()
    other[..., :2, :2] += 5
    without = scrambled(channels=(8, 16), attention=0)
    monkeypatch.setattr(nn.functional, "group_norm", lambda x, *_: x)  # their means and variances see all of it, too
    with torch.no_grad():
        changes = [(net(other, torch.zeros(1)) - net(x, torch.zeros(1))).abs() for net in (network, without)]
    assert [bool((change[..., 40:, 40:] > 0).any()) for change in changes] == [True, False]


def test_presets_are_as_large_as_documented():
    counts = {name: parameter_count(UNet(**PRESETS[name])) for name in ("tiny", "small", "base")}
    assert {name: round(count / 1e6, 1) for name, count in counts.items()} == {"tiny": 0.8, "small": 2.0, "base": 35.6}


def test_the_residual_stream_keeps_its_size_in_the_deepest_preset():
    network, generator, sizes = UNet(**PRESETS["base"]), torch_generator("growth"), []
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = (3 / module.weight[0].numel()) ** 0.5  # weights that keep the variance, no block silent
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if isinstance(module, ResidualBlock):
                module.register_forward_hook(lambda module, inputs, output: sizes.append(float(output.std())))
        network(draw(1, 3, 32, 32), torch.zeros(1))
    assert len(sizes) == 21
    assert 0.5 < min(sizes) < max(sizes) < 2


def test_memory_stays_channels_last():
    network, wrong = scrambled(attention=2).to(memory_format=torch.channels_last), []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_contiguous(memory_format=torch.channels_last):
            wrong.append(module)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_pre_hook(look)
    network(draw(2, 3, 13, 18), torch.zeros(2))
    assert wrong == []


def test_normalisation_computes_in_float32_where_the_rest_does_not():
    x = (0.5 * draw(1, 16, 64, 64) + 200).bfloat16()  # a mean that bfloat16 sums would lose
    with torch.autocast("cpu", torch.bfloat16):
        found = nn.GroupNorm(2, 16)(x)
    expected = nn.functional.group_norm(x.double(), 2)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-8)
