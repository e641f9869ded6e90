"""HaarPSI: known answers, an independent derivation with convolutions, and how it falls with damage."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from rsdmri.errors import InputError
from rsdmri.metrics.haarpsi import haarpsi
from rsdmri.runtime import numpy_generator


def phantom(shape=(2, 37, 34)):
    """Smooth bodies with edges inside."""
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = (x**2 + y**2 < 0.8) * (1 + 0.5 * (np.abs(x - 0.2) < 0.15) + 0.4 * np.sin(7 * y))
    return np.stack([(k + 1) / shape[0] * body for k in range(shape[0])])


def by_convolutions(first, second, peak):
    """One slice, filters written out: arXiv 1607.06140, equations 8 to 12."""
    images = [convolve2d(255 * f / peak, np.ones((2, 2)) / 4, mode="same")[::2, ::2] for f in (first, second)]
    top = bottom = 0
    for transpose in (False, True):
        filters = []
        for j in (1, 2, 3):
            h = np.ones((2**j, 2**j)) / 2**j
            h[: 2 ** (j - 1)] *= -1
            filters.append(h.T if transpose else h)
        a, b = ([np.abs(convolve2d(f, h, mode="same")) for h in filters] for f in images)
        s = sum((2 * a[j] * b[j] + 30) / (a[j] ** 2 + b[j] ** 2 + 30) for j in (0, 1)) / 2
        w = np.maximum(a[2], b[2])
        top += (w / (1 + np.exp(-4.2 * s))).sum()
        bottom += w.sum()
    mean = top / bottom
    return (np.log(mean / (1 - mean)) / 4.2) ** 2


@pytest.mark.parametrize("shape", [(2, 37, 34), (1, 16, 16), (1, 21, 40)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_convolutions_written_out(shape, dtype):
    target = phantom(shape)
    noisy = target + 0.1 * numpy_generator("haarpsi", shape).random(shape)
    target, noisy = target.astype(dtype), noisy.astype(dtype)
    expected = np.mean([by_convolutions(a, b, target.max()) for a, b in zip(target, noisy, strict=True)])
    assert haarpsi(target, noisy) == pytest.approx(expected, rel=1e-5)
    assert haarpsi(noisy, target, data_range=float(target.max())) == pytest.approx(expected, rel=1e-5)  # symmetric


def test_equal_images_have_one():
    assert haarpsi(phantom(), phantom()) == pytest.approx(1, abs=1e-12)
    half_empty = phantom()
    half_empty[0] = 0
    assert haarpsi(half_empty, half_empty) == pytest.approx(1, abs=1e-12)


def aliased(images, weight):
    return images + weight * np.roll(images, images.shape[2] // 2, axis=2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t, s: gaussian_filter(t, (0, 2 * s, 2 * s)),
        lambda t, s: np.abs(t + 0.2 * s * numpy_generator("damage").standard_normal(t.shape)),
        lambda t, s: aliased(t, 0.5 * s),
    ],
    ids=["blur", "noise", "aliasing"],
)
def test_more_damage_less_similarity(damage):
    values = [haarpsi(phantom(), damage(phantom(), strength)) for strength in (0, 0.25, 0.5, 1)]
    assert all(before > after + 0.01 for before, after in pairwise(values))
    assert 0 < values[-1] < 0.9


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6])
def test_a_common_scale_changes_nothing(scale):
    other = gaussian_filter(phantom(), (0, 1, 1))
    assert haarpsi(scale * phantom(), scale * other) == pytest.approx(haarpsi(phantom(), other), rel=1e-9)


def test_refusals():
    with pytest.raises(InputError, match="slices of 15x16, HaarPSI needs 16x16"):
        haarpsi(np.ones((1, 15, 16)), np.ones((1, 15, 16)))
    with pytest.raises(InputError, match="zero everywhere"):
        haarpsi(np.zeros((1, 16, 16)), np.ones((1, 16, 16)))
