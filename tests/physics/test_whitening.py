import numpy as np
import pytest
import torch
from contract import OperatorContract, randn
from phantoms import correlated, noise

from rsdmri.physics.noise import whiten, whitening_matrix
from rsdmri.physics.sense import sense
from rsdmri.physics.whitening import Whitening


class TestThreeCoils(OperatorContract):
    def build(self, size):
        return Whitening(randn(3, 3, key="matrix"), (3, *size))


class TestOneCoil(OperatorContract):
    def build(self, size):
        return Whitening(randn(1, 1, key="matrix"), (1, *size))


class TestThirtyTwoCoils(OperatorContract):
    def build(self, size):
        return Whitening(randn(32, 32, key="matrix"), (32, *size))


class TestTrajectory(OperatorContract):
    def build(self, size):
        return Whitening(randn(3, 3, key="matrix"), (3, size[0] * size[1]), coil_axis=-2)


class TestAfterBatchedAcquisition(OperatorContract):
    leading = False

    def build(self, size):
        acquisition = sense(randn(2, 3, *size, key="maps"), randn(size[1], key="mask").real > 0)
        return Whitening(randn(3, 3, key="matrix"), acquisition.range_shape) @ acquisition


@pytest.mark.parametrize("n_coils", [1, 2, 5, 32])
def test_is_the_kronecker_product_of_matrix_and_identity(n_coils):
    matrix = randn(n_coils, n_coils)
    expected = np.kron(matrix.numpy(), np.eye(6))
    np.testing.assert_allclose(Whitening(matrix, (n_coils, 2, 3)).to_dense().numpy(), expected, rtol=0, atol=1e-14)
    swapped = np.kron(np.eye(2), np.kron(matrix.numpy(), np.eye(3)))
    np.testing.assert_allclose(
        Whitening(matrix, (2, n_coils, 3), coil_axis=-2).to_dense().numpy(), swapped, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("n_coils", [1, 8, 32])
def test_whitened_noise_has_unit_covariance(n_coils):
    mixing = correlated(n_coils)
    operator = Whitening(whitening_matrix(mixing @ mixing.mH), (n_coils, 200, 300))
    white = operator.forward(noise(mixing, (200, 300))).flatten(1)
    covariance = white @ white.mH / white.shape[1]
    torch.testing.assert_close(covariance, torch.eye(n_coils, dtype=covariance.dtype), rtol=0, atol=0.02)


def test_is_the_function_that_prepares_slices():
    matrix, kspace = randn(4, 4), randn(2, 4, 6, 5, dtype=torch.complex64, key=1)
    torch.testing.assert_close(Whitening(matrix, (4, 6, 5)).forward(kspace), whiten(kspace, matrix))


def test_positions_are_never_mixed():
    y = randn(3, 4, 5)
    y[:, 1, 2] = torch.nan
    mixed = Whitening(randn(3, 3, key="matrix"), (3, 4, 5)).forward(y)
    assert int(mixed.isnan().any(0).sum()) == 1


def test_a_real_matrix_takes_real_data():
    matrix, y = randn(3, 3).real.clone(), randn(3, 4, 5).real.clone()
    expected = torch.einsum("ij,jyx->iyx", matrix, y)
    torch.testing.assert_close(Whitening(matrix, (3, 4, 5)).forward(y), expected, rtol=1e-12, atol=1e-12)


def test_later_changes_of_the_matrix_do_not_matter():
    matrix, y = randn(3, 3), randn(3, 4, 5)
    operator = Whitening(matrix, (3, 4, 5))
    before = operator.forward(y)
    matrix.zero_()
    assert torch.equal(operator.forward(y), before)


@pytest.mark.parametrize(
    ("matrix", "shape", "axis", "message"),
    [
        (torch.eye(3), (4, 5, 6), -3, r"matrix: expected \(4, 4\), got \[3, 3\]"),
        (torch.ones(3, 4), (3, 5, 6), -3, r"matrix: expected \(3, 3\)"),
        (torch.eye(3), (3, 5), -3, "coil_axis: expected -2 to -1"),
        (torch.eye(3), (3, 5, 6), 0, "coil_axis: expected -3 to -1"),
    ],
)
def test_what_does_not_fit_is_refused(matrix, shape, axis, message):
    with pytest.raises(ValueError, match=message):
        Whitening(matrix, shape, coil_axis=axis)


def test_real_data_are_refused_by_a_complex_matrix():
    with pytest.raises(ValueError, match="expected complex k-space"):
        Whitening(randn(3, 3), (3, 4, 5)).forward(torch.ones(3, 4, 5))
