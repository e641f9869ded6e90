"""Which scans a prior's statistics call foreign: other resolution, field of view, phantoms and noise."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsdmri.data.simulate import simulate_scan
from rsdmri.errors import InputError
from rsdmri.physics.fourier import fft2c
from rsdmri.physics.noise import estimate_covariance
from rsdmri.physics.prepare import scale_slice
from rsdmri.reconstruction.domain import DomainStatistics, fit_statistics, slice_features
from rsdmri.runtime import numpy_generator

SIZE, LINES = 32, 4


def heads(first: int, count: int, **settings):
    options = {"slices": 3, "size": SIZE, "coils": 4, "noise": 0.01, "contrast": "T2w", "seed": 5} | settings
    return [simulate_scan(number, **options) for number in range(first, first + count)]


def features(kspace: np.ndarray, key: object) -> np.ndarray:
    """Features of the slices of a scan undersampled about 4 times."""
    samples = torch.from_numpy(kspace)
    width = samples.shape[-1]
    mask = torch.from_numpy(numpy_generator("domain mask", key).random((1, width)) < 0.2)
    mask[..., width // 2 - 3 : width // 2 + 3] = True
    samples = torch.where(mask, samples, 0)
    noise = estimate_covariance(samples, mask)
    return np.array([slice_features(*scale_slice(one, mask, noise=noise), LINES) for one in samples])


def measured(images: np.ndarray, noise: float) -> np.ndarray:
    """K-space of coil images (slice, coil, y, x) with noise."""
    rng = numpy_generator("domain noise", *images.shape)
    kspace = fft2c(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    away = rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape)
    return (kspace + noise / np.sqrt(2) * away).astype(np.complex64)


@pytest.fixture(scope="module")
def statistics():
    scans = heads(0, 40)
    found = [features(scan.kspace, number) for number, scan in enumerate(scans)]
    names = [str(number) for number in range(len(scans)) for _ in range(3)]
    return fit_statistics(np.concatenate(found), 0.0, names, LINES, ["T2w"])


def verdict(statistics, kspace, key):
    return statistics.verdict([statistics.distance(row) for row in features(kspace, key)])


def test_scans_of_the_training_kind_pass(statistics):
    for number, scan in enumerate(heads(100, 12)):
        assert verdict(statistics, scan.kspace, f"new {number}") is None
    for number, scan in enumerate(heads(120, 4, noise=0.002)):
        assert verdict(statistics, scan.kspace, f"quiet {number}") is None


def foreign():
    yield "resolution", lambda: heads(200, 1, size=64)[0].kspace
    scan = heads(201, 1, size=64)[0]
    images = scan.maps * scan.image[:, None]
    yield "field of view", lambda: measured(images[..., 16:48, 16:48], 0.01 * scan.scale)
    small = heads(202, 1)[0]
    padded = np.pad(small.maps * small.image[:, None], ((0, 0), (0, 0), (8, 8), (8, 8)))
    yield "wider", lambda: measured(padded, 0.01 * small.scale)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    disk = ((x / 11) ** 2 + (y / 13) ** 2 < 1).astype(float)
    yield "phantom", lambda: measured(small.maps * disk, 0.01)
    yield "noise", lambda: measured(np.zeros((3, 4, SIZE, SIZE), np.complex64), 1.0)


@pytest.mark.parametrize(("name", "make"), list(foreign()), ids=[name for name, _ in foreign()])
def test_foreign_scans_are_told(name, make, statistics):
    assert "from the training data" in verdict(statistics, make(), name)


def test_a_contrast_that_is_stated_counts(statistics):
    assert "states contrast T1w, the training scans were T2w" in statistics.verdict([0.5] * 5, "T1w")
    assert statistics.verdict([0.5] * 5, "T2w") is None
    assert statistics.verdict([0.5] * 5, None) is None


def test_scale_and_phase_do_not_matter_nor_what_was_not_acquired(statistics):
    scan = heads(300, 1)[0]
    one = features(scan.kspace, "same")
    np.testing.assert_allclose(
        features((1e5 * np.exp(0.7j) * scan.kspace).astype(np.complex64), "same"), one, rtol=1e-3
    )


def test_distances_are_those_of_the_normal_law():
    rng = numpy_generator("normal features")
    size = 27
    values = rng.normal(size=(4000, size)) * np.geomspace(0.01, 10, size)
    names = [str(k // 4) for k in range(4000)]
    found = fit_statistics(values, 0.0, names, LINES)
    distances = np.array([found.distance(row) for row in values])
    assert (distances**2).mean() == pytest.approx(1, abs=0.03)  # chi-squared over its degrees of freedom
    assert (distances > found.threshold).mean() < 0.002
    assert found.scan_threshold < found.threshold
    values[0, :20] = np.nan  # what is not known does not count
    assert 0.3 < found.distance(values[0]) < 2.5
    assert found.distance(np.full(size, np.nan)) == np.inf


def test_statistics_survive_their_file(statistics):
    again = DomainStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again == statistics
    for broken in ({}, {**statistics.to_dict(), "mean": [1.0]}, {**statistics.to_dict(), "more": 1}):
        with pytest.raises(InputError, match="not the statistics"):
            DomainStatistics.from_dict(broken)


def test_a_noisy_scan_is_held_against_slices_as_noisy(statistics):
    """Noise hides fine detail, which then counts as missing against clean training slices."""
    noise = 0.2
    scans = heads(0, 40, noise=noise)
    found = [features(scan.kspace, number) for number, scan in enumerate(scans)]
    names = [str(number) for number in range(len(scans)) for _ in range(3)]
    noisy = fit_statistics(np.concatenate(found), noise, names, LINES, ["T2w"])
    clean = replace(statistics, noise=0.01, noisier=[noisy])
    assert [clean.at(level).noise for level in (0.0, 1e-3, 0.04, 0.05, 7.0)] == [0.01, 0.01, 0.01, noise, noise]
    assert statistics.at(noise) is statistics  # its own noise is not known
    new = [features(scan.kspace, f"noisy {number}") for number, scan in enumerate(heads(400, 12, noise=noise))]
    told = [each.verdict([each.distance(row) for row in rows]) for rows in new for each in (clean, clean.at(noise))]
    assert all(told[::2])
    assert not any(told[1::2])
    phantom = features(dict(foreign())["phantom"](), "phantom")
    assert noisy.verdict([noisy.distance(row) for row in phantom]) is not None
    again = DomainStatistics.from_dict(json.loads(json.dumps(clean.to_dict())))
    assert again == clean
    for broken in (3, [3], [{}]):
        with pytest.raises(InputError, match="not the statistics"):
            DomainStatistics.from_dict({**clean.to_dict(), "noisier": broken})


def test_what_half_of_the_slices_lack_has_no_weight():
    rng = numpy_generator("rare features")
    values = rng.normal(size=(400, 27))
    values[:240, 3] = np.nan
    values[rng.random((400, 27)) < 0.2] = np.nan
    found = fit_statistics(values, 0.0, [str(k // 4) for k in range(400)], LINES)
    usual = np.zeros(27)
    strange = usual.copy()
    strange[3] = 100
    assert found.distance(strange) == pytest.approx(found.distance(usual), abs=1e-3)
    strange[4] = 100
    assert found.distance(strange) > found.threshold


def test_too_few_scans_and_too_small_a_centre():
    with pytest.raises(InputError, match="9 training scans are too few"):
        fit_statistics(np.zeros((18, 27)), 0.0, [str(k // 2) for k in range(18)], LINES)
    with pytest.raises(InputError, match="nothing above their noise"):
        fit_statistics(np.full((40, 27), np.nan), 0.0, [str(k // 2) for k in range(40)], LINES)
    mask = torch.zeros(1, SIZE, dtype=torch.bool)
    mask[..., 15:17] = True
    with pytest.raises(InputError, match="2 centre lines"):
        slice_features(torch.ones(2, SIZE, SIZE, dtype=torch.complex64), mask, 0.1, LINES)
