"""The ambient condition against enumeration: every mask, every further mask, every position."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch

from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.masks import ambient
from rsdmri.physics.masks.poisson import sweep

INDEPENDENT = ("random", "variable-density", "gaussian")


def enumerated(support, drop, kept, present):
    """Whether every present position may have been acquired, whatever further mask of the masks ``support`` is seen."""
    behind = {}
    for mask in {tuple((mask & present).ravel().tolist()) for mask in support}:
        mask = np.array(mask)
        outer = np.flatnonzero(mask & ~kept.ravel())
        for gone in combinations(outer.tolist(), min(drop, len(outer))):
            shown = mask.copy()
            shown[list(gone)] = False
            key = shown.tobytes()
            behind[key] = behind.get(key, False) | mask
    return all(bool(possible[present.ravel()].all()) for possible in behind.values())


def support_of(law):
    """Every mask with positive probability, from the density where positions are independent, else from many draws."""
    density = law.density().numpy()
    if law.family in INDEPENDENT:
        choices = [(False, True) if 0 < p < 1 else (p == 1,) for p in density.ravel()]
        return [np.array(mask).reshape(law.shape) for mask in product(*choices)]
    return [law.draw("support", i).acquired.numpy() for i in range(150)]


def allowed(law, drop, absent, kept):
    try:
        law.check_ambient(drop, absent=torch.from_numpy(absent), kept=kept)
    except InputError:
        return False
    return True


LAWS = [
    *((family, (1, 7), r, f) for family in INDEPENDENT for r in (1.3, 2) for f in (0.2, 0.4)),
    ("random", (1, 8), 4, 0.25),  # the ACS is all that there is
    ("random", (1, 6), 1, 0.2),
    ("random", (2, 4), 2, 0.3),
    *(("equispaced", (1, w), r, f) for w in (8, 11) for r in (1, 2, 3) for f in (0, 0.2)),
    *(("magic", (1, w), r, f) for w in (8, 11) for r in (1, 2, 3) for f in (0, 0.2)),
    *(("equispaced_fraction", (1, w), r, 0.2) for w in (9, 12) for r in (2, 2.5, 3)),
    *(("magic_fraction", (1, w), r, 0.1) for w in (9, 12) for r in (2, 3)),
    *(("caipi", (4, 4), r, 0.3) for r in (1, 2, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("family", "shape", "acceleration", "fraction"), LAWS)
def test_the_assertion_agrees_with_enumeration(family, shape, acceleration, fraction):
    law = masks.SamplingLaw(family, shape, acceleration, fraction)
    support = support_of(law)
    for edge, kept in product((0, 1, 2), (None, law.acs())):
        absent = np.zeros(shape, dtype=bool)
        absent[:, shape[1] - edge :] = True
        inner = (law.kept() if kept is None else kept).numpy()
        for drop in (0, 1, 2, 3, 5, 8, 20):
            truth = enumerated(support, drop, inner, ~absent)
            assert allowed(law, drop, absent, kept) == truth, (edge, kept is None, drop)


def test_both_answers_occur_in_what_was_enumerated():
    def answers(family, shape, acceleration, fraction, **more):
        law = masks.SamplingLaw(family, shape, acceleration, fraction, **more)
        return {drop for drop in range(21) if allowed(law, drop, np.zeros(shape, dtype=bool), None)}

    assert answers("random", (1, 7), 2, 0.2) == set(range(1, 21))
    assert answers("equispaced", (1, 8), 2, 0.2) == set(range(3, 21))  # 3 lines of 8 outside the ACS: none is shown
    assert answers("magic", (1, 11), 3, 0.2) == set()  # some lines are in no mask
    assert answers("random", (1, 8), 4, 0.25) == set()
    assert answers("random", (1, 8), 1, 0.25) == set(range(21))


def test_shared_lines_do_not_tell_grids_apart():
    grids = [np.array([[1, 1, 0, 0, 1]], bool), np.array([[1, 0, 1, 0, 1]], bool), np.array([[1, 0, 0, 1, 1]], bool)]
    density = np.mean(grids, axis=0)
    nothing, all_of_it = np.zeros((1, 5), bool), np.ones((1, 5), bool)
    for drop in range(5):
        truth = enumerated(grids, drop, nothing, all_of_it)
        assert truth == (drop >= 3)
    ambient.check_outcomes(grids, density, 3, nothing, all_of_it)
    with pytest.raises(InputError, match="gives the grid away"):
        ambient.check_outcomes(grids, density, 2, nothing, all_of_it)
    kept = grids[0] & grids[1]
    ambient.check_outcomes(grids, density, 1, kept, all_of_it)
    assert enumerated(grids, 1, kept, all_of_it)


def test_random_collections_of_masks():
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(300):
        grids = [rng.random((1, 6)) < rng.uniform(0.3, 0.95) for _ in range(rng.integers(1, 6))]
        density, drop = np.mean(grids, axis=0), int(rng.integers(0, 5))
        present = np.any(grids, axis=0)
        kept = np.all(grids, axis=0) & (rng.random((1, 6)) < 0.5)
        try:
            ambient.check_outcomes(grids, density, drop, kept, present)
            answers.append(True)
        except InputError:
            answers.append(False)
        assert answers[-1] == enumerated(grids, drop, kept, present), (grids, drop, kept)
    assert 30 < sum(answers) < 270


def test_poisson_discs_break_the_condition_and_are_refused():
    nothing, spacing = np.zeros((2, 3), dtype=bool), np.full((2, 3), 1.2)
    support = [sweep(np.array(order), spacing, nothing) for order in permutations(range(6))]
    assert bool(np.mean(support, axis=0).all())
    assert not any(enumerated(support, drop, nothing, ~nothing) for drop in range(3))
    law = masks.SamplingLaw("poisson", (20, 24), 4, 0.2)
    with pytest.raises(InputError, match=r"keep a distance.*independently"):
        law.check_ambient(30)
    law.check_ambient(480)  # none is shown
    masks.SamplingLaw("poisson", (20, 24), 1, 0.2).check_ambient(5)


def test_refusals_name_reason_and_cure():
    with pytest.raises(InputError, match=r"gives the grid away.*use a family .*or drop all 30 positions"):
        masks.SamplingLaw("equispaced", (1, 128), 4, 0.08).check_ambient(7)
    with pytest.raises(InputError, match="gives the grid away"):
        masks.SamplingLaw("caipi", (32, 32), 4, 0.2).check_ambient(40)
    with pytest.raises(InputError, match=r"24 of 32 positions are never acquired.*lower the acceleration"):
        masks.SamplingLaw("random", (1, 32), 4, 0.25).check_ambient(4)
    with pytest.raises(InputError, match=r"1 of 32 positions are never acquired"):
        masks.SamplingLaw("variable-density", (1, 32), 4, 0.1, masks.Falloff(floor=0)).check_ambient(4)
    with pytest.raises(InputError, match="drops nothing"):
        masks.SamplingLaw("random", (1, 32), 4, 0.1).check_ambient(0)
    law = masks.SamplingLaw("variable-density", (1, 64), 1.5, 0.1)
    sure = int((law.density() == 1).sum() - law.acs().sum())
    assert sure > 2
    with pytest.raises(InputError, match=rf"{sure} positions outside the kept centre.*drop more than {sure}"):
        law.check_ambient(sure, kept=law.acs())
    law.check_ambient(sure + 1, kept=law.acs())
    law.check_ambient(1)  # by default what is sure stays


def test_absent_positions_need_not_be_learnt():
    law = masks.SamplingLaw("variable-density", (1, 32), 4, 0.1, masks.Falloff(floor=0))
    absent = torch.zeros(32, dtype=torch.bool)
    absent[0] = True
    law.check_ambient(4, absent=absent)
