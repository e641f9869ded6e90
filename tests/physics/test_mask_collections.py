"""What the masks of a set cannot teach, against enumeration, and on samples of laws with and without memory."""

from itertools import combinations

import numpy as np
import pytest

from rsdmri.physics import masks
from rsdmri.physics.masks import ambient
from rsdmri.physics.masks.collection import find_gap


def enumerated(outcomes, drop, kept, present):
    """Positions of some outcome that a further mask of another shows to be unacquired."""
    behind = {}
    for mask in outcomes:
        mask = (mask & present).ravel()
        outer = np.flatnonzero(mask & ~kept.ravel())
        for gone in combinations(outer.tolist(), min(drop, len(outer))):
            shown = mask.copy()
            shown[list(gone)] = False
            behind[shown.tobytes()] = behind.get(shown.tobytes(), False) | mask
    some = np.any(outcomes, axis=0).ravel() & present.ravel()
    return (some & ~np.all(list(behind.values()), axis=0)).reshape(present.shape)


def lines(*rows):
    return np.array([[[c == "1" for c in row]] for row in rows])


def centre(width, *positions):
    return np.isin(np.arange(width), positions)[None]


def test_unreachable_positions_of_random_collections():
    rng = np.random.default_rng(1)
    found_some, found_none = 0, 0
    for _ in range(300):
        shape = (1, 6) if rng.random() < 0.5 else (2, 3)
        outcomes = [rng.random(shape) < rng.uniform(0.3, 0.95) for _ in range(rng.integers(1, 6))]
        drop, present = int(rng.integers(0, 5)), rng.random(shape) < 0.9
        kept = np.all(outcomes, axis=0) & (rng.random(shape) < 0.5)
        expected = enumerated(outcomes, drop, kept, present)
        assert np.array_equal(ambient.unreachable(outcomes, drop, kept, present), expected)
        found_some, found_none = found_some + bool(expected.any()), found_none + (not expected.any())
    assert min(found_some, found_none) > 30


def test_one_shared_mask_leaves_its_gaps():
    shared, everything = lines("01011010"), np.ones((1, 8), bool)
    gap = find_gap(shared, 24, 1, centre(8, 3, 4), everything)
    assert np.array_equal(gap.positions, ~shared[0])
    assert "acquired in no scan (all 24 scans share one mask)" in gap.reason
    absent = ~shared[0]  # partial Fourier that acquires all the rest: there is nothing to learn
    assert find_gap(shared, 24, 1, centre(8, 3, 4), ~absent) is None
    assert find_gap(lines("11111111"), 3, 1, centre(8, 3, 4), everything) is None


def test_masks_that_together_lack_a_line():
    gap = find_gap(lines("11011100", "10011110"), 10, 1, centre(8, 3, 4), np.ones((1, 8), bool))
    assert np.flatnonzero(gap.positions).tolist() == [2, 7]
    assert "10 scans have 2 masks" in gap.reason


def test_few_masks_of_many_scans_are_judged_exactly():
    shifted, acs, everything = lines("10011010", "01011001", "00111100"), centre(8, 3, 4), np.ones((1, 8), bool)
    assert shifted.any(axis=0).all()
    gap = find_gap(shifted, 30, 1, acs, everything)
    assert np.array_equal(gap.positions, ~acs)
    assert "which of 3 masks" in gap.reason
    assert "acquisition.further_drop=2" in gap.cure
    assert find_gap(shifted, 30, 2, acs, everything) is None  # nothing outside the centre is shown
    assert find_gap(shifted, 5, 1, acs, everything) is None  # too few scans to say so
    every = [acs | np.isin(np.arange(8), pair)[None] for pair in combinations((0, 1, 2, 5, 6, 7), 2)]
    assert find_gap(np.array(every), 30, 1, acs, everything) is None  # any line may lie behind any other


def drawn(law, count):
    return np.unique(np.stack([law.draw("collection", i).acquired.numpy() for i in range(count)]), axis=0)


@pytest.mark.parametrize("family", ["random", "variable-density", "gaussian"])
def test_samples_of_independent_lines_pass(family):
    law = masks.SamplingLaw(family, (1, 64), 4, 0.08)
    for count in (300, 700):
        sample = drawn(law, count)
        assert len(sample) == count
        assert find_gap(sample, count, law_drop(64), law.acs().numpy(), np.ones((1, 64), bool)) is None


def law_drop(width):
    return masks.further_drop(width, 4)


def test_samples_of_independent_points_pass_and_poisson_discs_do_not():
    independent = masks.SamplingLaw("random", (12, 14), 2.5, 0.2)
    sample = drawn(independent, 700)
    present = np.ones((12, 14), bool)
    assert find_gap(sample, 700, 10, independent.acs().numpy(), present) is None
    thinned = sample.copy()  # a point excludes its right neighbour
    thinned[..., 1:] &= ~sample[..., :-1]
    gap = find_gap(thinned, 700, 10, np.zeros((12, 14), bool), present & thinned.any(axis=0))
    assert gap.positions.mean() > 0.9
    assert "never acquired together" in gap.reason


def test_grids_with_lines_of_chance_are_found_out():
    """Each scan a grid of its own offset and a few random lines of one half: 400 different masks."""
    rng = np.random.default_rng(3)
    sample = np.zeros((400, 1, 32), bool)
    for mask in sample:
        mask[0, int(rng.integers(4)) :: 4] = True
        mask[0, rng.choice(np.arange(16), 5, replace=False)] = True
    kept, everything = np.zeros((1, 32), bool), np.ones((1, 32), bool)
    gap = find_gap(np.unique(sample, axis=0), 400, 2, kept, everything)
    assert np.array_equal(gap.positions[0], np.arange(32) >= 16)


def test_lines_that_are_always_acquired_must_be_fewer_than_those_dropped():
    law = masks.SamplingLaw("random", (1, 64), 4, 0.08)
    sample = drawn(law, 50)
    sample[..., [2, 60]] = True
    kept, everything = law.acs().numpy(), np.ones((1, 64), bool)
    gap = find_gap(sample, 50, 2, kept, everything)
    assert np.flatnonzero(gap.positions).tolist() == [2, 60]
    assert "acquisition.further_drop=3" in gap.cure
    assert find_gap(sample, 50, 3, kept, everything) is None
