"""Iterative reconstructions beside those of the BART toolbox, run as a program on its own files."""

import numpy as np
import pytest
import torch
from bart import bart, needs_bart

from rsdmri.data.simulate import simulate_scan
from rsdmri.physics import sense
from rsdmri.physics.classical import l1_wavelet, sense_cg, tv
from rsdmri.runtime import torch_generator

pytestmark = [pytest.mark.external, needs_bart]


def pics(folder, kspace, maps, options):
    """Image (y, x) of k-space and maps (coil, y, x)."""
    return torch.from_numpy(np.ascontiguousarray(bart(folder, f"pics -w 1 {options}", kspace.numpy(), maps.numpy())))


@pytest.fixture(scope="module")
def scan():
    """Operator, noisy k-space at about R = 3 and image of a simulated head."""
    made = simulate_scan(100, slices=1, size=96, coils=6, noise=0.0)
    image = torch.from_numpy(made.image / made.scale)
    generator = torch_generator("bart")
    mask = torch.rand(96, generator=generator) < 0.25
    mask[42:54] = True
    operator = sense(torch.from_numpy(made.maps), mask)
    kspace = operator.forward(image)
    noise = 0.01 * torch.randn(kspace.shape, dtype=torch.complex64, generator=generator)
    return operator, torch.where(mask, kspace + noise, 0), image[0]


def error(image, truth):
    return float((image - truth).norm() / truth.norm())


@pytest.mark.parametrize(("strength", "iterations"), [(0.01, 30), (0.1, 20)])
def test_cg_sense(scan, tmp_path, strength, iterations):
    operator, kspace, _ = scan
    theirs = pics(tmp_path, kspace[0], operator.maps[0], f"-l2 -r {strength} -i {iterations}")
    ours = sense_cg(operator, kspace, strength=strength, iterations=iterations)[0]
    assert error(ours, theirs) < 1e-4


STRENGTHS = (0.001, 0.002, 0.005)


def test_l1_wavelet_is_no_worse(scan, tmp_path):
    """Than BART with its default wavelet; with Haar's, which is ours, both differ by their random shifts alone."""
    operator, kspace, truth = scan
    least = {
        name: min(
            error(pics(tmp_path, kspace[0], operator.maps[0], f"-R W:3:0:{s} -i 100 --wavelet {name}"), truth)
            for s in STRENGTHS
        )
        for name in ("haar", "dau2")
    }
    shifts = torch_generator("shift")
    ours = min(
        error(l1_wavelet(operator, kspace, strength=s, iterations=100, tolerance=0, generator=shifts)[0], truth)
        for s in STRENGTHS
    )
    assert ours < least["dau2"]
    assert ours < 1.02 * least["haar"]


def test_tv_is_no_worse(scan, tmp_path):
    operator, kspace, truth = scan
    theirs = [pics(tmp_path, kspace[0], operator.maps[0], f"-R T:3:0:{s} -i 100") for s in STRENGTHS]
    ours = [tv(operator, kspace, strength=s, iterations=100, tolerance=0)[0] for s in STRENGTHS]
    assert min(error(image, truth) for image in ours) < min(error(image, truth) for image in theirs)
