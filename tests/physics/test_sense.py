import sys

import pytest
import torch
from contract import OperatorContract, randn

from rsdmri.physics import masks, sense
from rsdmri.physics.fourier import fft2c
from rsdmri.physics.sense import Coils, Fourier, Sampling
from rsdmri.runtime import torch_generator


def random_mask(*shape, key=0):
    return torch.rand(shape, generator=torch_generator("mask", key, *shape)) < 0.6


class TestLines(OperatorContract):
    def build(self, size):
        return sense(randn(3, *size, key="maps"), random_mask(size[1]))


class TestPoints(OperatorContract):
    def build(self, size):
        return sense(randn(3, *size, key="maps"), random_mask(*size))


class TestBatchedLines(OperatorContract):
    leading = False

    def build(self, size):
        return sense(randn(2, 3, *size, key="maps"), random_mask(2, 1, size[1]))


class TestBatchedPoints(OperatorContract):
    leading = False

    def build(self, size):
        return sense(randn(2, 3, *size, key="maps"), random_mask(2, *size))


class TestBatchedMapsOneMask(OperatorContract):
    leading = False

    def build(self, size):
        return sense(randn(2, 3, *size, key="maps"), random_mask(1, size[1]))


class TestSharedMapsBatchedMasks(OperatorContract):
    leading = False

    def build(self, size):
        return sense(randn(3, *size, key="maps"), random_mask(2, 1, size[1]))


class TestTwoSetsLines(OperatorContract):
    def build(self, size):
        return sense(randn(2, 3, *size, key="maps"), random_mask(size[1]), sets=True)


class TestTwoSetsPoints(OperatorContract):
    def build(self, size):
        return sense(randn(2, 3, *size, key="maps"), random_mask(*size), sets=True)


class TestBatchedSets(OperatorContract):
    leading = False

    def build(self, size):
        return sense(randn(2, 2, 3, *size, key="maps"), random_mask(2, 1, size[1]), sets=True)


class TestOneCoil(OperatorContract):
    def build(self, size):
        return sense(randn(1, *size, key="maps"), random_mask(size[1]))


class TestManyCoils(OperatorContract):
    def build(self, size):
        return sense(randn(32, *size, key="maps"), random_mask(size[1]))


class TestManyCoilsPoints(OperatorContract):
    def build(self, size):
        return sense(randn(32, *size, key="maps"), random_mask(*size))


class TestPaddedLines(OperatorContract):
    """Lines that the protocol never acquires at either edge."""

    def build(self, size):
        mask = random_mask(size[1])
        mask[0] = mask[-2:] = False
        return sense(randn(3, *size, key="maps"), mask)


class TestAnotherMask(OperatorContract):
    def build(self, size):
        return sense(randn(3, *size, key="maps"), random_mask(*size)).with_mask(random_mask(size[1], key=1))


def sets_of(x):
    return x.view(2, 2, *x.shape[1:])


SIZES = ((6, 8), (7, 9), (8, 5), (5, 6))


def test_package_gives_function_and_module():
    import rsdmri.physics

    assert rsdmri.physics.sense is sense
    assert callable(sense)
    assert masks.FAMILIES


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("points", [False, True])
def test_is_the_product_of_sampling_fourier_and_coils(size, points):
    maps = randn(3, *size)
    mask = random_mask(*size) if points else random_mask(size[1])
    product = Sampling(mask, (3, *size)) @ Fourier((3, *size)) @ Coils(maps)
    operator = sense(maps, mask)
    torch.testing.assert_close(operator.to_dense(), product.to_dense(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.H.to_dense(), product.H.to_dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("points", [False, True])
def test_with_sets_is_the_product_of_sampling_fourier_and_coils(size, points):
    maps = randn(2, 3, *size)
    mask = random_mask(*size) if points else random_mask(size[1])
    product = Sampling(mask, (3, *size)) @ Fourier((3, *size)) @ Coils(maps, sets=True)
    operator = sense(maps, mask, sets=True)
    torch.testing.assert_close(operator.to_dense(), product.to_dense(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.H.to_dense(), product.H.to_dense(), rtol=1e-12, atol=1e-12)


def test_one_set_is_the_operator_without_sets():
    maps, mask, x = randn(3, 7, 8), random_mask(8), randn(7, 8)
    one, plain = sense(maps[None], mask, sets=True), sense(maps, mask)
    assert torch.equal(one.forward(x[None]), plain.forward(x))
    assert torch.equal(one.normal(x[None])[0], plain.normal(x))


@pytest.mark.parametrize("size", [(40, 52), (41, 51)], ids=str)
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("block", [1, 500, 5000, 20_000])
def test_blocks_change_nothing(monkeypatch, size, points, block):
    maps = randn(4, 3, *size)
    mask = random_mask(4, *size) if points else random_mask(4, 1, size[1])
    x = randn(4, *size)
    expected = sense(maps, mask).normal(x)
    shared = sense(maps[0], mask[0]).normal(x)
    module = sys.modules["rsdmri.physics.sense"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "_BLOCK", block)
    torch.testing.assert_close(sense(maps, mask).normal(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sense(maps[0], mask[0]).normal(x), shared, rtol=1e-12, atol=1e-12)
    sets = sense(maps.view(2, 2, 3, *size), mask[:2], sets=True)
    product = torch.stack(
        [sense(m, k, sets=True).normal(i) for m, k, i in zip(sets.maps, mask, sets_of(x), strict=False)]
    )
    torch.testing.assert_close(sets.normal(sets_of(x)), product, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("points", [False, True])
def test_each_item_is_the_same_alone_or_in_a_batch(points):
    maps = randn(3, 4, 20, 24, dtype=torch.complex64)
    mask = random_mask(3, 20, 24) if points else random_mask(3, 1, 24)
    x, y = randn(3, 20, 24, dtype=torch.complex64), randn(3, 4, 20, 24, dtype=torch.complex64)
    batch = sense(maps, mask)
    for i in range(3):
        alone = sense(maps[i], mask[i])
        assert torch.equal(batch.forward(x)[i], alone.forward(x[i]))
        assert torch.equal(batch.adjoint(y)[i], alone.adjoint(y[i]))
        assert torch.equal(batch.normal(x)[i], alone.normal(x[i]))


def test_single_precision_is_as_exact_as_it_can_be():
    maps, x = randn(4, 33, 46), randn(33, 46)
    mask = random_mask(46)
    exact = sense(maps, mask)
    single = sense(maps.to(torch.complex64), mask)
    for name in ("forward", "normal"):
        reference = getattr(exact, name)(x)
        error = (getattr(single, name)(x.to(torch.complex64)) - reference).norm() / reference.norm()
        assert error < 1e-6


@pytest.mark.parametrize("points", [False, True])
def test_adjoint_reads_only_acquired_samples(points):
    maps, mask = randn(3, 7, 8), random_mask(7, 8) if points else random_mask(8)
    operator = sense(maps, mask)
    y = randn(3, 7, 8)
    poisoned = torch.where(mask, y, torch.nan)
    assert torch.equal(operator.adjoint(poisoned), operator.adjoint(y))


def test_forward_is_zero_where_nothing_was_acquired():
    maps, mask = randn(3, 7, 8), random_mask(8)
    y = sense(maps, mask).forward(randn(7, 8))
    assert bool((y[..., ~mask] == 0).all())
    full = sense(maps, torch.ones(8, dtype=torch.bool)).forward(x := randn(7, 8))
    torch.testing.assert_close(full, fft2c(maps * x), rtol=1e-12, atol=1e-12)


def test_normalised_maps_and_full_sampling_give_the_identity():
    maps = randn(4, 6, 9)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    x = randn(6, 9)
    torch.testing.assert_close(sense(maps, torch.ones(9, dtype=torch.bool)).normal(x), x, rtol=1e-12, atol=1e-12)


def test_with_mask_shares_the_prepared_maps_and_leaves_the_first_alone():
    maps, x = randn(2, 3, 6, 8), randn(2, 6, 8)
    first_mask, second_mask = random_mask(2, 1, 8), random_mask(2, 1, 8, key=1)
    first = sense(maps, first_mask)
    before = first.normal(x)
    second = first.with_mask(second_mask)
    assert second._prepared is first._prepared
    assert torch.equal(second.normal(x), sense(maps, second_mask).normal(x))
    assert torch.equal(first.normal(x), before)
    assert torch.equal(second.mask, second_mask)
    points = first.with_mask(random_mask(2, 6, 8))
    torch.testing.assert_close(points.normal(x), points.adjoint(points.forward(x)), rtol=1e-12, atol=1e-12)


def test_changing_the_callers_tensors_later_does_not_change_the_operator():
    maps, mask, x = randn(3, 6, 8), random_mask(8), randn(6, 8)
    operator = sense(maps, mask)
    before = operator.normal(x), operator.forward(x)
    maps.zero_()
    mask.logical_not_()
    assert torch.equal(operator.normal(x), before[0])
    assert torch.equal(operator.forward(x), before[1])


@pytest.mark.parametrize("shape", [(1, 8), (6, 8)], ids=str)
def test_a_drawn_mask_is_taken_as_it_is_and_what_is_absent_is_zero(shape):
    law = masks.SamplingLaw("random", shape, acceleration=2, center_fraction=0.25)
    mask = masks.partial_fourier(law.draw("sense"), 6 / 8)
    operator, x = sense(MAPS, mask), randn(6, 8, dtype=torch.complex64)
    assert torch.equal(operator.forward(x), sense(MAPS, mask.acquired).forward(x))
    assert bool((operator.forward(x)[..., -2:] == 0).all())


def test_maps_get_no_gradient():
    maps = randn(3, 6, 8).requires_grad_()
    assert not sense(maps, random_mask(8)).forward(randn(6, 8)).requires_grad


MAPS = torch.ones(3, 6, 8, dtype=torch.complex64)
MASK = torch.ones(8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("maps", "mask", "message"),
    [
        (MAPS[0], MASK, r"maps: expected \(coil, y, x\)"),
        (MAPS[None, None], MASK, r"maps: expected \(coil, y, x\)"),
        (MAPS.real, MASK, "maps: expected a complex type"),
        (MAPS[:0], MASK, "maps: an axis is empty"),
        (MAPS, MASK.float(), "mask: expected bool, got torch.float32"),
        (MAPS, MASK[:5], "does not fit"),
        (MAPS, MASK[None, None, None], "mask: expected"),
        (MAPS, torch.ones(5, 8, dtype=torch.bool), "does not fit"),
        (MAPS[None].expand(2, 3, 6, 8), torch.ones(3, 1, 8, dtype=torch.bool), "batch of 3, maps: batch of 2; give"),
        (MAPS, torch.ones(6, dtype=torch.bool), r"does not fit maps of 6 x 8 .* give \(8,\) for lines or \(6, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(maps, mask, message):
    with pytest.raises(ValueError, match=message):
        sense(maps, mask)


def test_sets_want_an_axis_of_their_own():
    with pytest.raises(ValueError, match=r"maps: expected \(set, coil, y, x\)"):
        sense(MAPS, MASK, sets=True)
    with pytest.raises(ValueError, match=r"expected shape \[..., 2, 6, 8\]"):
        sense(MAPS[None].expand(2, 3, 6, 8), MASK, sets=True).forward(MAPS[0])


def test_images_of_another_type_are_refused():
    operator = sense(MAPS, MASK)
    for wrong in (torch.ones(6, 8), torch.ones(6, 8, dtype=torch.complex128)):
        with pytest.raises(ValueError, match=r"expected torch\.complex64 like the maps"):
            operator.forward(wrong)
