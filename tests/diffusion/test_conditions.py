"""Contrast and field strength: their numbers, what a network makes of them, and what None leaves as it was."""

import math

import pytest
import torch
from torch import Tensor, nn

from rsdmri.data.scan import Header
from rsdmri.diffusion.batch import Batch, draw_noise
from rsdmri.diffusion.conditions import CONTRASTS, ConditionEmbedding, encode, feature_count, features, forget
from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.diffusion.objectives import ambient_loss, image_loss, measurement_loss
from rsdmri.diffusion.unet import UNet
from rsdmri.distillation.generator import Generator
from rsdmri.distillation.objectives import draw_level, generator_loss
from rsdmri.errors import InputError
from rsdmri.physics.sense import sense
from rsdmri.runtime import torch_generator
from rsdmri.workflows.conditions import scan_conditions

BOTH = ("contrast", "field")


def test_numbers():
    assert encode().tolist() == [0, 0]
    assert encode("T2w", 3.0).tolist() == [CONTRASTS.index("T2w"), 3]
    assert encode("flair").tolist() == [4, 0]
    assert encode("unknown", 0.055).tolist() == pytest.approx([0, 0.055])


@pytest.mark.parametrize("name", ["T2", " T1w", "bold"])
def test_unknown_contrasts_are_refused(name):
    with pytest.raises(InputError, match=r"--contrast .*: expected one of unknown, T1w, T2w, PDw, FLAIR"):
        encode(name)


@pytest.mark.parametrize("field", [0.0, -1.5, 100.0, math.nan, math.inf])
def test_impossible_fields_are_refused(field):
    with pytest.raises(InputError, match=r"--field .*: expected the field strength in tesla, such as 1\.5 or 3"):
        encode(None, field)


@pytest.mark.parametrize(
    ("header", "words", "expected"),
    [
        (None, ("unknown", ""), (0, 0)),
        (Header(field_strength_t=1.5), ("AXT2", "T1w"), (2, 1.5)),
        (Header(), ("unknown", "T1w"), (1, 0)),
        (Header(field_strength_t=6.98), ("AXFLAIR",), (4, 6.98)),
        (Header(field_strength_t=1e6), ("CORPDFS_FBK",), (3, 0)),
        (Header(field_strength_t=-3.0), ("AXT2STAR", ""), (0, 0)),
    ],
)
def test_what_scans_say(header, words, expected):
    assert scan_conditions(header, *words).tolist() == pytest.approx(expected)


def test_features_are_zero_for_what_is_not_known():
    conditions = torch.stack([encode(), encode("T1w"), encode(None, 3.0), encode("FLAIR", 1.5)])
    expected = [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, math.log(2)],
        [0, 0, 0, 1, 1, 0],
    ]
    torch.testing.assert_close(features(conditions, BOTH), torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(features(conditions, ("contrast",)), features(conditions, BOTH)[:, :4])
    assert torch.equal(features(conditions, ("field",)), features(conditions, BOTH)[:, 4:])
    assert [feature_count(names) for names in ((), ("contrast",), ("field",), BOTH)] == [0, 4, 2, 6]
    with pytest.raises(ValueError, match=r"conditions: expected \(batch, 2\), got \(4, 3\)"):
        features(torch.zeros(4, 3), BOTH)


def test_a_tenth_is_forgotten_half_of_it_at_once():
    told = encode("T2w", 3.0).expand(40_000, 2)
    kept = forget(told, torch_generator("forget"))
    gone = kept == 0
    assert torch.equal(kept[~gone], told[~gone])
    assert gone.float().mean(0).tolist() == pytest.approx([0.0975, 0.0975], abs=0.006)
    assert float(gone.all(1).float().mean()) == pytest.approx(0.05 + 0.95 * 0.05**2, abs=0.005)
    assert torch.equal(forget(told, torch_generator("forget")), kept)
    assert torch.equal(forget(told, torch_generator("forget"), share=0.0), told)


def network(conditions: tuple[str, ...] = BOTH, embedding: float = 0.0) -> UNet:
    """The same weights whatever the conditions; the last convolution speaks."""
    net = UNet(channels=(8, 16), conditions=conditions).eval()
    net.initialise(torch_generator("weights"))
    generator = torch_generator("more")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.any():
                module.weight.copy_(0.2 * torch.randn(module.weight.shape, generator=generator))
        if net.condition is not None:
            nn.init.normal_(net.condition.linear.weight, std=embedding, generator=generator)
    return net


def test_a_network_with_conditions_begins_as_the_one_without():
    x, level = torch.randn(2, 3, 9, 8, generator=torch_generator("x")), torch.tensor([0.1, -0.9])
    plain, conditional = network(()), network()
    known = torch.stack([encode("T1w", 1.5), encode("FLAIR", 7.0)])
    assert torch.equal(plain(x, level), conditional(x, level))
    assert torch.equal(plain(x, level), conditional(x, level, known))
    conditional(x, level, known).square().sum().backward()
    gradient = conditional.condition.linear.weight.grad
    assert (gradient.abs().sum(0) > 0).tolist() == [True, False, False, True, True, True]
    with pytest.raises(ValueError, match="built without"):
        plain(x, level, known)


def test_conditions_change_the_output_of_their_item_and_unknown_is_none():
    x, level = torch.randn(3, 3, 9, 8, generator=torch_generator("x")), torch.zeros(3)
    net = network(embedding=1.0)
    base = net(x, level)
    assert torch.equal(base, net(x, level, encode().expand(3, 2)))
    found = net(x, level, torch.stack([encode("T1w"), encode(), encode(None, 3.0)]))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, base, strict=True)]
    assert same == [False, True, False]


class Recorder(nn.Module):
    """Network that keeps the conditions it was given."""

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor | None] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c_noise: Tensor, conditions: Tensor | None = None) -> Tensor:
        self.seen.append(conditions)
        return self.weight * x[:, :2]


def batch(conditions: Tensor | None) -> Batch:
    generator, size = torch_generator("batch"), (2, 2, 6, 5)
    maps = torch.randn(size, dtype=torch.complex64, generator=generator)
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    kspace = sense(maps, mask).forward(torch.randn(2, 6, 5, dtype=torch.complex64, generator=generator))
    return Batch(kspace, maps, mask, mask, torch.zeros(2), conditions)


@pytest.mark.parametrize("known", [None, torch.tensor([[1.0, 3.0], [0.0, 1.5]])], ids=["none", "known"])
def test_every_loss_hands_them_on(known):
    net = Recorder()
    denoiser, found, generator = Denoiser(net, 0.5), batch(known), torch_generator("noise")
    draw, images = draw_noise(found, generator), found.operator.adjoint(found.measured)
    ambient_loss(denoiser, found, draw)
    measurement_loss(denoiser, found, draw_noise(found, generator, measured=True))
    image_loss(denoiser, images, found, draw)
    Generator(denoiser)(draw.noise, found.operator, conditions=known)
    for objective in ("sid", "dmd"):
        generator_loss(objective, images, denoiser, denoiser, found, draw_level(found, generator))
    assert len(net.seen) == 8
    assert all(seen is known for seen in net.seen)


def test_a_batch_carries_them():
    known = torch.tensor([[1.0, 3.0], [0.0, 1.5]])
    assert batch(known)[1:].conditions.tolist() == [[0, 1.5]]
    assert batch(known).to(torch.device("cpu")).conditions is not None
    assert batch(None)[1:].conditions is None
    assert batch(None).to(torch.device("cpu")).conditions is None


def test_a_denoiser_given_conditions_shares_its_weights():
    net, known = Recorder(), torch.ones(2, 2)
    denoiser, found = Denoiser(net, 0.5), batch(None)
    u, level = found.operator.adjoint(found.measured), torch.ones(2)
    view = given(denoiser, known)
    before = view(u, found.operator, level)
    assert torch.equal(before, denoiser(u, found.operator, level))
    assert [seen is known for seen in net.seen] == [True, False]
    assert given(denoiser, None) is denoiser
    assert view.sigma_data is denoiser.sigma_data
    with torch.no_grad():
        net.weight += 1
    assert not torch.allclose(view(u, found.operator, level), before)


def test_the_embedding_is_linear_in_the_features():
    embedding = ConditionEmbedding(BOTH, 7)
    nn.init.normal_(embedding.linear.weight, generator=torch_generator("embedding"))
    parts = embedding(encode("PDw")[None]) + embedding(encode(None, 0.5)[None])
    torch.testing.assert_close(embedding(encode("PDw", 0.5)[None]), parts)
