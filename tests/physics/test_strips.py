"""Rows of a slice as a measurement of their own, against measuring the rows themselves."""

import pytest
import torch

from rsdmri.physics.sense import sense
from rsdmri.physics.strips import readout_strips


@pytest.mark.parametrize(("height", "rows", "starts"), [(24, 8, (0, 5, 16)), (25, 7, (0, 3, 18)), (9, 9, (0, 0, 0))])
def test_a_strip_of_kspace_is_what_the_coils_measure_of_the_rows(height, rows, starts):
    generator, width, coils = torch.Generator().manual_seed(4), 14, 3
    shape = len(starts), coils, height, width
    maps = torch.randn(shape, dtype=torch.complex128, generator=generator)
    image = torch.randn(shape[0], height, width, dtype=torch.complex128, generator=generator)
    mask = torch.rand(len(starts), 1, width, generator=generator) < 0.5
    measured = sense(maps, mask).forward(image)
    kspace, cut = readout_strips(measured, maps, torch.tensor(starts), rows)
    own = torch.stack([x[start : start + rows] for x, start in zip(image, starts, strict=True)])
    assert torch.equal(cut[0, :, 0], maps[0, :, starts[0]])
    torch.testing.assert_close(kspace, sense(cut, mask).forward(own), rtol=0, atol=1e-12)
    assert kspace.abs()[~mask[:, None].expand(kspace.shape)].max() == 0


def test_noise_stays_white_and_as_strong():
    """Covariance of 40,000 draws of one coil and line: unit within 5 standard errors, 1/200 each."""
    noise = torch.randn(40_000, 1, 12, 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    found, _ = readout_strips(noise, noise, torch.full((40_000,), 3), 5)
    rows = found[:, 0, :, 0]
    covariance = rows.T @ rows.conj() / len(rows)
    assert float((covariance - torch.eye(5)).abs().max()) < 5 / 200
