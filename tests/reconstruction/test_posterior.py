"""Reconstruction with a prior: data consistency against a dense solve; draws repeat, differ, and stand alone."""

from pathlib import Path

import pytest
import torch

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.physics.sense import sense
from rsdmri.priors import load_prior
from rsdmri.reconstruction.posterior import ambient_one_step, data_consistency, rsd
from rsdmri.runtime import torch_generator


def problem(batch: int, coils: int, height: int, width: int, dtype: torch.dtype = torch.complex64):
    generator = torch_generator("posterior", batch, coils, height, width)
    maps = unit_noise(torch.empty(batch, coils, height, width, dtype=dtype), generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.rand(batch, 1, width, generator=generator) < 0.5
    mask[..., width // 2 - 2 : width // 2 + 2] = True
    operator = sense(maps, mask)
    image = unit_noise(torch.empty(batch, height, width, dtype=dtype), generator)
    return operator, operator.forward(image), image


def test_data_consistency_is_the_dense_minimiser() -> None:
    operator, kspace, _ = problem(1, 3, 5, 6, torch.complex128)
    estimate = unit_noise(torch.empty(1, 5, 6, dtype=torch.complex128), torch_generator("estimate"))
    sigma, rho = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    found = data_consistency(operator, kspace, estimate, sigma, rho, iterations=60)

    weight = 0.3**2 / 0.5**2
    basis = torch.eye(30, dtype=torch.complex128).reshape(30, 1, 5, 6)
    dense = torch.stack([operator.forward(e).flatten() for e in basis], dim=1)
    left = dense.mH @ dense + weight * torch.eye(30, dtype=torch.complex128)
    right = dense.mH @ kspace.flatten() + weight * estimate.flatten()
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(left, right), rtol=1e-9, atol=1e-9)


def test_draws_repeat_with_their_stream_and_differ_between_streams(finished_run: Path) -> None:
    prior = load_prior(finished_run, "cpu")
    operator, kspace, _ = problem(1, 4, 33, 37)
    sigma = torch.tensor([0.05])
    one, again, other = (
        rsd(prior, operator, kspace, sigma, generator=torch_generator("draw", number)) for number in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (1, 33, 37)
    assert bool(torch.isfinite(one.abs()).all())


def test_an_item_is_the_same_alone_and_in_a_batch(finished_run: Path) -> None:
    prior = load_prior(finished_run, "cpu")
    operator, kspace, _ = problem(3, 4, 32, 32)
    sigma = torch.tensor([0.02, 0.05, 0.1])
    together = ambient_one_step(prior, operator, kspace, sigma)
    alone = ambient_one_step(prior, sense(operator.maps[1:2], operator.mask[1:2]), kspace[1:2], sigma[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_results_agree_with_the_data_within_the_noise(finished_run: Path) -> None:
    prior = load_prior(finished_run, "cpu")
    operator, kspace, _ = problem(2, 4, 32, 32)
    sigma = torch.full((2,), 0.01)
    for image in (
        rsd(prior, operator, kspace, sigma, generator=torch_generator("draw")),
        ambient_one_step(prior, operator, kspace, sigma),
    ):
        residual = (operator.forward(image) - kspace).norm() / kspace.norm()
        assert float(residual) < 0.1


def test_shapes_that_do_not_fit_are_refused(finished_run: Path) -> None:
    prior = load_prior(finished_run, "cpu")
    operator, kspace, _ = problem(1, 4, 32, 32)
    with pytest.raises(InputError, match="must agree"):
        ambient_one_step(prior, operator, kspace[:, :3], torch.tensor([0.1]))
