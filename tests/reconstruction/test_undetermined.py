"""What samples do not determine, against the dense operator."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from rsdmri.physics.fourier import ifft2c
from rsdmri.physics.sense import sense
from rsdmri.reconstruction.undetermined import RIDGE, undetermined_share
from rsdmri.runtime import torch_generator


def noise(*shape):
    return torch.randn(shape, dtype=torch.complex128, generator=torch_generator("undetermined", *shape))


def lines(*acquired, width=12):
    mask = torch.zeros(1, width, dtype=torch.bool)
    mask[0, list(acquired)] = True
    return mask


@pytest.mark.parametrize("sets", [None, 2])
def test_it_is_that_of_the_dense_operator(sets):
    mask, shape = lines(1, 4, 5, 6, 7, 10), (10, 12) if sets is None else (sets, 10, 12)
    maps = noise(*(() if sets is None else (sets,)), 3, 10, 12)
    operator = sense(maps / maps.abs().square().sum((0, 1) if sets else 0).sqrt(), mask, sets=sets is not None)
    image = noise(*shape)
    columns = torch.eye(image.numel(), dtype=torch.complex128).view(-1, *shape)
    dense = torch.stack([operator.normal(column).flatten() for column in columns], dim=1)
    left = RIDGE * torch.linalg.solve(dense + RIDGE * torch.eye(len(dense)), image.flatten()).view(shape)
    part, whole = (
        gaussian_filter(x.abs().square().view(-1, 10, 12).sum(0).numpy(), 1.5) for x in (left, image)
    )  # no pixel is dark
    np.testing.assert_allclose(undetermined_share(operator, image), np.sqrt(part / whole), atol=2e-3)


def test_all_samples_determine_all_and_a_lost_line_nothing():
    maps = torch.ones(1, 10, 12, dtype=torch.complex64)
    wave = torch.zeros(10, 12, dtype=torch.complex64)
    wave[5, 8] = 1
    wave = ifft2c(wave)
    for mask, share in ((lines(*range(12)), RIDGE / (1 + RIDGE)), (lines(4, 5, 6, 7), 1.0)):
        np.testing.assert_allclose(undetermined_share(sense(maps, mask), wave), share, rtol=1e-3)


def test_air_has_no_share():
    maps, image = torch.ones(1, 32, 32, dtype=torch.complex64), torch.zeros(32, 32, dtype=torch.complex64)
    mask = lines(*range(12, 20), width=32)
    assert not undetermined_share(sense(maps, mask), image).any()
    image[:8, 8:24] = noise(8, 16).to(image.dtype)
    image[24:] = 1e-3
    share = undetermined_share(sense(maps, mask), image)
    assert share[:8, 8:24].min() > 0.2 > 0.05 > share[26:].max()
    assert share.max() <= 1


def test_a_steep_phase_moves_a_place_into_a_gap():
    columns = torch.arange(64).expand(64, 64)
    image = torch.ones(64, 64, dtype=torch.complex64)
    right = columns >= 32
    image[right] = torch.polar(torch.ones(()), 2 * torch.pi * 12 * columns[right] / 64)  # 12 lines from the centre
    mask = lines(*range(26, 38), *range(0, 26, 6), *range(38, 40), *range(50, 64, 6), width=64)
    share = undetermined_share(sense(torch.ones(1, 64, 64, dtype=torch.complex64), mask), image)
    assert share[:, 8:24].mean() < 0.2
    assert share[:, 40:56].mean() > 0.8
