"""The denoiser's wrapping of the network, its inverse of the operator, and the closed-form reference."""

import math

import numpy as np
import pytest
import torch
from references import conditional_gain, random_covariance, random_maps, sense_matrix
from torch import Tensor, nn

from rsdmri.diffusion.denoiser import Denoiser, GaussianDenoiser, ridge_inverse
from rsdmri.diffusion.unet import UNet
from rsdmri.physics.sense import Sampling, sense
from rsdmri.runtime import numpy_generator, torch_generator


class Recorder(nn.Module):
    """Network that keeps what it was given and answers with a constant."""

    def __init__(self, answer: float = 0.0):
        super().__init__()
        self.answer, self.seen = answer, ()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen = x, c_noise
        return torch.full_like(x[:, :2], self.answer)


def images(*shape: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch_generator("image", *shape))


def single_coil(batch: int, height: int, width: int):
    maps = torch.ones(batch, 1, height, width, dtype=torch.complex64)
    return sense(maps, torch.ones(batch, 1, width, dtype=torch.bool))


def multi_coil(batch: int, coils: int, height: int, width: int, dtype: torch.dtype = torch.complex128):
    rng = numpy_generator("multi", batch, coils, height, width)
    maps = torch.as_tensor(np.stack([random_maps(rng, coils, height, width) for _ in range(batch)]), dtype=dtype)
    mask = torch.as_tensor(rng.uniform(size=(batch, 1, width)) < 0.6)
    mask[..., width // 2] = True
    return sense(maps, mask)


def network() -> UNet:
    net = UNet(channels=(8, 16)).eval()
    generator = torch_generator("network")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def test_both_forms_are_the_published_one_where_the_operator_is_the_identity():
    u, operator = images(3, 7, 6), single_coil(3, 7, 6)
    sigma, sd = torch.tensor([0.01, 0.4, 30.0]), 0.7
    total = torch.sqrt(sigma**2 + sd**2)
    skip, scale = (sd**2 / total**2)[:, None, None], (1 / total)[:, None, None]
    for form in ("published", "operator"):
        net = Recorder()
        out = Denoiser(net, sd, form)(u, operator, sigma)
        torch.testing.assert_close(out, skip * u, rtol=1e-5, atol=1e-6)
        x, c_noise = net.seen
        torch.testing.assert_close(torch.complex(x[:, 0], x[:, 1]), scale * u, rtol=1e-5, atol=1e-6)
        assert torch.equal(x[:, 2], torch.ones(3, 7, 6))
        torch.testing.assert_close(c_noise, sigma.log() / 4)


def test_output_scales():
    u, operator, sigma, sd = images(2, 6, 6), single_coil(2, 6, 6), torch.tensor([0.3, 2.0]), 0.5
    expected = {"published": sigma * sd / torch.sqrt(sigma**2 + sd**2), "operator": torch.tensor([sd, sd])}
    for form, factor in expected.items():
        silent, loud = Denoiser(Recorder(), sd, form), Denoiser(Recorder(1.0), sd, form)
        change = loud(u, operator, sigma) - silent(u, operator, sigma)
        torch.testing.assert_close(change, ((1 + 1j) * factor)[:, None, None].expand(2, 6, 6), rtol=1e-5, atol=1e-5)


def test_skip_path_of_the_operator_form_is_the_ridge_solution():
    operator, sigma, sd = multi_coil(2, 3, 5, 6), torch.tensor([0.2, 1.5], dtype=torch.float64), 0.6
    u = operator.normal(images(2, 5, 6, dtype=torch.complex128))
    out = Denoiser(Recorder(), sd, "operator", iterations=80)(u, operator, sigma)
    for i in range(2):
        matrix = sense_matrix(operator.maps[i].numpy(), operator.mask[i, 0].numpy())
        shifted = matrix.conj().T @ matrix + (float(sigma[i]) / sd) ** 2 * np.eye(30)
        expected = np.linalg.solve(shifted, u[i].reshape(-1).numpy())
        np.testing.assert_allclose(out[i].reshape(-1).numpy(), expected, atol=1e-6)  # sigma_data is float32


@pytest.mark.parametrize("points", [False, True])
def test_mask_reaches_the_network(points):
    net, sigma = Recorder(), torch.ones(2)
    mask = torch.rand(2, 5 if points else 1, 6, generator=torch_generator("mask")) < 0.5
    operator = sense(torch.ones(2, 1, 5, 6, dtype=torch.complex64), mask)
    Denoiser(net, 1.0)(images(2, 5, 6), operator, sigma)
    assert torch.equal(net.seen[0][:, 2] > 0, mask.expand(2, 5, 6))


@pytest.mark.parametrize("form", ["published", "operator"])
def test_items_do_not_see_each_other(form):
    operator, sigma = multi_coil(4, 2, 9, 8, torch.complex64), torch.tensor([0.01, 0.3, 2.5, 60.0])
    u = operator.normal(images(4, 9, 8) * (1 + sigma)[:, None, None])
    denoiser = Denoiser(network(), 0.5, form).eval()
    together = denoiser(u, operator, sigma).detach()
    for i in range(4):
        own = sense(operator.maps[i : i + 1], operator.mask[i : i + 1])
        alone = denoiser(u[i : i + 1], own, sigma[i : i + 1])[0].detach()
        torch.testing.assert_close(alone, together[i], rtol=1e-5, atol=1e-5)


def test_reduced_precision_is_close_and_confined_to_the_network():
    operator, sigma = multi_coil(2, 2, 9, 8, torch.complex64), torch.tensor([0.1, 1.0])
    u = operator.normal(images(2, 9, 8))
    flags = False, True
    exact, reduced = (Denoiser(network(), 0.5, autocast=flag)(u, operator, sigma).detach() for flag in flags)
    assert reduced.dtype == torch.complex64
    assert 0 < float((exact - reduced).abs().max()) < 0.05 * float(exact.abs().max())
    silent = (Denoiser(Recorder(), 0.5, autocast=flag)(u, operator, sigma) for flag in flags)
    assert torch.equal(*silent)


def test_sigma_data_must_be_positive():
    with pytest.raises(ValueError, match="sigma_data must be positive, got 0"):
        Denoiser(Recorder(), 0.0)


def test_ridge_inverse_and_its_gradient_are_those_of_the_dense_solve():
    operator = multi_coil(2, 3, 5, 6)
    shift = torch.tensor([0.03, 0.7], dtype=torch.float64)
    u = images(2, 5, 6, dtype=torch.complex128).requires_grad_()
    target = images(2, 5, 6, dtype=torch.complex128).flip(-1)
    found = ridge_inverse(u, operator, shift, 200)
    ((found - target).abs() ** 2).sum().backward()

    dense = u.detach().clone().requires_grad_()
    matrices = [sense_matrix(operator.maps[i].numpy(), operator.mask[i, 0].numpy()) for i in range(2)]
    normal = torch.as_tensor(np.stack([m.conj().T @ m for m in matrices]))
    shifted = normal + shift[:, None, None] * torch.eye(30)
    solved = torch.linalg.solve(shifted, dense.reshape(2, 30, 1)).reshape(2, 5, 6)
    ((solved - target).abs() ** 2).sum().backward()
    torch.testing.assert_close(found, solved, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(u.grad, dense.grad, rtol=1e-9, atol=1e-9)


def test_ridge_inverse_records_no_graph_when_none_is_wanted():
    operator = multi_coil(1, 2, 4, 4)
    found = ridge_inverse(images(1, 4, 4, dtype=torch.complex128), operator, torch.ones(1), 5)
    assert not found.requires_grad


@pytest.mark.parametrize("sigma", [0.02, 0.4, 5.0])
@pytest.mark.parametrize("lines", ["0110", "1011", "1111"])
def test_gaussian_denoiser_is_the_conditional_mean(sigma, lines):
    rng = numpy_generator("gaussian", lines)
    maps, covariance = random_maps(rng, 2, 4, 4), random_covariance(rng, 16)
    mask = np.array([c == "1" for c in lines])
    matrix = sense_matrix(maps, mask)
    normal = matrix.conj().T @ matrix
    x = rng.normal(size=(3, 16)) + 1j * rng.normal(size=(3, 16))
    u = x @ normal.T
    expected = u @ conditional_gain(covariance, normal, sigma).T
    operator = sense(torch.as_tensor(maps).expand(3, 2, 4, 4), torch.as_tensor(mask).expand(3, 1, 4))
    denoiser = GaussianDenoiser(torch.as_tensor(covariance))
    found = denoiser(torch.as_tensor(u).reshape(3, 4, 4), operator, torch.full((3,), sigma, dtype=torch.float64))
    np.testing.assert_allclose(found.reshape(3, 16).numpy(), expected, atol=1e-7)


def test_gaussian_denoiser_minimises_the_error():
    rng = numpy_generator("minimum")
    maps, covariance = random_maps(rng, 2, 4, 4), random_covariance(rng, 16)
    mask, sigma, n = np.array([True, False, True, True]), 0.3, 20_000
    factor = np.linalg.cholesky(covariance)
    x = (rng.normal(size=(n, 16)) + 1j * rng.normal(size=(n, 16))) @ factor.T
    e = rng.normal(size=(n, 16)) + 1j * rng.normal(size=(n, 16))
    matrix = sense_matrix(maps, mask)
    u = torch.as_tensor((x + sigma * e) @ (matrix.conj().T @ matrix).T).reshape(n, 4, 4)
    operator = sense(torch.as_tensor(maps), torch.as_tensor(mask))
    one = sense(operator.maps[None], operator.mask[None])
    basis = torch.eye(16, dtype=torch.complex128).reshape(16, 1, 4, 4)
    denoiser = GaussianDenoiser(torch.as_tensor(covariance))
    level = torch.full((1,), sigma, dtype=torch.float64)
    gain = torch.cat([denoiser(column, one, level) for column in basis]).reshape(16, 16).T
    error = (u.reshape(n, 16) @ gain.T).numpy() - x
    # the error of the best estimate is uncorrelated with everything that can be computed from u
    cross = error.T @ u.reshape(n, 16).numpy().conj() / n
    size = np.sqrt((np.abs(error) ** 2).mean(0)[:, None] * (np.abs(u.reshape(n, 16).numpy()) ** 2).mean(0))
    assert np.abs(cross / size).max() < 5 / math.sqrt(n)


class Given(nn.Module):
    """Network whose output is a parameter, (batch, channel, y, x)."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.output


ACQUISITIONS = {
    "coils": lambda: multi_coil(3, 2, 4, 5),
    "pixels": lambda: Sampling(torch.rand(3, 4, 5, generator=torch_generator("pixels")) < 0.5, (3, 4, 5)),
    "everything": lambda: Sampling(torch.ones(3, 4, 5, dtype=torch.bool), (3, 4, 5)),
}
LEVELS = torch.tensor([0.002, 0.3, 20.0], dtype=torch.float64)


def given(form: str, kind: torch.dtype, iterations: int = 6) -> Denoiser:
    shape = (3, 2, 4, 5) if kind.is_complex else (3, 1, 4, 5)
    output = torch.randn(shape, dtype=torch.float64, generator=torch_generator("output"))
    return Denoiser(Given(output), 0.6, form, iterations).double()


def cases() -> list[tuple[str, torch.dtype]]:
    double = torch.float64, torch.complex128
    return [("coils", torch.complex128), *((name, kind) for name in ("pixels", "everything") for kind in double)]


@pytest.mark.parametrize(("acquisition", "kind"), cases())
@pytest.mark.parametrize("form", ["published", "operator", "consistent"])
def test_any_estimate_can_be_reached(form, acquisition, kind):
    """D is affine in the network's output, and onto: solved here for a target by dense algebra."""
    operator, target = ACQUISITIONS[acquisition](), images(3, 4, 5, dtype=kind)
    u = operator.normal(images(3, 4, 5, dtype=kind).flip(0))
    denoiser = given(form, kind, iterations=60)
    output = denoiser.network.output

    def estimate() -> Tensor:
        return denoiser(u, operator, LEVELS).detach()

    with torch.no_grad():
        output.zero_()
        offset = estimate()
        columns = torch.empty(3, 20, output[0].numel(), dtype=kind)
        for k in range(output[0].numel()):
            output.zero_()
            output.view(3, -1)[:, k] = 1
            columns[..., k] = (estimate() - offset).reshape(3, 20)
        real = (lambda z: torch.cat([z.real, z.imag], dim=1)) if kind.is_complex else (lambda z: z)
        wanted = real((target - offset).reshape(3, 20, 1))
        output.copy_(torch.linalg.solve(real(columns), wanted).reshape(output.shape))
    torch.testing.assert_close(estimate(), target, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("acquisition", "kind"), cases())
@pytest.mark.parametrize(("form", "iterations"), [("published", 6), ("operator", 6), ("consistent", 60)])
def test_gradient_of_the_network_is_that_of_finite_differences(form, iterations, acquisition, kind):
    operator, target = ACQUISITIONS[acquisition](), images(3, 4, 5, dtype=kind)
    u = operator.normal(images(3, 4, 5, dtype=kind).flip(0))
    denoiser = given(form, kind, iterations)

    def energies() -> Tensor:
        return (denoiser(u, operator, LEVELS) - target).abs().square().sum(dim=(-2, -1))

    output = denoiser.network.output
    (gradient,) = torch.autograd.grad(energies().sum(), output)
    direction = torch.randn(output.shape, dtype=torch.float64, generator=torch_generator("direction"))
    slope, size = (gradient * direction).sum(dim=(1, 2, 3)), 1e-4
    with torch.no_grad():
        output += size * direction
        ahead = energies()
        output -= 2 * size * direction
        behind = energies()
    torch.testing.assert_close((ahead - behind) / (2 * size), slope, rtol=1e-5, atol=1e-7)


def test_few_iterations_of_the_consistent_form_keep_the_gradient():
    """At small levels the ridge would need hundreds; the weight of the samples is bounded instead."""
    operator, target = multi_coil(3, 4, 24, 24), images(3, 24, 24, dtype=torch.complex128)
    u = operator.normal(target)
    level = torch.tensor([0.002, 0.02, 0.2], dtype=torch.float64)
    slopes = []
    for iterations in (6, 200):
        output = torch.randn(3, 2, 24, 24, dtype=torch.float64, generator=torch_generator("output"))
        denoiser = Denoiser(Given(output), 0.6, "consistent", iterations).double()
        energy = (denoiser(u, operator, level) - target).abs().square().sum()
        slopes.append(torch.autograd.grad(energy, denoiser.network.output)[0].flatten(1))
    errors = (slopes[0] - slopes[1]).norm(dim=1) / slopes[1].norm(dim=1)
    assert float(errors.max()) < 0.1
