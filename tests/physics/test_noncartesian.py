import math

import numpy as np
import pytest
import torch
from contract import OperatorContract, randn
from phantoms import phantom

from rsdmri.errors import InputError
from rsdmri.physics import sense
from rsdmri.physics.noncartesian import density_compensation, noncartesian_sense, radial, spiral
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.runtime import select_device, torch_generator

pytest.importorskip("finufft", reason="FINUFFT is not installed; it comes with the extra noncartesian")


def scattered(n_samples, rank=2, key=0):
    """Random points in [-1/2, 1/2)."""
    generator = torch_generator("trajectory", n_samples, key)
    return torch.rand(n_samples, rank, dtype=torch.float64, generator=generator) - 0.5


def cartesian(size):
    """All points of the centred grid, in the order of k-space."""
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def dense_matrix(maps, trajectory, density):
    """The matrix of A by its definition, rows (coil, sample)."""
    axes = [np.arange(n) - n // 2 for n in maps.shape[1:]]
    pixels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    fourier = np.exp(-2j * np.pi * trajectory.numpy() @ pixels.T) / np.sqrt(len(pixels))
    fourier *= np.sqrt(density.numpy())[:, None]
    return np.concatenate([fourier * one.numpy().reshape(1, -1) for one in maps])


class TestScattered(OperatorContract):
    def build(self, size):
        return noncartesian_sense(randn(3, *size, key="maps"), scattered(40))


class TestWeighted(OperatorContract):
    def build(self, size):
        density = torch.rand(40, dtype=torch.float64, generator=torch_generator("density"))
        return noncartesian_sense(randn(3, *size, key="maps"), scattered(40), density)


class TestBatchedMaps(OperatorContract):
    leading = False

    def build(self, size):
        return noncartesian_sense(randn(2, 3, *size, key="maps"), scattered(40))


class TestVolume(OperatorContract):
    def build(self, size):
        return noncartesian_sense(randn(2, 3, *size, key="maps"), scattered(30, rank=3))


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (8, 5), (5, 6), (4, 5, 6), (3, 4, 5)], ids=str)
def test_is_the_dense_matrix_of_the_non_uniform_transform(size):
    maps, trajectory = randn(3, *size), scattered(50, rank=len(size))
    density = torch.rand(50, dtype=torch.float64, generator=torch_generator("density"))
    operator, dense = noncartesian_sense(maps, trajectory, density), dense_matrix(maps, trajectory, density)
    x, y = randn(*size), randn(3, 50)
    close = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(operator.forward(x).flatten().numpy(), dense @ x.flatten().numpy(), **close)
    np.testing.assert_allclose(operator.adjoint(y).flatten().numpy(), dense.conj().T @ y.flatten().numpy(), **close)
    normal = dense.conj().T @ dense @ x.flatten().numpy()
    np.testing.assert_allclose(operator.normal(x).flatten().numpy(), normal, **close)


@pytest.mark.parametrize("size", [(32, 32), (31, 35), (33, 30)], ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(torch.complex64, 1e-5), (torch.complex128, 1e-11)])
def test_on_cartesian_points_it_is_the_cartesian_operator(size, dtype, error):
    maps, x, y = randn(4, *size, dtype=dtype), randn(*size, dtype=dtype), randn(4, *size, dtype=dtype, key=1)
    reference = sense(maps, torch.ones(size[1], dtype=torch.bool))
    operator = noncartesian_sense(maps, cartesian(size))
    for got, expected in (
        (operator.forward(x).view(y.shape), reference.forward(x)),
        (operator.adjoint(y.flatten(1)), reference.adjoint(y)),
        (operator.normal(x), reference.normal(x)),
    ):
        assert float((got - expected).norm() / expected.norm()) < error


def test_columns_of_the_trajectory_are_the_axes_of_the_image():
    wave = torch.polar(torch.ones(8, 8), 2 * math.pi * (torch.arange(8.0) - 4)[:, None].expand(8, 8) / 4)
    operator = noncartesian_sense(torch.ones(1, 8, 8, dtype=torch.complex64), torch.tensor([[0.25, 0.0], [0.0, 0.25]]))
    torch.testing.assert_close(operator.forward(wave).abs(), torch.tensor([[8.0, 0.0]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (47, 53)], ids=str)
def test_toeplitz_normal_in_single_precision(size):
    trajectory = radial(40, 96)
    operator = noncartesian_sense(randn(4, *size, dtype=torch.complex64), trajectory)
    x = randn(2, *size, dtype=torch.complex64)
    expected = operator.adjoint(operator.forward(x))
    assert float((operator.normal(x) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("block", [1, 3000])
def test_blocks_of_coils_change_nothing(monkeypatch, block):
    operator, x = noncartesian_sense(randn(5, 12, 13), scattered(60)), randn(12, 13)
    expected = operator.normal(x)
    monkeypatch.setattr("rsdmri.physics.noncartesian._BLOCK", block)
    torch.testing.assert_close(operator.normal(x), expected, rtol=1e-12, atol=1e-12)


def test_later_changes_of_the_arguments_do_not_matter():
    maps, trajectory, density = randn(3, 6, 7), scattered(20), torch.ones(20, dtype=torch.float64)
    operator, x = noncartesian_sense(maps, trajectory, density), randn(6, 7)
    before = operator.forward(x)
    for tensor in (maps, trajectory, density):
        tensor.zero_()
    assert torch.equal(operator.forward(x), before)
    torch.testing.assert_close(operator.normal(x), operator.adjoint(before), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("golden", [True, False])
def test_radial_spokes(golden):
    trajectory = radial(7, 10, golden=golden).view(7, 10, 2)
    assert bool((trajectory[:, 5] == 0).all())
    radius = trajectory.norm(dim=-1)
    torch.testing.assert_close(radius[3], (torch.arange(10, dtype=torch.float64) - 5).abs() / 10)
    torch.testing.assert_close(trajectory[0, :, 0], torch.zeros(10, dtype=torch.float64))
    ky, kx = trajectory[1, 9]
    assert math.degrees(math.atan2(ky, kx)) == pytest.approx(111.246 if golden else 180 / 7, abs=1e-3)


def test_spirals_start_in_the_centre_and_spread_evenly():
    trajectory = spiral(4, 1000, turns=8).view(4, 1000, 2)
    assert bool((trajectory[:, 0] == 0).all())
    radius = trajectory.norm(dim=-1)
    assert float(radius.max()) <= 0.5
    assert float((radius < 0.25).double().mean()) == pytest.approx(0.25, abs=0.002)
    turned = trajectory[0] @ torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(trajectory[1], turned, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(16, 16), (15, 18)], ids=str)
def test_density_of_a_grid_is_one(size):
    density = density_compensation(cartesian(size), size)
    torch.testing.assert_close(density, torch.ones(size[0] * size[1], dtype=torch.float64), rtol=0, atol=1e-10)
    doubled = density_compensation(cartesian(size).repeat(2, 1), size)
    torch.testing.assert_close(doubled, torch.full_like(doubled, 0.5), rtol=0, atol=1e-10)


def test_density_of_radial_spokes_is_the_ramp():
    n, n_spokes = 32, 64
    density = density_compensation(radial(n_spokes, 2 * n, golden=False), (n, n), iterations=60)
    radius = (torch.arange(2 * n, dtype=torch.float64) - n).abs() / (2 * n)
    # area of the ring between neighbouring samples over the samples in it, times the pixels
    ramp = n * n * math.pi * radius / (2 * n) / n_spokes
    inner = (radius > 0.1) & (radius < 0.4)
    ratio = density.view(n_spokes, 2 * n)[:, inner] / ramp[inner]
    assert float((ratio - 1).abs().mean()) < 0.05


def test_density_compensation_minimises_its_distance_to_the_identity():
    size, trajectory = (7, 8), scattered(90)
    identity = np.eye(56)

    def distance(density):
        dense = dense_matrix(torch.ones(1, *size, dtype=torch.complex128), trajectory, density)
        return float(np.linalg.norm(dense.conj().T @ dense - identity))

    found = density_compensation(trajectory, size, iterations=300)
    assert bool((found >= 0).all())
    least = distance(found)
    assert least < distance(torch.full((90,), 56 / 90, dtype=torch.float64))
    for key in range(20):
        factor = torch.rand(90, dtype=torch.float64, generator=torch_generator("perturbed", key))
        assert distance(found * (0.8 + 0.4 * factor)) > least


@pytest.mark.parametrize("name", ["radial", "spiral"])
def test_an_image_comes_back_from_enough_samples(name):
    head = phantom(4, (48, 48))
    trajectory = radial(90, 96) if name == "radial" else spiral(12, 600, turns=3)
    density = density_compensation(trajectory, (48, 48))
    operator = noncartesian_sense(head.maps, trajectory, density)
    y = operator.weighted(noncartesian_sense(head.maps, trajectory).forward(head.image))
    torch.testing.assert_close(y, operator.forward(head.image))

    def error(image):
        return float((image - head.image).norm() / head.image.norm())

    gridded = operator.adjoint(y)
    solved = conjugate_gradient(operator.normal, gridded, iterations=15)
    # what is left is the content of the corners of k-space, which the disc does not reach
    assert error(gridded) < 0.11
    assert error(solved) < 0.08
    plain = noncartesian_sense(head.maps, trajectory)
    slower = conjugate_gradient(plain.normal, plain.adjoint(plain.forward(head.image)), iterations=2)
    assert error(conjugate_gradient(operator.normal, gridded, iterations=2)) < min(error(slower), error(gridded))


def test_images_and_types_are_held_to_the_maps():
    operator = noncartesian_sense(randn(3, 6, 7, dtype=torch.complex64), scattered(20))
    with pytest.raises(ValueError, match=r"expected torch\.complex64 like the maps"):
        operator.forward(randn(6, 7))


MAPS = torch.ones(3, 6, 8, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("maps", "trajectory", "density", "message"),
    [
        (MAPS[0], scattered(9), None, r"maps: expected complex \(coil, y, x\)"),
        (MAPS.real, scattered(9), None, "maps: expected complex"),
        (MAPS[:0], scattered(9), None, "maps: expected complex"),
        (MAPS, scattered(9, rank=3), None, "maps: expected complex .* for 3 columns"),
        (MAPS, scattered(9)[:, :1], None, r"trajectory: expected \(sample, 2\)"),
        (MAPS, scattered(9)[:0], None, r"trajectory: expected \(sample, 2\)"),
        (MAPS, torch.zeros(9, 2, dtype=torch.int64), None, "trajectory: expected a real floating-point type"),
        (MAPS, 2 * math.pi * scattered(9), None, "within .* divide radians per pixel by 2 pi"),
        (MAPS, scattered(9) * torch.nan, None, "trajectory: expected cycles per pixel"),
        (MAPS, scattered(9), torch.ones(8), r"density: expected real \(9,\)"),
        (MAPS, scattered(9), -torch.ones(9), "density: expected weights of 0 or more"),
        (MAPS, scattered(9), torch.ones(9) / 0, "density: expected weights of 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(maps, trajectory, density, message):
    with pytest.raises(ValueError, match=message):
        noncartesian_sense(maps, trajectory, density)


def test_empty_trajectories_and_images_of_another_rank_are_refused():
    with pytest.raises(InputError, match="n_spokes: expected a positive number, got 0"):
        radial(0, 10)
    with pytest.raises(InputError, match="turns: expected a positive number"):
        spiral(1, 10, turns=0)
    with pytest.raises(ValueError, match="image: expected 2 sizes"):
        density_compensation(scattered(9), (4, 5, 6))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("library", ["cufinufft", "host"])
def test_cuda_agrees_with_the_cpu(library, monkeypatch):
    if library == "cufinufft":
        pytest.importorskip("cufinufft", reason="cufinufft is not installed")
    else:
        monkeypatch.setattr("rsdmri.physics.noncartesian._cufinufft", lambda: None)
    maps, x, y = randn(4, 33, 40), randn(2, 33, 40), randn(2, 4, 500)
    trajectory, device = scattered(500), select_device("cuda")
    here, there = noncartesian_sense(maps, trajectory), noncartesian_sense(maps.to(device), trajectory)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(there.forward(x.to(device)).cpu(), here.forward(x), **close)
    torch.testing.assert_close(there.adjoint(y.to(device)).cpu(), here.adjoint(y), **close)
    torch.testing.assert_close(there.normal(x.to(device)).cpu(), here.normal(x), **close)
