import pytest
import torch
from contract import OperatorContract, randn
from phantoms import phantom, subspace_error

from rsdmri.physics import sense
from rsdmri.physics.coils import espirit_maps
from rsdmri.physics.fourier import fft1c, fft2c, rss
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.physics.volume import SenseVolume, decoupled
from rsdmri.runtime import torch_generator


def random_mask(*shape):
    return torch.rand(shape, generator=torch_generator("volume mask", *shape)) < 0.5


class TestPoints(OperatorContract):
    def build(self, size):
        return SenseVolume(randn(3, 4, *size, key="maps"), random_mask(*size))


class TestLines(OperatorContract):
    def build(self, size):
        return SenseVolume(randn(2, 3, *size, key="maps"), random_mask(size[1]))


def test_is_the_masked_transform_of_all_three_axes():
    maps, x, mask = randn(3, 5, 6, 7), randn(5, 6, 7), random_mask(6, 7)
    expected = torch.where(mask, fft1c(fft2c(maps * x), -3), 0)
    torch.testing.assert_close(SenseVolume(maps, mask).forward(x), expected, rtol=1e-12, atol=1e-12)


def test_only_acquired_samples_are_read():
    maps, mask = randn(3, 5, 6, 7), random_mask(6, 7)
    operator, y = SenseVolume(maps, mask), randn(3, 5, 6, 7)
    assert torch.equal(operator.adjoint(torch.where(mask, y, torch.nan)), operator.adjoint(y))


def test_a_volume_is_a_batch_of_slices_after_a_transform_along_the_readout():
    maps, x, mask = randn(3, 5, 6, 7), randn(2, 5, 6, 7), random_mask(6, 7)
    frames = SenseVolume(maps, mask).forward(x)
    slices = sense(maps.movedim(1, 0), mask)
    for frame, image in zip(frames, x, strict=True):
        torch.testing.assert_close(decoupled(frame), slices.forward(image), rtol=1e-12, atol=1e-12)


def test_from_the_k_space_of_a_volume_to_maps_and_image():
    heads = [phantom(6, (40, 36), seed=seed) for seed in range(4)]
    maps = torch.stack([head.maps for head in heads], dim=1)
    image = torch.stack([head.image for head in heads])
    mask = random_mask(40, 36)
    mask[12:28, 10:26] = True
    full = torch.stack([head.kspace for head in heads], dim=1)  # (coil, y, z, x), still an image along y
    kspace = decoupled(torch.where(mask, fft1c(full, -3), 0))
    found = espirit_maps(kspace, (slice(12, 28), slice(10, 26)))
    for position, head in enumerate(heads):
        assert subspace_error(found[position], maps[:, position], head.inside & (rss(found[position]) > 0)) < 0.02
    operator = sense(found, mask)
    solved = conjugate_gradient(operator.normal, operator.adjoint(kspace), shift=1e-3, iterations=60)
    error = (solved.abs() - image.abs()).norm() / image.norm()
    zero_filled = (operator.adjoint(kspace).abs() - image.abs()).norm() / image.norm()
    assert error < 0.05 < zero_filled


def test_what_is_no_volume_is_refused():
    with pytest.raises(ValueError, match=r"maps: expected \(coil, y, z, x\)"):
        SenseVolume(randn(3, 6, 7), random_mask(7))
    with pytest.raises(ValueError, match="does not fit"):
        SenseVolume(randn(3, 5, 6, 7), random_mask(5, 7))
