"""The noise level of prepared slices: right for every source of the covariance, and the same in all units."""

import pytest
import torch
from phantoms import correlated, noise, phantom

from rsdmri.physics import masks
from rsdmri.physics.noise import (
    covariance_from_edges,
    covariance_from_noise_scan,
    estimate_covariance,
    whiten,
    whitening_matrix,
)
from rsdmri.physics.noise_corners import covariance_from_corners
from rsdmri.physics.prepare import prepare_slice
from rsdmri.runtime import torch_generator

FULL = torch.ones(64, dtype=torch.bool)
LINES = masks.draw_mask("random", 64, acceleration=3, center_fraction=0.2, key=("prepare", 0))
POINTS = torch.rand(64, 64, generator=torch_generator("prepare points")) < 0.4
POINTS[26:38, 26:38] = True
MIXING = correlated(6)
HEAD = phantom(6)

SOURCES = {
    "full": (FULL, lambda kspace, prescan: estimate_covariance(kspace[None], FULL)),
    "lines": (LINES, lambda kspace, prescan: estimate_covariance(kspace[None], LINES)),
    "points": (POINTS, lambda kspace, prescan: estimate_covariance(kspace[None], POINTS)),
    "edges": (FULL, lambda kspace, prescan: covariance_from_edges(kspace[None], FULL)),
    "corners": (FULL, lambda kspace, prescan: covariance_from_corners(kspace)),
    "noise scan": (LINES, lambda kspace, prescan: covariance_from_noise_scan(prescan)),
}


def acquired(level, key):
    kspace = HEAD.kspace + level * noise(MIXING, (64, 64), key=key)
    return kspace, level * noise(MIXING, (64, 64), key=("prescan", key))


@pytest.mark.parametrize("source", SOURCES)
def test_sigma_y_is_the_noise_of_the_prepared_kspace(source):
    """Monte Carlo over 10 scans: noise in the prepared samples over sigma_y is 1 within 3 standard errors and 1 %."""
    mask, estimate = SOURCES[source]
    ratios = []
    for key in range(10):
        kspace, prescan = acquired(0.3, key)
        found = estimate(kspace, prescan)
        prepared = prepare_slice(kspace, mask, noise=found, maps=HEAD.maps)
        error = whiten(kspace - HEAD.kspace, whitening_matrix(found.covariance)) / prepared.scale
        square = error[:, mask.expand(64, 64)].abs().square().mean()
        ratios.append(float(square.sqrt()) / prepared.sigma_y)
    ratios = torch.tensor(ratios)
    shrinkage = 6 / (2 * found.samples)  # E[tr(S^-1 Psi)] / coils is 1 + coils / samples for a sample covariance S
    assert abs(float(ratios.mean()) - 1 - shrinkage) < 0.01 + 3 * float(ratios.std()) / 10**0.5


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_units_do_not_matter_for_any_source(source, factor):
    mask, estimate = SOURCES[source]
    kspace, prescan = acquired(0.05, 0)
    first = prepare_slice(kspace, mask, noise=estimate(kspace, prescan))
    second = prepare_slice(kspace * factor, mask, noise=estimate(kspace * factor, prescan * factor))
    # whitening takes the units out: scale counts noise levels
    assert second.scale == pytest.approx(first.scale, rel=1e-5)
    assert second.sigma_y == pytest.approx(first.sigma_y, rel=1e-5)
    torch.testing.assert_close(second.kspace, first.kspace, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.maps, first.maps, atol=1e-3, rtol=0)
    torch.testing.assert_close(second.intensity, first.intensity * factor, rtol=1e-3, atol=0)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("power", [-20, 20])
def test_powers_of_two_change_no_bit_of_the_scan(source, power):
    """No constant in units of the data hides anywhere: multiplying by a power of two is exact."""
    mask, estimate = SOURCES[source]
    kspace, prescan = acquired(0.05, 0)
    factor = 2.0**power
    here, there = estimate(kspace, prescan), estimate(kspace * factor, prescan * factor)
    torch.testing.assert_close(there.covariance, here.covariance * factor**2, rtol=1e-13, atol=0)
    assert (there.samples, there.source) == (here.samples, here.source)
    assert there.signal == pytest.approx(here.signal, rel=1e-9, abs=1e-12)
    bare = [prepare_slice(k, mask, noise=None) for k in (kspace, kspace * factor)]
    assert bare[1].scale == bare[0].scale * factor
    assert torch.equal(bare[1].kspace, bare[0].kspace)
    assert torch.equal(bare[1].maps, bare[0].maps)
