"""Measured scans, where they are at hand: the images must hold together, not only the arithmetic."""

import os
from pathlib import Path

import numpy as np
import pytest

from rsdmri.workflows.reconstruct import load_scan, reconstruct

SHARED = Path(os.environ.get("RSDMRI_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "kspace"

pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(not SHARED.is_dir(), reason="real scans are not here (set RSDMRI_SHARED_DATA)"),
]

# NMSE and SSIM that L1-wavelet must reach at R = 4 (about 10 % worse than measured when this was written).
FULLY_SAMPLED = {
    "brain16ch_pulseq_gre_128x128": (0.024, 0.45),
    "phantom16ch_pulseq_gre_128x128": (0.0032, 0.63),
    "phantom32ch_pulseq_se_64x64": (0.0045, 0.90),
}


@pytest.mark.parametrize("name", FULLY_SAMPLED)
def test_undersampled_by_four(name):
    scan = load_scan(SHARED / f"{name}.h5")
    results = {method: reconstruct(scan, method=method, acceleration=4) for method in ("zero-filled", "l1-wavelet")}
    scores = {method: result.scores for method, result in results.items()}
    nmse, ssim = FULLY_SAMPLED[name]
    assert scores["l1-wavelet"]["nmse"] < nmse < scores["zero-filled"]["nmse"]
    assert scores["l1-wavelet"]["ssim"] > ssim
    image, target = results["l1-wavelet"].volume[0], scan.target[0]
    turned = [np.linalg.norm(image - other) for other in (target[::-1], target[:, ::-1], np.roll(target, 32, axis=1))]
    assert np.linalg.norm(image - target) < 0.7 * min(turned)  # right way up, not wrapped


@pytest.mark.parametrize("acceleration", [2, 4])
def test_coil_maps_keep_the_whole_head(acceleration):
    """The thin scalp in front was cut off at R = 4 when 2 % of the object could be lost."""
    scan = load_scan(SHARED / "brain16ch_pulseq_gre_128x128.h5")
    image = reconstruct(scan, method="zero-filled", acceleration=acceleration).volume[0]
    target = scan.target[0]
    head = target > 0.15 * np.quantile(target, 0.99)
    assert np.count_nonzero((image == 0) & head) < 0.002 * np.count_nonzero(head)


def test_undersampled_by_the_scanner():
    scan = load_scan(SHARED / "brain8ch_sigpytutorial_undersampled_230x180.h5")
    assert scan.prospective
    result = reconstruct(scan, method="l1-wavelet")
    assert result.scores is None
    assert result.attrs["acceleration"] == pytest.approx(8.04, abs=0.02)
    rows, columns = (np.flatnonzero(result.volume[0].max(axis) > 0.2 * result.volume.max()) for axis in (1, 0))
    assert 180 < rows[-1] - rows[0] < 230  # the head, taller than wide, whole and not wrapped
    assert 130 < columns[-1] - columns[0] < 180
    corners = np.stack([result.volume[0][:20, :20], result.volume[0][-20:, -20:]])
    assert corners.max() < 0.05 * result.volume.max()
