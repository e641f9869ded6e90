"""fastMRI's five families against a second derivation, line by line, and where fastMRI itself fails."""

import numpy as np
import pytest

from rsdmri.errors import InputError
from rsdmri.physics import masks

WIDTHS = [16, 49, 57, 67, 320, 368, 372, 396]
NAMES = ["file1000000.h5", "file_brain_AXT2_200_6002441.h5", "a", "Größe.h5"]


def reference(family, width, pairs, name):
    """Set of the acquired lines, counted from the definition of each family."""
    rng = np.random.RandomState(tuple(map(ord, name)))
    acceleration, fraction = pairs[rng.randint(0, len(pairs))]
    n = round(width * fraction)
    outer = set()
    if family == "random":
        probability = (width / acceleration - n) / (width - n)
        outer = {k for k, u in enumerate(rng.random_sample(width)) if u < probability}
    elif family == "equispaced":
        first = rng.randint(acceleration)
        outer = {k for k in range(width) if k >= first and (k - first) % acceleration == 0}
    elif family == "equispaced_fraction":
        step = acceleration * (n - width) / (n * acceleration - width)
        first, count = rng.randint(round(step)), 0
        while first + count * step < width - 1:
            outer.add(round(first + count * step))
            count += 1
    else:
        step = acceleration
        if family == "magic_fraction":
            total = round(width / acceleration)
            n = max(min(n, total), 1)
            step = round(width / (total - n))
        first = rng.randint(step)
        right, left = (first + 2, first - 1) if first % 2 else (first + 1, first + 2)
        frequencies = list(range(right, (width + 1) // 2, step))
        frequencies += [-1 - k for k in range(left, width // 2, step)]
        outer = {k + width // 2 for k in frequencies}
    start = (width - n + 1) // 2
    return outer | set(range(start, start + n))


@pytest.mark.parametrize("family", masks.FASTMRI_FAMILIES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_line_is_fastmris(family, width):
    compared = 0
    for acceleration, fraction in [(4, 0.08), (8, 0.04), (2, 0.16), (3, 0.1), (5, 0.02), (6, 0), (1, 0.3)]:
        if family == "magic_fraction" and round(width / acceleration) <= max(round(width * fraction), 1):
            continue
        for name in NAMES:
            law = {"acceleration": acceleration, "center_fraction": fraction}
            mask = masks.fastmri_mask(family, width, filename=name, **law)
            found = set(mask.nonzero().flatten().tolist())
            assert found == reference(family, width, [(acceleration, fraction)], name), (law, name)
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("family", masks.FASTMRI_FAMILIES)
def test_the_choice_among_pairs_is_drawn_first(family):
    pairs, seen = [(4, 0.08), (8, 0.04)], set()
    for index in range(12):
        name = f"file{index}.h5"
        mask = masks.fastmri_mask(
            family, 368, acceleration=[p[0] for p in pairs], center_fraction=[p[1] for p in pairs], filename=name
        )
        assert set(mask.nonzero().flatten().tolist()) == reference(family, 368, pairs, name)
        seen.add(int(mask.sum()) > 66)
    assert seen == {True, False}


def test_magic_lines_of_one_side_fall_between_those_of_the_other():
    mask = masks.fastmri_mask("magic", 369, acceleration=4, center_fraction=0, filename="file1000000.h5")
    right, left = mask[185:], mask[:184].flip(0)  # k = 1, 2, ... and -1, -2, ...
    assert int(right.sum()) > 40
    assert not bool((right & left).any())


@pytest.mark.parametrize("family", masks.FASTMRI_FAMILIES)
def test_achieved_accelerations(family):
    expected = {"random": 4.0, "equispaced": 3.22, "equispaced_fraction": 4.0, "magic": 3.22, "magic_fraction": 4.28}
    probability = masks.inclusion(family, 372, acceleration=4, center_fraction=0.08)
    assert 372 / float(probability.sum()) == pytest.approx(expected[family], abs=0.02)


@pytest.mark.parametrize(
    ("family", "width", "acceleration", "fraction"),
    [
        ("magic_fraction", 368, 4, 0.37),
        ("magic_fraction", 368, 4, 0.25),
        ("magic_fraction", 16, 16, 0),
        ("equispaced_fraction", 368, 4, 0.25),
        ("equispaced_fraction", 368, 8, 0.125),
        ("equispaced_fraction", 368, 1, 1),
    ],
)
def test_where_fastmri_crashes_the_error_names_the_cure(family, width, acceleration, fraction):
    law = {"acceleration": acceleration, "center_fraction": fraction}
    with pytest.raises(InputError, match=r"no line for .*lower the acceleration or the center fraction"):
        masks.fastmri_mask(family, width, filename="a.h5", **law)
    if acceleration > 1:
        with pytest.raises(InputError, match="lower the acceleration or the center fraction"):
            masks.draw_mask(family, width, key=("a",), **law)
        with pytest.raises(InputError, match="lower the acceleration or the center fraction"):
            masks.inclusion(family, width, **law)


@pytest.mark.parametrize("family", ["equispaced", "magic"])
def test_spacings_are_whole(family):
    with pytest.raises(InputError, match=rf"use 3 or 4, or the family {family}_fraction"):
        masks.fastmri_mask(family, 64, acceleration=3.5, center_fraction=0.1, filename="a")
    law = {"center_fraction": 0.1, "filename": "a"}
    assert masks.fastmri_mask(family, 64, acceleration=4.0, **law).equal(
        masks.fastmri_mask(family, 64, acceleration=4, **law)
    )


def test_equispaced_lines_are_equally_spaced():
    mask = masks.draw_mask("equispaced", 97, acceleration=5, center_fraction=0.08, key=(0,))
    start = (97 - 8 + 1) // 2
    mask[start : start + 8] = False
    assert set((mask.nonzero().flatten() % 5).tolist()) == {int(mask.nonzero()[0]) % 5}
    assert set(mask[: start - 1].nonzero().flatten().diff().tolist()) == {5}


def test_pairs_must_be_pairs():
    with pytest.raises(InputError, match="2 accelerations, 1 center fractions"):
        masks.fastmri_mask("random", 64, acceleration=[4, 8], center_fraction=0.08, filename="a")
