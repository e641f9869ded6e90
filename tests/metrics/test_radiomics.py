"""Radiomic features against loops over their definitions, worked examples, and what spoils images."""

import numpy as np
import pytest
from heads import blurred, heads, noisy, rng, zero_filled

from rsdmri.errors import InputError
from rsdmri.metrics.distribution import frechet_distance, kernel_distance
from rsdmri.metrics.features import standardised
from rsdmri.metrics.radiomics import (
    BIN,
    LEVELS,
    RadiomicsFeatures,
    co_occurrence,
    discretised,
    first_order,
    radiomics,
    run_lengths,
    size_zones,
    tone_differences,
)

# The example image of the IBSI reference manual.
EXAMPLE = np.array([[1, 2, 2, 3], [1, 2, 3, 3], [4, 2, 4, 1], [4, 1, 2, 3]])


def pairs(grey, steps):
    """Levels of every ordered pair of pixels that a step of ``steps``, or its opposite, joins."""
    height, width = grey.shape
    for y, x in np.ndindex(height, width):
        for dy, dx in steps:
            for sign in (1, -1):
                v, u = y + sign * dy, x + sign * dx
                if 0 <= v < height and 0 <= u < width:
                    yield grey[y, x], grey[v, u]


def entropy(p):
    p = np.asarray([v for v in p if v > 0])
    return -(p * np.log2(p)).sum()


STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


def grey_image(shape=(9, 7), levels=6, seed=0):
    return rng("grey", seed).integers(1, levels + 1, shape)


def test_co_occurrence_by_its_pairs():
    grey = grey_image()
    found = np.array(list(pairs(grey, STEPS)), float)
    i, j = found.T
    mean, variance = i.mean(), i.var()
    d, s = np.abs(i - j), i + j
    p = {ij: np.mean((i == ij[0]) & (j == ij[1])) for ij in {tuple(pair) for pair in found}}
    pi = {v: np.mean(i == v) for v in set(i)}
    hx, hxy = entropy(pi.values()), entropy(p.values())
    hxy1 = -sum(q * np.log2(pi[a] * pi[b]) for (a, b), q in p.items())
    hxy2 = -sum(pi[a] * pi[b] * np.log2(pi[a] * pi[b]) for a in pi for b in pi)
    expected = [
        (i * j).mean(),
        mean,
        *(((s - 2 * mean) ** power).mean() for power in (4, 3, 2)),
        (d**2).mean(),
        np.corrcoef(i, j)[0, 1],
        d.mean(),
        entropy([np.mean(d == v) for v in set(d)]),
        d.var(),
        sum(q**2 for q in p.values()),
        hxy,
        (hxy - hxy1) / hx,
        np.sqrt(1 - np.exp(-2 * np.log(2) * (hxy2 - hxy))),
        (1 / (1 + d**2)).mean(),
        (1 / (1 + d**2 / LEVELS**2)).mean(),
        (1 / (1 + d)).mean(),
        (1 / (1 + d / LEVELS)).mean(),
        np.where(d > 0, 1 / np.maximum(d, 1) ** 2, 0).mean(),
        max(p.values()),
        entropy([np.mean(s == v) for v in set(s)]),
        variance,
    ]
    np.testing.assert_allclose(co_occurrence(grey), expected, rtol=1e-10)


def runs_of(line):
    """Level and length of the runs of one line of pixels."""
    found = []
    for level in line:
        if found and found[-1][0] == level:
            found[-1][1] += 1
        else:
            found.append([level, 1])
    return found


def group_features(groups, pixels):
    i, j = np.array(groups, float).T
    n = len(groups)
    of_i = [np.sum(i == v) for v in set(i)]
    of_j = [np.sum(j == v) for v in set(j)]
    both = [np.mean((i == a) & (j == b)) for a, b in {tuple(g) for g in map(tuple, groups)}]
    return [
        (j**-2).mean(),
        (j**2).mean(),
        np.square(of_i).sum() / n,
        np.square(of_i).sum() / n**2,
        np.square(of_j).sum() / n,
        np.square(of_j).sum() / n**2,
        n / pixels,
        i.var(),
        j.var(),
        entropy(both),
        (i**-2).mean(),
        (i**2).mean(),
        (j**-2 * i**-2).mean(),
        (i**2 / j**2).mean(),
        (j**2 / i**2).mean(),
        (i**2 * j**2).mean(),
    ]


@pytest.mark.parametrize("shape", [(9, 7), (4, 8), (5, 5)])
def test_run_lengths_by_walking_along_lines(shape):
    grey = grey_image(shape, levels=3)
    height, width = shape
    lines = [*grey, *grey.T]
    lines += [np.diagonal(g, k) for g in (grey, grey[:, ::-1]) for k in range(1 - height, width)]
    groups = [run for line in lines for run in runs_of(line)]
    np.testing.assert_allclose(run_lengths(grey), group_features(groups, 4 * grey.size), rtol=1e-10)


def test_runs_along_rows_of_the_worked_example():
    from rsdmri.metrics.radiomics import _runs

    levels, lengths = _runs(EXAMPLE)
    table = np.zeros((4, 2), int)
    np.add.at(table, (levels - 1, lengths - 1), 1)
    np.testing.assert_array_equal(table, [[4, 0], [3, 1], [2, 1], [3, 0]])


def test_size_zones_by_flood_fill():
    grey = grey_image((8, 11), levels=3)
    left, groups = set(np.ndindex(grey.shape)), []
    while left:
        front = [left.pop()]
        level, size = grey[front[0]], 0
        while front:
            y, x = front.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            same = {p for p in near if grey[p] == level}
            left -= same
            front += same
        groups.append((level, size))
    np.testing.assert_allclose(size_zones(grey), group_features(groups, grey.size), rtol=1e-10)


def test_tone_differences_by_their_definitions():
    grey = grey_image((7, 6), levels=4)
    s, n = dict.fromkeys(range(1, 5), 0.0), dict.fromkeys(range(1, 5), 0)
    for y, x in np.ndindex(grey.shape):
        block = grey[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        s[grey[y, x]] += abs(grey[y, x] - (block.sum() - grey[y, x]) / (block.size - 1))
        n[grey[y, x]] += 1
    p = {i: c / grey.size for i, c in n.items()}
    both = [(i, j) for i in p for j in p]
    expected = [
        1 / sum(p[i] * s[i] for i in p),
        sum(p[i] * p[j] * (i - j) ** 2 for i, j in both) / (4 * 3) * sum(s.values()) / grey.size,
        sum(p[i] * s[i] for i in p) / sum(abs(i * p[i] - j * p[j]) for i, j in both),
        sum(abs(i - j) * (p[i] * s[i] + p[j] * s[j]) / (p[i] + p[j]) for i, j in both) / grey.size,
        sum((p[i] + p[j]) * (i - j) ** 2 for i, j in both) / sum(s.values()),
    ]
    np.testing.assert_allclose(tone_differences(grey), expected, rtol=1e-10)


def test_first_order_statistics_of_known_values():
    image = np.arange(1, 101.0).reshape(10, 10) / 100
    grey = np.repeat([1, 2, 3, 4], 25).reshape(10, 10)
    found = first_order(image, grey)
    mean, variance, skewness, kurtosis, median, p10, p90, largest = found[:8]
    assert (mean, median, largest) == pytest.approx((0.505, 0.505, 1))
    assert variance == pytest.approx((100**2 - 1) / 12 / 1e4)
    assert skewness == pytest.approx(0, abs=1e-12)
    assert kurtosis == pytest.approx(1.8 - 2.4 / (100**2 - 1), rel=1e-6)  # of a discrete uniform law
    assert (p10, p90) == pytest.approx((0.109, 0.901))
    inside = image[(image >= 0.109) & (image <= 0.901)]
    assert found[8:12] == pytest.approx(
        (0.495, 0.25, np.abs(inside - inside.mean()).mean(), np.sqrt((image**2).mean()))
    )
    assert found[12:] == pytest.approx((2, 0.25))


def test_bins_start_at_zero_and_the_last_is_open():
    image = np.array([[0, BIN * 0.99, BIN * 1.01], [BIN * (LEVELS - 0.5), 9, 1e6]])
    np.testing.assert_array_equal(discretised(image), [[1, 1, 2], [LEVELS, LEVELS, LEVELS]])


def test_texture_knows_neither_flips_nor_turns():
    image = np.abs(heads(1, (32, 40)))[0]
    turned = (image[::-1], image[:, ::-1], image.T, np.rot90(image))
    for other in turned:
        np.testing.assert_allclose(radiomics(other[None]), radiomics(image[None]), rtol=1e-9)


def test_each_image_stands_alone_and_order_changes_nothing():
    images = np.abs(noisy(heads(6), 0.02))
    f = radiomics(images)
    np.testing.assert_array_equal(radiomics(images[2:3])[0], f[2])
    np.testing.assert_array_equal(radiomics(images[::-1]), f[::-1])


def test_brightness_counts():
    images = np.abs(heads(40))
    reference = radiomics(np.abs(heads(40, seed=1)))
    honest = frechet_distance(*standardised(radiomics(images), reference))
    assert frechet_distance(*standardised(radiomics(1.3 * images), reference)) > 2 * honest


@pytest.mark.parametrize("size", [(8, 8), (33, 47), (48, 40)])
@pytest.mark.parametrize("value", [0.0, 0.4, 50.0])
def test_constant_images_are_finite(size, value):
    f = radiomics(np.full((2, *size), value))
    assert f.shape == (2, RadiomicsFeatures.dimensions)
    assert np.isfinite(f).all()


def test_no_image_gives_no_features():
    assert radiomics(np.zeros((0, 40, 40))).shape == (0, 73)


@pytest.fixture(scope="module")
def reference():
    return radiomics(np.abs(noisy(heads(40, (36, 33)), 0.02)))


@pytest.mark.parametrize(
    ("spoil", "strengths"),
    [(blurred, (0.7, 1, 2)), (noisy, (0.02, 0.05, 0.1)), (zero_filled, (1.5, 2, 4))],
)
def test_distances_grow_with_blur_noise_and_undersampling(spoil, strengths, reference):
    images = noisy(heads(40, (36, 33), seed=1), 0.02)
    for distance in (frechet_distance, kernel_distance):
        sets = [images, *(spoil(images, s) for s in strengths)]
        distances = [distance(*standardised(radiomics(np.abs(x)), reference)) for x in sets]
        assert np.all(np.diff(distances) > 0), (distance.__name__, distances)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 7, 40)), "at least 8"),
        (np.zeros((2, 40, 40), complex), "magnitude"),
        (np.full((2, 40, 40), np.nan), "NaN"),
    ],
)
def test_bad_input_is_refused(images, message):
    with pytest.raises(InputError, match=message):
        radiomics(images)
