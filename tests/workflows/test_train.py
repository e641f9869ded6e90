"""Training runs: exact continuation after crashes and signals, refusals that leave nothing, budgets."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from runs import STAGES, assert_same_run, go, names

from rsdmri.config import load_config
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.simulate import simulate_scan
from rsdmri.errors import InputError, Interrupted
from rsdmri.training.checkpoint import checkpoint_files, load_tensors
from rsdmri.workflows import plan
from rsdmri.workflows.budget import parse_duration
from rsdmri.workflows.plan import open_slices
from rsdmri.workflows.run_folder import RunFolder, read_metrics
from rsdmri.workflows.train import split_budget
from rsdmri.workflows.trainer import Budget


def test_a_finished_run_holds_what_was_promised(finished_run):
    weights_and_card = {"README.md", "config.json", "model.safetensors"}
    assert names(finished_run) == {
        "config.toml",
        "coverage.png",
        "metrics.jsonl",
        "checkpoints/manifest.json",
        *(f"checkpoints/{stage}-{step}.safetensors" for stage in STAGES for step in ("00000003", "00000006", "best")),
        *(f"averages/{stage}-00000006.safetensors" for stage in STAGES),
        *(f"{stage}/{name}" for stage in STAGES for name in weights_and_card),
    }
    config = load_config(finished_run / "config.toml")
    assert config.steps == 6
    rows = read_metrics(finished_run)
    assert [(row["stage"], row["step"]) for row in rows] == [(s, i) for s in STAGES for i in range(1, 7)]
    assert all(row["images"] == 4 * row["step"] for row in rows)
    assert {"loss", "fake_loss", "score_gap", "sample_std", "gradient", "rate", "elapsed"} <= rows[-1].keys()
    assert [row["step"] for row in rows if "validation" in row] == [3, 6, 3, 6]
    for stage in STAGES:
        speeds = [(row["images_per_s"], row["gflops_per_s"]) for row in rows if row["stage"] == stage]
        work = {round(flops / images, 12) for images, flops in speeds}
        assert min(min(pair) for pair in speeds) > 0
        assert max(work) == pytest.approx(min(work))  # operations per image
    for stage in STAGES:
        _, meta = load_tensors(finished_run / "checkpoints" / f"{stage}-00000006.safetensors")
        assert meta["config"] == config.to_dict()
        assert (meta["step"], meta["finished"]) == (6, True)
        facts = json.loads((finished_run / stage / "config.json").read_text())
        assert facts["training"].startswith("6 steps, 24 images")
        (first, a, _), (second, b, error) = [
            (row["step"], row["validation"], row.get("validation_error", 0.0))
            for row in rows
            if row["stage"] == stage and "validation" in row
        ]
        assert facts["best_step"] == (second if b < a + error else first)
        assert facts["best_validation"] == (b if facts["best_step"] == second else a)
        assert facts["kept_step"] == (6 if stage == "teacher" else facts["best_step"])
        assert [row["best"] for row in rows if row["stage"] == stage and "best" in row][-1] == facts["best_step"]


def test_the_plan_is_said_before_training(tmp_path, settings):
    lines = []
    go(settings(), tmp_path / "run", dry_run=True, draw=True, say=lines.append)
    text = "\n".join(lines)
    for pattern in (
        r"2 scans, 4 slices, matrix 32 x 32, 4 coils",
        r"nominal 4, achieved [345]\.\d\d",
        r"ACS 4 lines",
        r"masks: random",
        r"further mask drops 2",
        r"image scale",
        r"27,578 parameters",
        r"teacher: 0\.0\d GFLOP an image \(\d+ % of it the acquisition operator\), about 0\.0\d GB at batch 4; ",
        r"prior: 0\.\d\d GFLOP an image .* GB are free, enough for \d{3,} at once",
        r"time, measured on noise: teacher 0?\.?\S+ s a step, \S+ min .* in all; prior \S+ s a step, .* in all",
        r"coverage of 32 lines \(drawn\): 2 scans, 4 slices, 4 different masks",
    ):
        assert re.search(pattern, text), pattern
    assert names(tmp_path) == {"run/coverage.png"}
    go(settings(), tmp_path / "other", dry_run=True)
    assert names(tmp_path) == {"run/coverage.png"}


@pytest.mark.parametrize(("free", "cure"), [(60e6, r"--set teacher\.batch=\d+, or a smaller"), (1e3, "use a smaller")])
def test_a_batch_that_does_not_fit_is_said_with_its_cure(tmp_path, monkeypatch, settings, free, cure):
    monkeypatch.setattr(plan, "free_memory", lambda device: free)
    lines = []
    go(settings("teacher.batch=64", "data.cache_gb=0"), tmp_path / "run", dry_run=True, say=lines.append)
    text = "\n".join(lines)
    assert re.search(r"warning: teacher: batch 64 needs about \d\.\d GB and 0\.\d GB are free; .*" + cure, text)
    assert "time, estimated: teacher" in text  # nothing is tried that would not fit


def test_a_dry_run_without_data_says_so_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    config = load_config(None, ["simulate.size=32", "simulate.coils=2"])
    go(config, tmp_path / "run", dry_run=True, say=lines.append)
    assert any("training on simulated scans" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


class PowerCut(Exception):
    """The process ends here, without any clean-up of its own."""


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_interrupted_runs_end_up_with_the_same_bits(tmp_path, monkeypatch, settings, finished_run, how):
    """6 steps of each stage, stopped after the fifth of the teacher and of the prior, against 6 in one go."""
    log = RunFolder.log
    stops = [("teacher", 5), ("prior", 5)]

    def stopping(folder: RunFolder, row: dict) -> None:
        log(folder, row)
        if stops and (row["stage"], row["step"]) == stops[0]:
            stops.pop(0)
            if how == "crash":
                raise PowerCut
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "log", stopping)
    run, lines = tmp_path / "run", []
    expected = PowerCut if how == "crash" else Interrupted
    for stage in STAGES:
        with pytest.raises(expected):
            go(settings(), run)
        saved = checkpoint_files(run / "checkpoints", stage)[-1].name
        assert saved == f"{stage}-0000000{3 if how == 'crash' else 5}.safetensors"
        assert not (run / stage / "config.json").exists()
    go(settings(), run, say=lines.append)
    assert f"prior: going on from step {3 if how == 'crash' else 5}" in lines
    assert "teacher: finished before, after 6 steps" in lines
    assert_same_run(run, finished_run)
    for stage in STAGES:  # the clock goes on, too
        elapsed = [row["elapsed"] for row in read_metrics(run) if row["stage"] == stage]
        assert elapsed == sorted(elapsed)


def test_a_finished_run_is_left_alone(tmp_path, settings, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = {name: (run / name).read_bytes() for name in names(run)}
    lines = []
    go(settings(), run, say=lines.append)
    assert "teacher: finished before, after 6 steps" in lines
    assert "prior: finished before, after 6 steps" in lines
    assert {name: (run / name).read_bytes() for name in names(run)} == before


def test_more_steps_go_on_from_a_finished_run(tmp_path, settings, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    lines = []
    go(settings("steps=7"), run, stage="teacher", say=lines.append)
    assert "teacher: going on from step 6" in lines
    assert [row["step"] for row in read_metrics(run) if row["stage"] == "teacher"] == list(range(1, 8))


def test_stages_one_by_one_are_the_stages_together(tmp_path, settings, finished_run):
    for stage in STAGES:
        go(settings(), tmp_path / "run", stage=stage)
    assert_same_run(tmp_path / "run", finished_run)


def test_memory_for_slices_and_how_often_to_save_change_nothing(tmp_path, settings, finished_run):
    go(settings("data.cache_gb=0", "checkpoint_every=100"), tmp_path / "run")
    assert_same_run(
        tmp_path / "run", finished_run, ("elapsed", "validation", "validation_error", "best", "spectrum", "nearest")
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_export_is_written_again(tmp_path, settings, finished_run, stage):
    """The process dies between the last checkpoint and the end of the export."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / stage / "config.json").unlink()
    (run / stage / "model.safetensors").write_bytes(b"half")
    go(settings(), run)
    assert_same_run(run, finished_run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path={tmp}/none"], "no such manifest or folder"),
        (["data.path={tmp}/text.h5"], "not a text file|is not an HDF5 file|no column 'path'"),
        (["data.path={tmp}/broken"], r"scan\.h5: is not an HDF5 file"),
        (["data.split=test", "data.path={tmp}/train-only"], "no scan has split 'test'"),
        (["acquisition.acceleration=30"], r"leaves 0 centre \(ACS\) lines of 32, coil maps need 4; use at most 4"),
        (["acquisition.acceleration=8", "acquisition.center_fraction=0.3"], "fewer than the 10 ACS lines"),
        (["acquisition.mask=equispaced_fraction"], "train with --set acquisition.mask=random"),
        (["acquisition.acceleration=8", "acquisition.center_fraction=0.3", "data.path="], "fewer than the"),
        (["acquisition.acceleration=10", "data.path="], r"leaves 1 centre \(ACS\) lines of 32"),
    ],
)
def test_refused_input_leaves_nothing_behind(tmp_path, settings, overrides, message):
    (tmp_path / "text.h5").write_text("this is text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scan.h5").write_text("this is text")
    (tmp_path / "train-only").mkdir()
    write_scan(tmp_path / "train-only" / "a.h5", simulate_scan(0, slices=1, size=32, coils=2).kspace)
    before = names(tmp_path)
    config = settings("simulate.size=32", *(each.format(tmp=tmp_path) for each in overrides))
    with pytest.raises(InputError, match=message) as caught:
        go(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_after_a_refusal_the_same_folder_takes_corrected_settings(tmp_path, settings):
    with pytest.raises(InputError, match="no such manifest"):
        go(settings(f"data.path={tmp_path}/mistyped"), tmp_path / "run")
    go(settings("steps=1"), tmp_path / "run", stage="teacher")
    assert (tmp_path / "run" / "teacher" / "config.json").exists()


def test_a_refusal_keeps_an_existing_run(tmp_path, settings, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "config.toml").write_text(settings("data.path=/nowhere").to_toml())
    before = names(run)
    with pytest.raises(InputError, match="no such manifest"):
        go(settings("data.path=/nowhere"), run)
    assert names(run) == before


def test_the_prior_needs_a_teacher_in_the_same_folder(tmp_path, settings):
    with pytest.raises(InputError, match=r"--stage prior: .* no finished teacher"):
        go(settings(), tmp_path / "run", stage="prior")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_said_first(tmp_path, settings):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="the output folder cannot be written"):
            go(settings(), out)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_that_diverges_keeps_its_last_good_state(tmp_path, settings):
    config = settings("steps=30", "teacher.learning_rate=1e30", "teacher.clip=1e30", "checkpoint_every=1")
    cure = r"lower --set teacher.learning_rate"
    with pytest.raises(InputError, match=rf"teacher: .* at step \d+, after 3 roll-backs; {cure}"):
        go(config, tmp_path / "run")
    for path in checkpoint_files(tmp_path / "run" / "checkpoints", "teacher"):
        tensors, meta = load_tensors(path)
        assert not meta["finished"]
        assert tensors
    assert not (tmp_path / "run" / "teacher").exists()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_budget_ends_both_stages_in_time(tmp_path, settings):
    config = settings().model_copy(update={"steps": None})
    started = time.monotonic()
    go(config, tmp_path / "run", budget=3.0)
    taken = time.monotonic() - started
    seconds = {stage: json.loads((tmp_path / "run" / stage / "config.json").read_text())["seconds"] for stage in STAGES}
    assert sum(seconds.values()) <= 3.0 + 1.0
    assert seconds["teacher"] > 0
    assert seconds["prior"] > 0
    assert taken < 3.0 + 10.0  # preparing, saving and a slow machine
    lines = []
    go(config, tmp_path / "run", budget=3.0, say=lines.append)  # a finished run stays finished
    assert [line for line in lines if "finished before" in line] != []


def test_budget_is_shared_between_the_stages_that_run():
    assert split_budget(None, 0.5, stage="all") == Budget()
    assert split_budget(100.0, 0.6, stage="all") == Budget(60.0, pytest.approx(40.0))
    assert split_budget(100.0, 0.6, 0.2, stage="all") == Budget(
        pytest.approx(48.0), pytest.approx(32.0), pytest.approx(20.0)
    )
    assert split_budget(100.0, 0.6, 0.2, stage="prior") == Budget(prior=100.0)
    assert split_budget(100.0, 0.6, stage="teacher") == Budget(teacher=100.0)
    assert split_budget(100.0, 0.6, stage="prior") == Budget(prior=100.0)
    assert split_budget(100.0, 0.6, stage="posterior") == Budget(posterior=100.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), (" 2M5S ", 125)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "soon", "5 m", "-3m", "1d", "m", "30m2h", "1e9", "nan", "inf", "3mm"])
def test_durations_that_are_none(text):
    with pytest.raises(InputError, match=r"--budget .*: expected a time such as 90s, 30m or 2h"):
        parse_duration(text)


def test_scans_of_different_shapes_and_masks_train_together(tmp_path, tiny_settings):
    """Full scans, scans with lines and scans with points missing, odd and not square, in one folder."""
    for number in range(6):
        kspace = simulate_scan(number, slices=2, size=33, coils=3, noise=0.02).kspace
        rows, columns = np.mgrid[:33, :33]
        if number < 2:  # full
            mask, kspace = None, kspace[:, :, :29]
        elif number < 4:  # every other line and the centre
            mask = columns[0] % 2 == number % 2
            mask[13:20] = True
        else:  # a chequerboard and the centre
            mask = (rows + columns) % 2 == number % 2
            mask[12:21, 12:21] = True
        write_scan(tmp_path / f"scan{number}.h5", kspace if mask is None else np.where(mask, kspace, 0), mask=mask)
    config = load_config(None, [*tiny_settings, "steps=8", f"data.path={tmp_path}"])
    slices = open_slices(config, tmp_path)
    assert len(slices.buckets) == 3
    assert [slices.further_drop(slices.slices[i]) for i in (0, 4, 8)] == [2, 8, 205]
    go(config, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 16
