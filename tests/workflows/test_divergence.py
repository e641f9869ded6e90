"""Trainings that diverge: they go back by themselves, leave out what made them, and do so again when resumed."""

import math
import shutil

import pytest
import torch
from runs import assert_same_run, go, names, weights

import rsdmri.training.single as single_module
import rsdmri.training.teacher as teacher_module
from rsdmri.data.dataset import TrainingSlices
from rsdmri.errors import InputError
from rsdmri.training import recovery
from rsdmri.training.manifest import read_manifest
from rsdmri.training.recovery import TrainingDivergedError
from rsdmri.workflows.run_folder import RunFolder, read_events, read_metrics


class PowerCut(Exception):
    """The process ends here."""


@pytest.fixture
def exploding(monkeypatch):
    """``exploding(factor, step)``: k-space (the prior's stage: maps) of one slice is multiplied after that step.

    Returns what was read since: items of slices, in order.
    """

    def plant(factor: float, step: int, stage: str = "teacher", item: int = 2) -> list[int]:
        get, log, read = TrainingSlices.__getitem__, RunFolder.log, []
        broken = [True] if step == 0 else []

        def reading(slices: TrainingSlices, wanted: int):
            found = get(slices, wanted)
            if not broken or len(slices) != 4:
                return found
            read.append(wanted)
            if wanted != item:
                return found
            changed = object.__new__(type(found))
            part = "kspace" if stage == "teacher" else "maps"
            changed.__dict__.update(found.__dict__ | {part: getattr(found, part) * factor})
            return changed

        def logging(folder: RunFolder, row: dict) -> None:
            log(folder, row)
            if (row["stage"], row["step"]) == (stage, step) and "event" not in row:
                broken.append(True)

        monkeypatch.setattr(TrainingSlices, "__getitem__", reading)
        monkeypatch.setattr(RunFolder, "log", logging)
        return read

    return plant


@pytest.fixture
def cut(monkeypatch):
    """``cut(stage, step)``: the process ends as that step is logged."""

    def plant(stage: str, step: int) -> None:
        log = RunFolder.log

        def logging(folder: RunFolder, row: dict) -> None:
            log(folder, row)
            if (row["stage"], row["step"]) == (stage, step) and "event" not in row:
                raise PowerCut

        monkeypatch.setattr(RunFolder, "log", logging)

    return plant


def test_a_slice_that_explodes_is_named_and_left_out(tmp_path, settings, exploding, cut, monkeypatch):
    config, lines = settings("steps=9"), []
    read = exploding(1e30, 4)
    run = go(config, tmp_path / "run", say=lines.append)
    named = r"warning: teacher: loss not a number at step 5; going on from step 3 without sim00001.h5 slice 0"
    assert [line for line in lines if "warning" in line] == [named]
    (event,) = read_events(run)
    item = {"item": 2, "file": "sim00001.h5", "slice": 0}
    expected = {"stage": "teacher", "step": 5, "back_to": 3, "problem": "loss not a number", "left_out": [item]}
    assert event == {"event": "rolled back", **expected}
    assert [row["step"] for row in read_metrics(run)] == [*range(1, 10)] * 2
    assert read.count(2) == 2  # in the step that failed, and when it was looked into: in no later one of either stage
    assert len(read) > 60
    for stage in ("teacher", "prior"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(run / stage).values())
    assert len(weights(run / "prior")["bank.mask"]) == 3

    # resumed, it does the same, though it never sees that step again
    monkeypatch.undo()
    again = tmp_path / "again"
    exploding(1e30, 4)
    cut("teacher", 8)
    with pytest.raises(PowerCut):
        go(config, again)
    monkeypatch.undo()
    exploding(1e30, 0)
    go(config, again)
    assert_same_run(run, again)
    assert read_events(again) == [event]


def test_a_step_that_nothing_explains_is_drawn_anew(tmp_path, settings, cut, monkeypatch):
    config, lines, loss = settings("steps=9", "workers=1"), [], teacher_module.teacher_loss
    calls = []

    def once_nan(objective, denoiser, batch, draw):
        found = loss(objective, denoiser, batch, draw)
        calls.append(len(batch)) if denoiser.training else None
        return found * math.nan if len(calls) == 5 and denoiser.training else found

    monkeypatch.setattr(teacher_module, "teacher_loss", once_nan)
    run = go(config, tmp_path / "run", say=lines.append)
    assert [line for line in lines if "warning" in line] == [
        "warning: teacher: loss not a number at step 5; going on from step 3 with everything drawn anew"
    ]
    assert read_events(run)[0]["left_out"] == []
    monkeypatch.undo()
    straight = go(config, tmp_path / "straight")
    losses = [[row["loss"] for row in read_metrics(each) if row["stage"] == "teacher"] for each in (run, straight)]
    assert losses[0][:3] == losses[1][:3]
    assert not set(losses[0][3:]) & set(losses[1][3:])

    again, calls[:] = tmp_path / "again", []
    monkeypatch.setattr(teacher_module, "teacher_loss", once_nan)
    cut("teacher", 7)
    with pytest.raises(PowerCut):
        go(config, again)
    monkeypatch.undo()
    go(config, again)
    assert_same_run(run, again)


def test_before_the_first_checkpoint_it_starts_again(tmp_path, settings, exploding):
    run = go(settings("steps=3", "checkpoint_every=100"), tmp_path / "run", stage="teacher")
    lines = []
    exploding(math.inf, 1)
    other = go(settings("steps=3", "checkpoint_every=100"), tmp_path / "other", stage="teacher", say=lines.append)
    assert "going on from step 0 without sim00001.h5 slice 0" in "".join(lines)
    assert [row["step"] for row in read_metrics(other)] == [1, 2, 3]
    assert names(other) == names(run)


def test_a_spike_of_finite_numbers_is_undone_too(tmp_path, settings, exploding, monkeypatch):
    monkeypatch.setattr(recovery, "_LEAST", 4)
    lines = []
    exploding(1e4, 6)
    run = go(settings("steps=9"), tmp_path / "run", stage="teacher", say=lines.append)
    (warning,) = [line for line in lines if "warning" in line]
    assert "warning: teacher: gradient norm " in warning
    assert "at step 7; going on from step 6 without sim00001.h5 slice 0" in warning
    assert max(row["gradient"] for row in read_metrics(run)) < 1e3


def test_the_prior_leaves_out_acquisitions_that_explode(tmp_path, settings, exploding):
    lines = []
    exploding(math.nan, 4, "prior")
    run = go(settings("steps=7"), tmp_path / "run", say=lines.append)
    (warning,) = [line for line in lines if "warning" in line]
    assert "loss not a number at step 5; going on from step 3 without sim00001.h5 slice 0" in warning
    assert warning.startswith("warning: prior: ")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(run / "prior").values())


def test_weights_that_are_no_numbers_are_never_saved(tmp_path, settings, monkeypatch):
    apply, steps, lines = single_module.apply_gradients, [], []

    def breaking(optimiser, parameters, *rest):
        norm = apply(optimiser, parameters, *rest)
        steps.append(norm)
        if len(steps) == 6:
            with torch.no_grad():
                parameters[0].view(-1)[3] = math.nan
        return norm

    monkeypatch.setattr(single_module, "apply_gradients", breaking)
    run = go(settings(), tmp_path / "run", stage="teacher", say=lines.append)
    assert any("not finite at step 6; going on from step 3" in line for line in lines)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(run / "teacher").values())
    assert len(steps) == 9


def test_after_three_roll_backs_it_stops_until_the_settings_change(tmp_path, settings):
    """A rate far too high: back to the last checkpoint, then to the one before, once more, and that is all."""
    bad = settings("steps=12", "teacher.learning_rate=1e18", "teacher.warmup=0", "checkpoint_every=1")
    good = settings("steps=12", "teacher.warmup=0", "checkpoint_every=1")
    run, lines = tmp_path / "run", []
    go(good.model_copy(update={"steps": 4}), run, stage="teacher")
    with pytest.raises(
        TrainingDivergedError, match=r"after 3 roll-backs; lower --set teacher\.learning_rate"
    ) as caught:
        go(bad, run, stage="teacher", allow_changes=True, say=lines.append)
    assert isinstance(caught.value, InputError)
    back = [event["back_to"] for event in read_events(run) if event["event"] == "rolled back"]
    assert len(back) == 3
    assert back[1] < back[0]
    assert [r.back_to for r in read_manifest(run / "checkpoints").stage("teacher").roll_backs] == back
    assert len([line for line in lines if "drawn anew" in line]) == 3
    before = {name: (run / name).read_bytes() for name in names(run) if "checkpoints" in name}
    with pytest.raises(TrainingDivergedError, match="after 3 roll-backs"):
        go(bad, run, stage="teacher")
    assert {name: (run / name).read_bytes() for name in names(run) if "checkpoints" in name} == before
    go(good, run, stage="teacher", allow_changes=True)
    assert (run / "teacher" / "config.json").exists()


def test_other_data_know_nothing_of_slices_left_out(tmp_path, settings, exploding, monkeypatch, simulated):
    exploding(1e30, 4)
    run = go(settings(), tmp_path / "run", stage="teacher")
    monkeypatch.undo()
    shutil.copytree(simulated, tmp_path / "others")
    for path in (tmp_path / "others").glob("*.h5"):
        path.rename(path.with_name(f"other-{path.name}"))
    (tmp_path / "others" / "manifest.tsv").unlink()
    go(settings(f"data.path={tmp_path / 'others'}", "steps=8"), run, stage="teacher", allow_changes=True)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 9))
