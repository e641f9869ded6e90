import pytest
import torch
from contract import OperatorContract, randn

from rsdmri.errors import InputError
from rsdmri.physics import sense
from rsdmri.physics.adapters import from_deepinv, from_mrpro, to_deepinv, to_mrpro
from rsdmri.physics.corruptions import Blur, Downsampling, Inpainting
from rsdmri.physics.fourier import fft2c, to_channels
from rsdmri.physics.linop import Identity, LinearOperator
from rsdmri.physics.noncartesian import noncartesian_sense
from rsdmri.physics.whitening import Whitening
from rsdmri.runtime import torch_generator

SIZES = ((6, 8), (7, 9), (8, 5))
HAS_NUFFT = "FINUFFT is not installed; it comes with the extra noncartesian"


@pytest.fixture(scope="module")
def deepinv():
    return pytest.importorskip("deepinv", reason="deepinv is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def mrpro():
    return pytest.importorskip("mrpro", reason="mrpro is not installed", exc_type=ImportError)


def random_mask(*shape):
    return torch.rand(shape, generator=torch_generator("mask", *shape)) < 0.6


def acquisitions(size, dtype=torch.complex128):
    maps = randn(3, *size, key="maps", dtype=dtype)
    yield sense(maps, random_mask(size[1]))
    yield sense(maps, random_mask(*size))
    yield sense(randn(2, 3, *size, key="maps", dtype=dtype), random_mask(2, 1, size[1]))


def trajectory_operator(size):
    pytest.importorskip("finufft", reason=HAS_NUFFT)
    points = torch.rand(30, 2, dtype=torch.float64, generator=torch_generator("points")) - 0.5
    return noncartesian_sense(randn(3, *size, key="maps"), points)


def channels(x):
    """Complex [batch, ...] to real [batch, 2, ...], by hand."""
    return torch.stack((x.real, x.imag), dim=1)


def check_deepinv(operator, batch=2):
    """Both directions on one operator without a batch of its own, or with ``batch`` items."""
    domain = operator.domain_shape if len(operator.domain_shape) == 3 else (batch, *operator.domain_shape)
    x = randn(*domain)
    y = randn(*operator.forward(x).shape, key=1)
    physics = to_deepinv(operator)
    torch.testing.assert_close(physics.A(channels(x)), channels(operator.forward(x)))
    torch.testing.assert_close(physics(channels(x)), channels(operator.forward(x)))
    torch.testing.assert_close(physics.A_adjoint(channels(y)), channels(operator.adjoint(y)))
    torch.testing.assert_close(physics.A_adjoint_A(channels(x)), channels(operator.normal(x)))
    if len(operator.domain_shape) == 2:  # deepinv's test takes batches of one
        assert float(physics.adjointness_test(channels(x))) < 1e-10
    leaf = channels(x).requires_grad_()
    (gradient,) = torch.autograd.grad(physics.A(leaf), leaf, channels(y))
    torch.testing.assert_close(gradient, channels(operator.adjoint(y)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_to_deepinv(deepinv, size):
    for operator in acquisitions(size):
        check_deepinv(operator)
    check_deepinv(Blur(1.0, size))


def test_to_deepinv_along_a_trajectory(deepinv):
    check_deepinv(trajectory_operator((7, 8)))


def test_to_deepinv_with_real_images(deepinv):
    for operator in (Blur(1.0, (3, 6, 9)), Downsampling(3, (3, 6, 9))):
        physics = to_deepinv(operator, complex_images=False)
        x = randn(4, 3, 6, 9).real.clone()
        torch.testing.assert_close(physics.A(x), operator.forward(x))
        torch.testing.assert_close(physics.A_adjoint_A(x), operator.normal(x))
        assert float(physics.adjointness_test(x)) < 1e-10


def test_deepinv_solves_with_an_adapted_operator(deepinv):
    maps = randn(4, 8, 9, key="maps")
    operator = sense(maps / torch.linalg.vector_norm(maps, dim=0), torch.ones(9, dtype=torch.bool))
    x = channels(randn(2, 8, 9))
    physics = to_deepinv(operator)
    torch.testing.assert_close(physics.A_dagger(physics.A(x)), x, rtol=1e-4, atol=1e-4)
    assert float(physics.compute_sqnorm(x, verbose=False)) == pytest.approx(1, rel=1e-3)


def deepinv_acquisition(size, dtype=torch.float64):
    from deepinv.physics import MultiCoilMRI

    maps, mask = randn(1, 3, *size, key="maps"), random_mask(*size)
    physics = MultiCoilMRI(mask=mask.to(dtype), coil_maps=maps, img_size=(1, *size))
    return physics, sense(maps[0], mask)


class TestFromDeepinv(OperatorContract):
    @pytest.fixture(autouse=True)
    def _needs(self, deepinv):
        pass

    def build(self, size):
        return from_deepinv(deepinv_acquisition(size)[0], size, dtype=torch.complex128)


class TestThroughDeepinvAndBack(OperatorContract):
    @pytest.fixture(autouse=True)
    def _needs(self, deepinv):
        pass

    def build(self, size):
        operator = sense(randn(3, *size, key="maps"), random_mask(size[1]))
        return from_deepinv(to_deepinv(operator), size, dtype=torch.complex128)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_deepinvs_multicoil_acquisition_is_ours(deepinv, size):
    physics, ours = deepinv_acquisition(size)
    theirs = from_deepinv(physics, size, dtype=torch.complex128)
    assert (theirs.domain_shape, theirs.range_shape) == (ours.domain_shape, ours.range_shape)
    torch.testing.assert_close(theirs.to_dense(), ours.to_dense(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theirs.H.to_dense(), ours.H.to_dense(), rtol=1e-6, atol=1e-6)


def test_from_deepinv_with_real_images(deepinv):
    from deepinv.physics import Denoising
    from deepinv.physics import Inpainting as Pixels

    mask = random_mask(6, 7)
    physics = Pixels(img_size=(3, 6, 7), mask=mask.float()[None])
    theirs, ours = from_deepinv(physics, (3, 6, 7), dtype=torch.float32), Inpainting(mask, (3, 6, 7))
    x = randn(2, 4, 3, 6, 7).real.float()
    torch.testing.assert_close(theirs.forward(x), ours.forward(x))
    torch.testing.assert_close(theirs.normal(x[0, 0]), ours.normal(x[0, 0]))
    same = from_deepinv(Denoising(), (3, 6, 7), dtype=torch.float32)
    result = same.forward(x)
    result.zero_()
    assert bool(x.any())


class Physics:
    """A stand-in for a LinearPhysics."""

    def __init__(self, forward, adjoint):
        self.A, self.A_adjoint = forward, adjoint

    def A_adjoint_A(self, x):
        return self.A_adjoint(self.A(x))


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        (Physics(lambda x: x * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), lambda y: y), "linear on torch.complex64"),
        (Physics(lambda x: x + 1, lambda y: y), "linear on torch.complex64"),
        (Physics(lambda x: 2 * x, lambda y: y), "expected an adjoint with"),
        (Physics(lambda x: x, lambda y: y[:, :, :3]), r"expected an adjoint that gives shape \[6, 8\], got \[3, 8\]"),
    ],
)
def test_what_is_no_complex_linear_map_with_its_adjoint_is_refused(physics, message):
    with pytest.raises(InputError, match=message):
        from_deepinv(physics, (6, 8))


def test_a_physics_without_two_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected real \[batch, 2, \.\.\.\]"):
        from_deepinv(Physics(lambda x: x[:, :1], lambda y: y), (6, 8))


def check_mrpro(operator, other, slices, coils=True):
    """The adapter against the operator on every item and slice, and <A x, y> = <x, A^H y>."""
    wrapped = to_mrpro(operator, coils=coils)
    size = operator.domain_shape[-2:]
    x = randn(*other, 1, slices, *size)
    (y,) = wrapped(x)
    for item in range(other[0]):
        for z in range(slices):
            batched = len(operator.domain_shape) == 3
            expected = operator.forward(x[:, 0, z])[item] if batched else operator.forward(x[item, 0, z])
            expected = expected if coils else expected[None]
            torch.testing.assert_close(y[item, :, z].reshape(expected.shape), expected)
    assert y.ndim == x.ndim
    v = randn(*y.shape, key=1)
    (back,) = wrapped.adjoint(v)
    assert back.shape == x.shape
    left, right = torch.vdot(v.flatten(), y.flatten()), torch.vdot(back.flatten(), x.flatten())
    assert abs(left - right) < 1e-10 * x.norm() * v.norm()
    torch.testing.assert_close(wrapped.gram(x)[0], wrapped.adjoint(y)[0])
    torch.testing.assert_close((wrapped.H @ wrapped)(x)[0], wrapped.gram(x)[0])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_to_mrpro(mrpro, size):
    for operator in acquisitions(size):
        batched = len(operator.domain_shape) == 3
        check_mrpro(operator, (2,), 1 if batched else 3)
    check_mrpro(Blur(1.0, size), (2,), 3, coils=False)
    check_mrpro(Identity(size), (1,), 1, coils=False)


def test_to_mrpro_along_a_trajectory(mrpro):
    operator = trajectory_operator((7, 8))
    check_mrpro(operator, (2,), 2)
    assert to_mrpro(operator)(randn(2, 1, 3, 7, 8))[0].shape == (2, 3, 3, 1, 30)


def test_to_mrpro_refuses_other_shapes(mrpro):
    for operator in (Identity((2, 3, 4, 5)), Identity((4,)), Whitening(torch.eye(3), (2, 3, 4, 5))):
        with pytest.raises(ValueError, match=r"expected an operator from \[\(batch,\) y, x\]"):
            to_mrpro(operator)


def mrpro_acquisition(size):
    from mrpro.operators import FastFourierOp, SensitivityOp

    maps = randn(3, *size, key="maps")
    return FastFourierOp(dim=(-2, -1)) @ SensitivityOp(maps[None, :, None]), maps


class TestFromMrpro(OperatorContract):
    @pytest.fixture(autouse=True)
    def _needs(self, mrpro):
        pass

    def build(self, size):
        return from_mrpro(mrpro_acquisition(size)[0], size, dtype=torch.complex128)


class TestThroughMrproAndBack(OperatorContract):
    @pytest.fixture(autouse=True)
    def _needs(self, mrpro):
        pass

    def build(self, size):
        operator = sense(randn(3, *size, key="maps"), random_mask(size[1]))
        return from_mrpro(to_mrpro(operator), size, dtype=torch.complex128)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mrpros_acquisition_is_ours(mrpro, size):
    operator, maps = mrpro_acquisition(size)
    theirs, x = from_mrpro(operator, size, dtype=torch.complex128), randn(2, *size)
    torch.testing.assert_close(theirs.forward(x), fft2c(maps * x[:, None]))
    images = from_mrpro(to_mrpro(Blur(1.0, size), coils=False), size, coils=False, dtype=torch.complex128)
    torch.testing.assert_close(images.forward(x), Blur(1.0, size).forward(x))


def test_from_mrpro_refuses_partitions_and_coils(mrpro):
    with pytest.raises(ValueError, match=r"expected measurements \(1, 1, 1, k1, k0\), got \[1, 3, 1, 6, 8\]"):
        from_mrpro(mrpro_acquisition((6, 8))[0], (6, 8), coils=False, dtype=torch.complex128)


def test_adapted_operators_are_operators(deepinv):
    operator = from_deepinv(to_deepinv(Blur(1.0, (6, 8))), (6, 8))
    assert isinstance(operator, LinearOperator)
    assert to_channels(operator.forward(randn(6, 8, dtype=torch.complex64))).shape == (2, 6, 8)
