"""Divergence: what counts as one, which items are to blame, what is drawn after a roll-back."""

import math

import pytest

from rsdmri.training.manifest import DrawnItem, RollBack
from rsdmri.training.recovery import Draws, Guard, outstanding, to_blame
from rsdmri.training.stage import step_key


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "gradient", "score_gap"])
def test_every_number_of_a_step_must_be_one(name, value):
    guard = Guard()
    assert guard.problem({"loss": 1.0, "gradient": 2.0, "score_gap": 0.0}) is None
    assert guard.problem({"loss": 1.0, "gradient": 2.0, "score_gap": 0.0, name: value}) == f"{name} not a number"
    assert list(guard.norms) == [2.0]


def test_a_spike_is_a_thousand_times_the_median_of_the_last_200_after_100():
    guard = Guard()
    norms = [1e6] * 50 + [1.0 + k / 1000 for k in range(49)]
    assert [guard.problem({"gradient": norm}) for norm in norms] == [None] * 99
    assert guard.typical is None
    assert guard.problem({"gradient": 1e9}) is None  # there are too few to judge by
    for k in range(400):
        assert guard.problem({"gradient": 3.0 + (k % 5) / 10}) is None
    assert guard.typical == pytest.approx(3.2)
    assert guard.problem({"gradient": 3190.0}) is None
    assert guard.problem({"gradient": 3250.0}) == "gradient norm 3.25e+03 where 3.2 is usual"
    assert len(guard.norms) == 200
    assert guard.norms[-1] == 3190.0  # a spike is not taken into account
    resumed = Guard(list(guard.norms))
    assert resumed.problem({"gradient": 3250.0}) is not None
    assert Guard([0.0] * 200).problem({"gradient": 1.0}) is None  # no gradient so far says nothing


@pytest.mark.parametrize(
    ("norms", "typical", "found"),
    [
        ([1, math.inf, 2, 3], None, [1]),
        ([1, math.inf, 2, math.inf], 1.0, [1, 3]),
        ([math.inf, math.inf, 2, math.inf], 1.0, []),  # rather the weights
        ([math.inf], None, [0]),
        ([1, 2, 1500.0, 3], 1.0, [2]),
        ([1, 2, 1500.0, 3], None, []),
        ([1, 2, 900.0, 3], 1.0, []),
        ([1, 5000.0, math.inf, 3], 1.0, [2]),
    ],
)
def test_who_is_to_blame(norms, typical, found):
    assert to_blame(norms, typical) == found


def test_draws_change_from_the_step_that_was_gone_back_to():
    items = (DrawnItem(item=7, file="a.h5", slice=1), DrawnItem(item=3, file="b.h5", slice=0))
    rolls = [
        RollBack(step=14, back_to=10, problem="loss not a number", left_out=items[:1]),
        RollBack(step=14, back_to=10, problem="loss not a number"),
        RollBack(step=25, back_to=20, problem="loss not a number", left_out=items[1:]),
        RollBack(step=28, back_to=20, problem="loss not a number"),
    ]
    draws = Draws(rolls)
    assert [draws.left_out(k) for k in (0, 9, 10, 19, 20, 99)] == [set(), set(), {7}, {7}, {7, 3}, {7, 3}]
    assert [draws.anew(k) for k in (0, 9, 10, 19, 20, 99)] == [0, 0, 1, 1, 2, 2]
    assert [r.step for r in outstanding(rolls, 20)] == [25, 28]


def test_keys_without_roll_backs_are_what_they_always_were():
    assert step_key(5, "teacher", 3, 0) == (5, "teacher", 3)
    assert len({step_key(5, "teacher", 3, k) for k in range(4)}) == 4
    assert step_key(5, "teacher", 3, 2)[-1] == 3
