"""Time budgets of reconstruction, by a clock that only the work moves."""

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri import read_scan
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.reconstruction.settings import method_settings
from rsdmri.workflows import reconstruct_files as workflow
from rsdmri.workflows.budget import Budget, Choice, TimeLimit, parse_duration
from rsdmri.workflows.reconstruct import METHODS
from rsdmri.workflows.reconstruct_files import reconstruct_files

COSTS = {"rsd": (0.5, 1.0), "l1-wavelet": (0.5, 0.0), "tv": (0.8, 0.0), "sense": (0.1, 0.0), "zero-filled": (0.01, 0.0)}


class Machine:
    """Its clock stands still but for reconstructions: seconds of a slice, and of each of its draws."""

    def __init__(self, costs=None):
        self.time, self.costs, self.trials = 100.0, costs or COSTS, []

    def clock(self):
        return self.time

    def trial(self, scan, method, samples):
        fixed, draw = self.costs[method]
        self.time += len(scan.kspace) * (fixed + samples * draw)
        self.trials.append((method, samples, scan))


def scan_of(slices, size=8):
    kspace = np.ones((slices, 1, size, size), np.complex64)
    kspace[0] = 0
    kspace[-1] *= 2
    return Scan("scan", kspace, np.ones((1, size), bool), np.zeros(size, bool), (size, size), False)


def choose(seconds, slices=10, method="rsd", samples=8, scans=1, machine=None):
    machine = machine or Machine()
    budget = Budget(TimeLimit(seconds, clock=machine.clock), scans)
    budget.begin()
    choice = budget.choose(scan_of(slices), method, samples, drawn=method == "rsd", trial=machine.trial)
    return choice, machine, budget


def test_all_draws_where_they_fit():
    choice, machine, _ = choose(1000)
    assert choice == Choice("rsd", 8)
    assert [(method, samples) for method, samples, _ in machine.trials] == [("rsd", 1), ("rsd", 1), ("rsd", 3)]
    assert all(np.array_equal(one.kspace, scan_of(10).kspace[-1:]) for *_, one in machine.trials)


@pytest.mark.parametrize("seconds", [30, 45, 60, 75])
def test_as_many_draws_as_fit_and_no_slice_less(seconds):
    choice, machine, _ = choose(seconds)
    trials = 1.5 + 1.5 + 3.5
    left = 0.9 * (seconds - trials) - 1.5
    assert choice.samples == int((left / 10 - 0.5) / 1.0)
    assert 1 <= choice.samples < 8
    assert f"--budget {seconds}s: {choice.samples} of 8 draws fit" in choice.warning
    machine.trial(scan_of(10), choice.method, choice.samples)
    assert machine.time - 100 < seconds


def test_one_draw_has_no_spread():
    choice, *_ = choose(25)
    assert choice.samples == 1
    assert choice.warning.endswith("no spread from one draw")


@pytest.mark.parametrize(
    ("seconds", "method", "expected"),
    [
        (15, "rsd", "l1-wavelet"),
        (10, "rsd", "sense"),
        (6, "tv", "sense"),
        (3, "l1-wavelet", "zero-filled"),
        (15, "tv", "tv"),
        (9, "l1-wavelet", "l1-wavelet"),
    ],
)
def test_a_cheaper_method_where_not_one_draw_fits(seconds, method, expected):
    choice, machine, _ = choose(seconds, method=method)
    assert (choice.method, choice.samples) == (expected, 8 if expected == method else 1)
    assert (choice.warning is None) == (expected == method)
    if choice.warning:
        assert f"{method} does not fit, {expected} instead" in choice.warning
    machine.trial(scan_of(10), choice.method, choice.samples)
    assert machine.time - 100 < seconds


def test_the_cheapest_method_where_nothing_fits():
    choice, *_ = choose(0.5)
    assert choice.method == "zero-filled"
    assert "takes longer than what is left" in choice.warning
    assert "instead" not in choose(0.1, method="zero-filled")[0].warning


def test_a_long_method_is_timed_by_a_short_run():
    machine = Machine({**COSTS, "adps": (0.5, 0.01)})
    budget = Budget(TimeLimit(100, clock=machine.clock), 1)
    budget.begin()
    choice = budget.choose(scan_of(10), "adps", 8, drawn=True, trial=machine.trial, stretch=125)
    assert machine.time < 102  # all that the trials took
    left = 0.9 * (100 - 0.51 - 0.51 - 0.53) - 1.5
    assert choice.samples == int((left / 10 - 0.5) / (125 * 0.01)) == 6


@pytest.mark.parametrize("method", [*METHODS])
def test_trials_differ_from_whole_runs_in_their_evaluations_alone(method):
    whole = method_settings(method)
    trial = whole.trial()
    assert trial.evaluations <= min(5, whole.evaluations)
    changed = {name for name, value in whole if getattr(trial, name) != value}
    assert changed <= {"steps", "iterations"}
    assert bool(changed) == (whole.evaluations > 5)


def test_scans_share_the_time_and_rates_are_measured_once():
    machine = Machine()
    budget = Budget(TimeLimit(150, clock=machine.clock), 3)
    chosen = []
    for _ in range(3):
        budget.begin()
        choice = budget.choose(scan_of(10), "rsd", 8, drawn=True, trial=machine.trial)
        machine.trial(scan_of(10), choice.method, choice.samples)
        started = budget.now()
        machine.time += 0.2
        budget.wrote(started)
        chosen.append(choice.samples)
    assert [method for method, _, one in machine.trials if len(one.kspace) == 1] == ["rsd"] * 3
    assert chosen == sorted(chosen)
    assert chosen[0] >= 3
    assert machine.time - 100 < 150


def test_time_that_passed_before_counts():
    machine = Machine()
    late = Budget(TimeLimit(60, 70, machine.clock), 1)
    late.begin()
    assert late.choose(scan_of(10), "rsd", 8, drawn=True, trial=machine.trial) == Choice(
        "rsd", 1, "--budget 60s: 1 of 8 draws fit; no spread from one draw"
    )


def test_files_say_what_was_chosen(simulated, tmp_path, monkeypatch):
    files = sorted(simulated.glob("*.h5"))[:2]
    machine, real, lines = Machine({name: (5 * a, b) for name, (a, b) in COSTS.items()}), workflow.reconstruct, []

    def slow(scan, **options):
        machine.trial(scan, options["method"], options["samples"])
        return real(scan, **options)

    monkeypatch.setattr(workflow, "reconstruct", slow)
    options = {"formats": ["h5"], "say": lines.append, "budget": TimeLimit(20, clock=machine.clock)}
    rows = reconstruct_files(files, tmp_path, method="l1-wavelet", acceleration=2, **options)
    assert [row["method"] for row in rows] == ["sense", "l1-wavelet"]  # the second has what the first left
    slices = len(read_scan(files[0]).kspace)
    assert sum(len(one.kspace) == slices for *_, one in machine.trials) == 2
    assert machine.time - 100 < 20
    for row, file in zip(rows, files, strict=True):
        with h5py.File(row["path"]) as written:
            attrs, found = dict(written.attrs), written["reconstruction"][()]
        assert (attrs["method"], attrs["method_asked"], attrs["budget_seconds"]) == (row["method"], "l1-wavelet", 20)
        assert np.array_equal(found, real(file, method=row["method"], acceleration=2).volume)  # the choice decides all
    assert sum("within --budget 20s" in line for line in lines) == 2
    assert sum("warning: --budget 20s: l1-wavelet does not fit, sense instead" in line for line in lines) == 1
    again = reconstruct_files(files, tmp_path, method="l1-wavelet", acceleration=2, **options)
    assert all("skipped" in row for row in again)


def test_a_budget_that_is_no_time_is_refused():
    with pytest.raises(InputError, match="--budget soon: expected a time"):
        parse_duration("soon")
