"""Backbones of other libraries behind the interface of our own: sizes, levels, weights, training and priors on disk."""

import copy
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from rsdmri.config import Config, load_config
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.backbones import Adapted, build_backbone, timestep
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.conditions import encode
from rsdmri.diffusion.unet import UNet
from rsdmri.errors import InputError
from rsdmri.physics.sense import sense
from rsdmri.priors import build_denoiser, load_prior, save_prior
from rsdmri.runtime import torch_generator
from rsdmri.training.shards import Shards
from rsdmri.training.teacher import TeacherStage
from rsdmri.workflows.cost import SliceSize, network_cost

LIBRARIES = ("diffusers", "monai")
CPU = torch.device("cpu")


@pytest.fixture(params=["unet", *LIBRARIES])
def backbone(request) -> str:
    name = request.param
    if name != "unet":
        pytest.importorskip(name, reason=f"{name} is not installed; it comes with the extra {name}")
    if name == "monai":
        pytest.importorskip("einops", reason="einops is not installed; it comes with the extra monai")
    return name


def config(backbone: str, *overrides: str) -> Config:
    return load_config(None, ["network.channels=[8,16]", f"network.backbone={backbone}", *overrides])


def loud(settings: Config) -> UNet | Adapted:
    """The backbone with random numbers instead of its zeros."""
    network, generator = build_backbone(settings).eval(), torch_generator("loud")
    network.initialise(torch_generator("weights"))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch_generator("input", *shape))


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (16, 16)])
def test_any_size_items_alone_and_finite_gradients(backbone, size):
    network, x, level = (
        loud(config(backbone, "network.channels=[8,16,24]")),
        draw(2, 3, *size),
        torch.tensor([-1.5, 1.1]),
    )
    out = network(x, level)
    assert out.shape == (2, 2, *size)
    torch.testing.assert_close(network(x[1:], level[1:]), out[1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, level + 0.3), out, atol=1e-3)
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 2, 8, 8), (3, 8, 8)])
def test_what_is_no_image_is_refused(backbone, shape):
    with pytest.raises(ValueError, match=r"x: expected \(batch, 3, y, x\)"):
        build_backbone(config(backbone))(torch.zeros(shape), torch.zeros(2))


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.channels=[16]"],
        ["network.channels=[16,48,96]", "network.attention=2"],
        ["network.channels=[8,24,40]", "network.attention=3", "network.blocks=2"],
        ["corruption.kind=denoising"],
    ],
    ids=["one level", "attention at two", "attention at all", "magnitudes"],
)
def test_any_widths_and_levels(backbone, overrides):
    settings = config(backbone, *overrides)
    parts = 1 if settings.corruption.kind == "denoising" else 2
    assert loud(settings)(draw(1, parts + 1, 9, 10), torch.zeros(1)).shape == (1, parts, 9, 10)


def test_weights_come_from_the_generator_and_the_start_is_silent(backbone):
    first, second, other = (build_backbone(config(backbone)) for _ in range(3))
    for network, seed in ((first, 0), (second, 0), (other, 1)):
        network.initialise(torch_generator("weights", seed))
    pairs = zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True)
    for (name, a), b, c in pairs:
        assert torch.equal(a, b), name
        module = first.get_submodule(name.rpartition(".")[0])
        silent = isinstance(module, nn.GroupNorm) or not bool(module.weight.any())
        assert torch.equal(a, c) == silent, name
    assert not first(draw(1, 3, 8, 9), torch.zeros(1)).any()


def test_conditions_reach_the_network(backbone):
    settings = config(backbone, "network.conditions=['contrast','field']")
    network, x, level = loud(settings), draw(2, 3, 8, 9), torch.zeros(2)
    base, known = network(x, level), torch.stack([encode("T2w", 3.0), encode()])
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(network(x, level, known), base, strict=True)]
    assert same == [False, True]
    with pytest.raises(ValueError, match="built without"):
        build_backbone(config(backbone))(x, level, known)


def batches(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
    count = count if positions is None else len(positions)
    generator = torch_generator("batches", *key)
    maps = torch.randn(count, 2, 9, 10, dtype=torch.complex64, generator=generator)
    mask = torch.ones(count, 1, 10, dtype=torch.bool)
    kspace = sense(maps, mask).forward(torch.randn(count, 9, 10, dtype=torch.complex64, generator=generator))
    known = encode("T1w").expand(count, 2)
    return Batch(kspace, maps, mask, mask, torch.zeros(count), known)


def test_it_trains_and_comes_back_from_disk(backbone, tmp_path):
    settings = config(backbone, "network.conditions=['contrast']", "teacher.batch=2", "teacher.warmup=0")
    denoiser = build_denoiser(settings, 0.5, CPU)
    stage = TeacherStage(settings, denoiser, batches, Shards(1, CPU))
    before = copy.deepcopy(denoiser.state_dict())
    for index in range(3):
        assert stage.step(index, 0.0)["loss"] > 0
    moved = [not torch.equal(before[name], tensor) for name, tensor in denoiser.state_dict().items()]
    assert sum(moved) > 0.9 * len(moved)
    found = batches(1, "bank")
    save_prior(tmp_path, stage.average, None, Acquisitions(found.maps, found.mask), settings, {})
    prior = load_prior(tmp_path, "cpu")
    for name, tensor in stage.average.state_dict().items():
        assert torch.equal(prior.denoiser.state_dict()[name], tensor), name
    known = prior.sample(1, teacher=True, steps=2, contrast="T1w")
    assert known.isfinite().all()
    assert not torch.equal(known, prior.sample(1, teacher=True, steps=2))


def test_the_plan_counts_what_it_keeps(backbone):
    settings = config(backbone, "network.channels=[16,32,32]", "network.attention=2")
    network = build_backbone(settings)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        network(torch.zeros(1, 3, 61, 37), torch.zeros(1))
    counted = sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - own)
    assert network_cost(settings, SliceSize(0, 61, 37)).saved == pytest.approx(counted, rel=0.1)


class Echo(nn.Module):
    """Keeps what it is given."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen = x, time
        return x[:, :2]


def test_the_adapter_pads_crops_and_tells_the_level():
    network, x = Echo(), draw(2, 3, 5, 7)
    adapted = Adapted(network, 3, 4, ("contrast",))
    level = torch.tensor([0.002, 80.0]).log() / 4
    assert torch.equal(adapted(x, level, encode("T2w").expand(2, 2)), x[:, :2])
    padded, time = network.seen
    assert padded.shape == (2, 7, 8, 8)
    assert torch.equal(padded[:, :3, :5, :7], x)
    assert not padded[..., 5:, :].any()
    assert not padded[..., 7:].any()
    assert padded[:, 3:, 0, 0].tolist() == [[0, 1, 0, 0]] * 2
    assert time.tolist() == pytest.approx([0, 1000], abs=1e-3)
    assert float(timestep(torch.tensor(0.4).log() / 4)) == pytest.approx(500, abs=1)  # sqrt(0.002 * 80) = 0.4


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_one_line_with_the_cure(monkeypatch, library):
    for name in (library, f"{library}.networks", f"{library}.networks.nets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=rf"cannot be imported .*python -m pip install 'rsdmri\[{library}\]'"
    ) as caught:
        build_backbone(config(library))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["network.dropout=0.1", "network.attention=0"])
def test_what_monai_cannot_do_is_refused(override):
    with pytest.raises(InputError, match=r"no dropout and always attention .*; set network\.dropout=0"):
        build_backbone(config("monai", override))
