import pytest
import torch
from contract import OperatorContract, randn

from rsdmri.physics.linop import Composition, Identity
from rsdmri.physics.sense import Coils, Fourier, Sampling


class TestIdentity(OperatorContract):
    def build(self, size):
        return Identity(size)


class TestFourier(OperatorContract):
    def build(self, size):
        return Fourier((3, *size))


class TestSampling(OperatorContract):
    def build(self, size):
        return Sampling(randn(*size, key="mask").real > 0, (3, *size))


class TestCoils(OperatorContract):
    def build(self, size):
        return Coils(randn(3, *size, key="maps"))


class TestBatchedCoils(OperatorContract):
    leading = False

    def build(self, size):
        return Coils(randn(2, 3, *size, key="maps"))


class TestComposition(OperatorContract):
    def build(self, size):
        return Fourier((3, *size)) @ Coils(randn(3, *size, key="maps"))


class TestAdjoint(OperatorContract):
    def build(self, size):
        return (Fourier((3, *size)) @ Coils(randn(3, *size, key="maps"))).H


def test_matmul_composes_operators_and_applies_to_tensors():
    fourier, coils = Fourier((3, 5, 6)), Coils(randn(3, 5, 6))
    x = randn(5, 6)
    product = fourier @ coils
    assert isinstance(product, Composition)
    assert torch.equal(product @ x, fourier.forward(coils.forward(x)))
    with pytest.raises(TypeError):
        product @ 3


def test_operators_that_do_not_fit_are_not_composed():
    with pytest.raises(ValueError, match="cannot compose"):
        Fourier((3, 5, 6)) @ Coils(randn(4, 5, 6))


def test_sampling_reads_only_what_the_mask_keeps():
    mask = torch.tensor([True, False, True, False])
    y = torch.ones(2, 4, dtype=torch.complex64)
    y[:, 1] = torch.nan
    kept = Sampling(mask, (2, 4)).forward(y)
    assert torch.equal(kept, mask.expand(2, 4).to(torch.complex64))
    assert not torch.signbit(torch.view_as_real(kept)).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sampling(torch.ones(4), (2, 4)), "bool"),
        (lambda: Sampling(torch.ones(5, dtype=torch.bool), (2, 4)), "broadcast"),
        (lambda: Fourier((4,)), "two axes"),
        (lambda: Coils(torch.ones(3, 4, 5)), "complex"),
        (lambda: Coils(randn(4, 5)), "complex"),
    ],
)
def test_operators_refuse_what_they_cannot_be_built_from(build, message):
    with pytest.raises(ValueError, match=message):
        build()
