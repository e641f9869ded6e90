"""What the posterior stage does to a measured slice: noise and phase that leave it a valid measurement."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from references import random_maps

from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics.sense import sense
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.training.posterior import further_levels, noisier, turned


@pytest.fixture
def scan() -> tuple[Batch, torch.Tensor]:
    """Two slices of 8 x 9 with 3 coils, and their images."""
    rng = numpy_generator("variations")
    maps = torch.as_tensor(np.stack([random_maps(rng, 3, 8, 9) for _ in range(2)]), dtype=torch.complex64)
    mask = torch.zeros(2, 1, 9, dtype=torch.bool)
    mask[..., [1, 3, 4, 5, 7]] = True
    images = unit_noise(maps[:, 0], torch_generator("images"))
    return Batch(sense(maps, mask).forward(images), maps, mask, mask, torch.tensor([0.3, 0.0])), images


def test_levels_of_further_noise():
    chances = torch.tensor([0.0, 1 / 4, 0.49999, 0.50001, 1.0], dtype=torch.float64)
    found = further_levels(chances, 0.1)
    np.testing.assert_allclose(found, [0.1, 0.1 / 20**0.5, 0.005, 0, 0], rtol=1e-3)


def test_a_noisier_scan_is_told_so_and_reads_acquired_samples_alone(scan):
    batch, _ = scan
    noise, level = unit_noise(batch.measured, torch_generator("noise")), torch.tensor([0.4, 0.0])
    found = noisier(batch, level, noise)
    torch.testing.assert_close(found.sigma_y, torch.tensor([0.5, 0.0]))
    seen = batch.mask[:, None].expand(-1, 3, 8, -1)
    torch.testing.assert_close((found.measured - batch.measured)[seen], (level[:, None, None, None] * noise)[seen])
    assert not found.measured[~seen].any()
    hidden = replace(batch, measured=torch.where(seen, batch.measured, torch.nan))
    assert torch.equal(noisier(hidden, level, noise).measured, found.measured)


def test_a_turned_scan_is_that_of_turned_images(scan):
    batch, images = scan
    grid = torch.randn(2, 4, 5, generator=torch_generator("grid"))
    found = turned(batch, grid)
    assert torch.equal(found.measured, batch.measured)
    turn = (found.maps / batch.maps).mean(1)
    torch.testing.assert_close(turn.abs(), torch.ones_like(turn.abs()))
    torch.testing.assert_close(found.operator.forward(images * turn.conj()), batch.measured, atol=2e-6, rtol=1e-5)
    corners = torch.polar(torch.ones(2, 2, 2), grid[:, ::3, ::4])
    torch.testing.assert_close(turn[:, ::7, ::8], corners, atol=1e-5, rtol=1e-5)


def test_images_have_no_phase_to_share_with_coils(scan):
    batch, _ = scan
    with pytest.raises(ValueError, match="expected k-space with coil maps, got images"):
        turned(replace(batch, maps=None), torch.zeros(2, 4, 5))
