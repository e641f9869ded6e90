"""Debian's BART as the reference: transforms, the SENSE operator, its solution, coil maps."""

import numpy as np
import pytest
import torch
from bart import bart, needs_bart
from phantoms import phantom, subspace_error

from rsdmri.physics import sense
from rsdmri.physics.coils import espirit_maps
from rsdmri.physics.fourier import fft2c, ifft2c, rss
from rsdmri.physics.solve import conjugate_gradient
from rsdmri.runtime import torch_generator

pytestmark = [pytest.mark.external, needs_bart]

SIZES = ((48, 40), (45, 51), (40, 45))


def randn(*shape):
    return torch.randn(shape, dtype=torch.complex64, generator=torch_generator("bart", *shape))


def relative(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_centred_transforms(tmp_path, size):
    image = randn(3, *size)
    assert relative(fft2c(image), bart(tmp_path, "fft -u 3", image.numpy())) < 1e-6
    assert relative(ifft2c(image), bart(tmp_path, "fft -u -i 3", image.numpy())) < 1e-6


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sense_operator(tmp_path, size, points):
    maps, image = randn(4, *size), randn(*size)
    mask = torch.rand(size if points else (1, size[1]), generator=torch_generator("mask", *size)) < 0.4
    operator = sense(maps, mask)
    full = mask.expand(size).numpy().astype(np.complex64)
    coil_images = bart(tmp_path, "fmac", maps.numpy(), image.numpy())
    kspace = bart(tmp_path, "fmac", bart(tmp_path, "fft -u 3", coil_images), full)
    assert relative(operator.forward(image), kspace) < 1e-6
    assert relative(operator.adjoint(torch.from_numpy(kspace)), adjoint(tmp_path, kspace, maps)) < 1e-6
    assert relative(operator.normal(image), adjoint(tmp_path, kspace, maps)) < 1e-6


def adjoint(folder, kspace, maps):
    return bart(folder, "fmac -C -s 8", bart(folder, "fft -u -i 3", kspace), maps.numpy())


@pytest.mark.parametrize("points", [False, True])
def test_sense_solution(tmp_path, points):
    head = phantom(6, (64, 60))
    generator = torch_generator("bart solution")
    mask = torch.rand((64, 60) if points else (1, 60), generator=generator) < 0.4
    mask[..., 22:38] = True
    kspace = torch.where(mask, head.kspace + 0.01 * randn(*head.kspace.shape), 0)
    operator = sense(head.maps, mask)
    mine = conjugate_gradient(operator.normal, operator.adjoint(kspace), shift=0.02, iterations=200)
    theirs = bart(tmp_path, "pics -w 1 -l2 -r 0.02 -i 200", kspace.numpy(), head.maps.numpy())
    assert relative(mine, theirs) < 1e-4


@pytest.mark.parametrize(("n_coils", "size", "lines"), [(8, (64, 64), 24), (5, (72, 57), 20)])
def test_coil_maps(tmp_path, n_coils, size, lines):
    head = phantom(n_coils, size)
    kspace = head.kspace + 0.01 * randn(*head.kspace.shape)
    acs = tuple(slice((n - lines + 1) // 2, (n - lines + 1) // 2 + lines) for n in size)
    theirs = torch.from_numpy(bart(tmp_path, f"ecalib -m1 -r{lines}", kspace.numpy()))
    mine = espirit_maps(kspace, acs)
    both = head.inside & (rss(mine) > 0) & (rss(theirs) > 0)
    assert float(both.sum()) > 0.98 * float(head.inside.sum())
    assert subspace_error(mine, theirs, both) < 0.02
    assert subspace_error(mine, head.maps, both) < 1.1 * subspace_error(theirs, head.maps, both)


def test_two_sets_of_maps_explain_as_much(tmp_path):
    """A field of view narrower than the head."""
    wide = ifft2c(phantom(6, (48, 80)).kspace)
    image = wide[..., 20:60].clone()
    image[..., 20:] += wide[..., :20]
    image[..., :20] += wide[..., 60:]
    kspace = fft2c(image)
    theirs = torch.from_numpy(bart(tmp_path, "ecalib -m2 -r24", kspace.numpy()))
    mine = espirit_maps(kspace, (slice(12, 36), slice(8, 32)), sets=2)
    assert mine.shape == theirs.shape
    left = [unexplained(maps, image) for maps in (mine, theirs)]
    assert left[0] < 1.2 * left[1]


def unexplained(maps, images):
    """Energy of the coil images outside the span of the maps at each pixel, relative."""
    basis, _ = torch.linalg.qr(maps.permute(2, 3, 1, 0))
    pixels = images.movedim(0, -1)[..., None]
    left = pixels - basis @ (basis.mH @ pixels)
    return float(left.abs().square().sum() / images.abs().square().sum())
