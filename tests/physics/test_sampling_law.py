"""Sampling laws: lines and points, their density, Poisson discs, partial Fourier."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.masks.poisson import sweep
from rsdmri.runtime import torch_generator

SHAPES = [(40, 30), (33, 48)]


@pytest.mark.parametrize("family", masks.FAMILIES)
def test_laws_of_lines_draw_what_draw_mask_draws(family):
    law = masks.SamplingLaw(family, (1, 67), 3, 0.1)
    mask = law.draw("file.h5", 2)
    drawn = masks.draw_mask(family, 67, acceleration=3, center_fraction=0.1, key=("file.h5", 2))
    assert torch.equal(mask.acquired, drawn[None])
    assert torch.equal(mask.density[0], masks.inclusion(family, 67, acceleration=3, center_fraction=0.1))
    assert bool(mask.acquired[law.acs()].all())
    assert mask.density_exact
    assert str(mask) == masks.describe(drawn, nominal=3)


@pytest.mark.parametrize("family", masks.POINT_FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_density_is_the_frequency_of_each_point(family, shape):
    law = masks.SamplingLaw(family, shape, 6, 0.15, elliptical=True)
    draws, density = 400, law.density()
    frequency = torch.stack([law.draw("frequency", i).acquired for i in range(draws)]).double().mean(0)
    error = (density * (1 - density) / draws).sqrt()
    if law.density_exact:
        assert bool(((frequency - density).abs() <= 5 * error).all())
    else:  # estimated: alike on average, in the middle and at the edge
        assert float((frequency - density).square().mean().sqrt()) < 1.5 * float(error.square().mean().sqrt())
        edge = torch.ones(shape, dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        for part in (edge, ~edge & ~law.acs()):
            assert float(frequency[part].mean()) == pytest.approx(float(density[part].mean()), rel=0.03)
    assert bool((frequency[law.acs()] == 1).all())
    assert bool((density > 0).all())


@pytest.mark.parametrize("family", ["random", "variable-density", "gaussian"])
@pytest.mark.parametrize("shape", [(1, 320), (1, 57), *SHAPES])
@pytest.mark.parametrize("acceleration", [1.5, 4, 6])
def test_the_acceleration_is_the_expected_one(family, shape, acceleration):
    density = masks.SamplingLaw(family, shape, acceleration, 0.08).density()
    assert density.numel() / float(density.sum()) == pytest.approx(acceleration, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 65), (65, 65)])
def test_densities_fall_as_asked(shape):
    r = (torch.arange(65) - 32).abs() / 32.5
    expected = {
        "variable-density": 0.2 + 0.8 * (1 - r) ** 3,
        "gaussian": 0.2 + 0.8 * torch.exp(-(r**2) / (2 * 0.3**2)),
    }
    falloff = masks.Falloff(power=3, spread=0.3, floor=0.2)
    for family, wanted in expected.items():
        row = masks.SamplingLaw(family, shape, 8, 0.02, falloff).density()[shape[0] // 2]
        outer = row < 1
        ratio = row[outer] / wanted[outer]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-6, atol=0)


def test_densities_that_cannot_be():
    with pytest.raises(InputError, match=r"floor above 0"):
        masks.SamplingLaw("variable-density", (33, 33), 1.1, 0.1, masks.Falloff(floor=0)).density()
    for wrong in ({"power": -1}, {"power": float("nan")}, {"spread": 0}, {"floor": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            masks.Falloff(**wrong)


@pytest.mark.parametrize(
    ("acceleration", "steps", "shift"), [(4, (2, 2), 1), (6, (2, 3), 1), (6, (3, 2), None), (5, None, 2)]
)
def test_caipi_is_a_shifted_lattice(acceleration, steps, shift):  # fmt: skip
    law = masks.SamplingLaw("caipi", (30, 36), acceleration, 0, steps=steps, shift=shift)
    points = law.draw("caipi").acquired
    assert int(points.sum()) == 30 * 36 / acceleration
    rows = points.any(1).nonzero().flatten()
    step_y, step_x = steps or (1, 5)
    assert set(rows.diff().tolist()) == {step_y}
    first = [int(points[row].nonzero()[0]) for row in rows]
    assert all(set(points[row].nonzero().flatten().diff().tolist()) == {step_x} for row in rows)
    moves = {(b - a) % step_x for a, b in pairwise(first)}
    assert moves == {step_x // 2 if shift is None else shift}
    drawn = [law.draw(i).acquired for i in range(60)]
    assert bool(torch.stack(drawn).any(0).all())


def test_every_offset_of_a_lattice_is_as_likely():
    law = masks.SamplingLaw("caipi", (8, 8), 4, 0.25)
    assert set(law.density().unique().tolist()) == {0.25, 1.0}
    assert int((law.density() == 1).sum()) == 4


@pytest.mark.parametrize(
    ("shape", "acceleration"), [((64, 64), 1.3), ((64, 64), 4), ((57, 80), 8), ((120, 120), 15), ((24, 17), 5)]
)
def test_poisson_discs_reach_the_acceleration(shape, acceleration):  # fmt: skip
    law = masks.SamplingLaw("poisson", shape, acceleration, 0.08)
    for index in range(12):
        mask = law.draw("poisson", index)
        count, wanted = int(mask.acquired.sum()), shape[0] * shape[1] / acceleration
        assert abs(count - wanted) <= max(0.0201 * wanted, 0.5)
        assert bool(mask.acquired[law.acs()].all())
    assert torch.equal(mask.acquired, law.draw("poisson", index).acquired)
    assert not torch.equal(mask.acquired, law.draw("poisson", 0).acquired)
    assert not mask.density_exact


def test_poisson_discs_keep_their_distance_and_leave_no_hole():
    spacing = np.fromfunction(lambda y, x: 1.5 + np.hypot(y - 20, x - 16) / 8, (41, 33))
    acs = np.zeros((41, 33), dtype=bool)
    acs[18:23, 14:19] = True
    order = np.random.RandomState(3).permutation(41 * 33)
    points = sweep(order, spacing, acs)
    assert not (points & acs).any()
    y, x = points.nonzero()
    distance = np.hypot(y[:, None] - y, x[:, None] - x) + 1e9 * np.eye(len(y))
    assert (distance >= np.minimum(spacing[y, x], spacing[y, x][:, None])).all()
    free_y, free_x = (~points & ~acs).nonzero()
    assert (np.hypot(free_y[:, None] - y, free_x[:, None] - x) < spacing[y, x]).any(1).all()


def test_uniform_poisson_discs_say_what_can_be_reached():
    with pytest.raises(
        InputError, match=r"acceleration 3: Poisson discs on 48 x 48 points reach 2\.\d+ and [45]\.\d+.*fall"
    ):
        masks.SamplingLaw("poisson", (48, 48), 3, 0.05, masks.Falloff(power=0)).draw(0)  # fmt: skip


def test_elliptical_acs():
    law = masks.SamplingLaw("random", (40, 60), 4, 0.25, elliptical=True)
    acs, rectangle = law.acs(), masks.SamplingLaw("random", (40, 60), 4, 0.25).acs()
    assert not bool((acs & ~rectangle).any())
    assert acs.any(1).sum() == rectangle.any(1).sum() == 10
    assert acs.any(0).sum() == rectangle.any(0).sum() == 15
    assert float(acs.sum()) == pytest.approx(np.pi / 4 * 150, rel=0.07)


def test_laws_refuse():
    for arguments, message in [
        (("poisson", (1, 64), 4), "expected one of random, "),
        (("magic", (64, 64), 4), "expected one of .* for points"),
        (("random", (0, 64), 4), r"expected \(1, x\)"),
        (("random", (32, 32), 0.5), "expected 1"),
        (("random", (32, 32), 8, 0.5), "fewer than the 256 of the ACS"),
        (("random", (1, 32), 8, 0.5), "fewer than the 16 ACS lines"),
        (("equispaced", (1, 32), 2.5), "whole number"),
        (("caipi", (32, 32), 2.5), "whole number"),
    ]:
        with pytest.raises(InputError, match=message):
            masks.SamplingLaw(*arguments)
    with pytest.raises(InputError, match="product must be the acceleration, 6"):
        masks.SamplingLaw("caipi", (32, 32), 6, steps=(2, 2))


@pytest.mark.parametrize("family", ["random", "gaussian", "equispaced"])
@pytest.mark.parametrize("first", [False, True])
def test_partial_fourier_leaves_a_side_absent(family, first):
    mask = masks.SamplingLaw(family, (1, 64), 3, 0.1).draw("partial")
    part = masks.partial_fourier(mask, 6 / 8, first=first)
    gone = slice(0, 16) if first else slice(48, 64)
    there = slice(16, 64) if first else slice(0, 48)
    assert bool(part.absent[:, gone].all())
    assert not bool(part.absent[:, there].any())
    assert torch.equal(part.acquired[:, there], mask.acquired[:, there])
    assert torch.equal(part.density[:, there], mask.density[:, there])
    assert float(part.density[:, gone].sum()) == 0
    states = part.acquired.int() + part.skipped.int() + part.absent.int()
    assert bool((states == 1).all())
    assert f"of 48 lines, acceleration {48 / int(part.acquired.sum()):.2f} (nominal 3), ACS" in str(part)


def test_padding_and_partial_fourier_add_up():
    mask = masks.SamplingLaw("poisson", (24, 40), 4, 0.2).draw(0)
    both = masks.partial_fourier(masks.with_padding(mask, 3, 38), 0.75)
    assert both.absent.all(0).nonzero().flatten().tolist() == [0, 1, 2, *range(30, 40)]
    assert masks.with_padding(mask, 0, 40).acquired.equal(mask.acquired)


def test_what_would_lose_the_acs_is_refused():
    mask = masks.SamplingLaw("random", (1, 64), 3, 0.2).draw(0)
    with pytest.raises(InputError, match=r"partial Fourier 0.5: leaves out 7 of the 13 ACS columns \(26 to 38 of 64\)"):
        masks.partial_fourier(mask, 0.5)
    with pytest.raises(InputError, match="phase encodes 30 to 63: leaves out 4"):
        masks.with_padding(mask, 30, 64)
    for fraction in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="expected a share"):
            masks.partial_fourier(mask, fraction)
    for padding in ((-1, 64), (5, 5), (0, 65)):
        with pytest.raises(InputError, match="padding: expected 0 <= left"):
            masks.with_padding(mask, *padding)


def test_masks_are_checked():
    law = masks.SamplingLaw("random", (1, 8), 2, 0.25)
    yes, no = torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="absent: some"):
        masks.Mask(yes, yes, law)
    with pytest.raises(ValueError, match=r"acquired: expected bool \[1, 8\]"):
        masks.Mask(yes[0], no, law)
    with pytest.raises(ValueError, match="absent: expected bool"):
        masks.Mask(yes, no.float(), law)


@pytest.mark.parametrize("shape", [(1, 64), (32, 40)])
@pytest.mark.parametrize("acceleration", [1, 1.5, 4])
def test_further_masks_keep_what_is_sure(shape, acceleration):
    law = masks.SamplingLaw("variable-density", shape, acceleration, 0.1, elliptical=True)
    mask = law.draw("further")
    further = mask.further(5, generator=torch_generator("further"))
    sure = law.density() == 1
    assert torch.equal(law.kept(), law.acs() if acceleration == 1 else sure)
    assert int(mask.acquired.sum() - further.sum()) == 5
    assert not bool((further & ~mask.acquired).any())
    assert bool(further[law.kept()].all())
    assert torch.equal(further, mask.further(5, generator=torch_generator("further")))


def test_further_masks_are_refused_where_they_teach_nothing():
    generator = torch_generator(0)
    for family in ("poisson", "caipi"):
        with pytest.raises(InputError, match=r"can (then )?never be acquired"):
            masks.SamplingLaw(family, (24, 24), 4, 0.2).draw(0).further(5, generator=generator)
    law = masks.SamplingLaw("random", (1, 16), 3, 0.25)
    bare = masks.Mask(law.acs(), torch.zeros(1, 16, dtype=torch.bool), law)
    with pytest.raises(InputError, match="nothing was acquired outside the centre"):
        bare.further(2, generator=generator)
