"""Processes that train and are killed, or asked to stop, at any moment: nothing is lost, nothing is half-written."""

import json
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from runs import assert_same_run, go_alone, start_training, wait_until

from rsdmri.config import load_config
from rsdmri.errors import Interrupted
from rsdmri.runtime import numpy_generator
from rsdmri.training.manifest import read_manifest
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.signals import Stop

WITHIN = 20.0  # seconds from a request to the end of the process


def checkpoints_begun(run: Path, seen: set[str]) -> int:
    """How many temporary files have come up in the checkpoints' folder, ``seen`` being those of before."""
    folder = run / "checkpoints"
    if folder.exists():
        seen |= {path.name for path in folder.glob(".tmp-*safetensors")}
    return len(seen)


def kill_somewhere(config, run: Path, rng: np.random.Generator, writing: bool) -> tuple[bool, bool]:
    """Train until SIGKILL: in a write of a checkpoint, the how-manieth is random, or a random while after some step.

    Returns:
        Whether the process was killed before it was done, and whether half of a checkpoint was left.
    """
    process = start_training(config, run)
    try:
        wait_until((run / ".lock").exists, process)
        if writing:
            seen, which = set(), int(rng.integers(1, 7))
            while process.poll() is None and checkpoints_begun(run, seen) < which:
                pass
        else:
            rows = len(read_metrics(run)) + int(rng.integers(0, 5))
            while process.poll() is None and len(read_metrics(run)) < rows:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.2))
    finally:
        process.kill()
        out, err = process.communicate()
    if process.returncode == 0:
        return False, False
    assert process.returncode == -signal.SIGKILL, (out, err)
    return True, any(run.glob("checkpoints/.tmp-*safetensors"))


def kill_again_and_again(tmp_path: Path, settings, kills: int, steps: int) -> None:
    small = ("network.channels=[8]", "network.attention=false", "network.dropout=0.1")
    config = settings(f"steps={steps}", "workers=1", "checkpoint_every=1", *small)
    run, rng = tmp_path / "run", numpy_generator("moments", kills)
    left = [kill_somewhere(config, run, rng, writing=k % 2 == 0) for k in range(kills)]
    assert all(killed for killed, _ in left), "it was over too early"
    assert sum(half for _, half in left) >= kills // 4, "none was killed as it wrote"
    for out in (run, tmp_path / "straight"):
        go_alone(config, out)
    assert_same_run(run, tmp_path / "straight")
    best = [read_manifest(each / "checkpoints").stages["teacher"].best.step for each in (run, tmp_path / "straight")]
    assert best[0] == best[1]
    assert not list(run.rglob(".tmp-*"))
    assert not (run / ".lock").exists()


def test_three_kills_at_random_moments_change_no_bit(tmp_path, settings):
    kill_again_and_again(tmp_path, settings, kills=3, steps=10)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path, settings):
    kill_again_and_again(tmp_path, settings, kills=20, steps=80)


def stop(process, how: signal.Signals, report=print) -> tuple[str, str]:
    """Ask ``process`` to stop; it does so in time and without an error."""
    asked = time.monotonic()
    process.send_signal(how)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    taken = time.monotonic() - asked
    report(f"stopped {taken:.1f} s after {how.name}")
    assert process.returncode == 0, err
    assert taken < WITHIN
    assert "Traceback" not in err
    return out, err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_asked_to_stop_saves(tmp_path, settings, how):
    config, run = settings("steps=100000", "workers=1", "checkpoint_every=100000"), tmp_path / "run"
    process = start_training(config, run)
    wait_until(lambda: len(read_metrics(run)) >= 3, process)
    _, err = stop(process, how)
    (saved,) = read_manifest(run / "checkpoints").stages["teacher"].generations
    assert f"teacher: stopped after step {saved.step}; run the same command to go on" in err
    assert saved.step >= 3
    assert not (run / ".lock").exists()
    assert not (run / "teacher").exists()
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.parametrize("when", ["simulating", "preparing"])
def test_data_preparation_stops_at_once_and_leaves_whole_files(tmp_path, when):
    config = load_config(None, ["simulate.scans=400", "simulate.size=64", "simulate.coils=6", "simulate.slices=2"])
    if when == "preparing":
        config = config.model_copy(update={"simulate": config.simulate.model_copy(update={"scans": 12, "slices": 30})})
    run = tmp_path / "run"
    process = start_training(config, run)
    wait_until((run / "data" / ("sim00002.h5" if when == "simulating" else "manifest.tsv")).exists, process)
    time.sleep(0.2)
    _, err = stop(process, signal.SIGTERM)
    assert "stopped; run the same command to go on" in err
    assert not list(run.rglob(".tmp-*"))
    assert not (run / "checkpoints").exists()
    for path in (run / "data").glob("*.h5"):
        with h5py.File(path) as file:
            assert file["kspace"].shape[0] == config.simulate.slices


SLOW_WORK = {
    "validating": "import rsdmri.training.teacher as t; t.TeacherStage.validate = lambda self: wait()",
    "drawing a batch": "import rsdmri.workflows.sources as t; t.KspaceSource.batches = lambda *_, **__: wait()",
    "exporting": "import rsdmri.workflows.trainer as t; t.save_prior = lambda *_, **__: wait()",
    "measuring the data": "import rsdmri.workflows.sources as t; t.KspaceSource.sigma_data = lambda self: wait()",
}


@pytest.mark.parametrize("where", SLOW_WORK)
def test_long_work_between_steps_does_not_keep_it(tmp_path, settings, where):
    mark = tmp_path / "there"
    code = f"""
import pathlib, time
def wait():
    pathlib.Path({str(mark)!r}).touch()
    for _ in range(1000):  # a signal just before a single long sleep would wait for its end
        time.sleep(0.1)
{SLOW_WORK[where]}
"""
    config, run = settings("steps=2", "checkpoint_every=2", "workers=1"), tmp_path / "run"
    process = start_training(config, run, code=code)
    wait_until(mark.exists, process)
    stop(process, signal.SIGTERM)
    record = read_manifest(run / "checkpoints").stage("teacher") if (run / "checkpoints").exists() else None
    reached = [entry.step for entry in record.generations] if record else None
    assert reached == {"validating": [2], "drawing a batch": [0], "exporting": [2], "measuring the data": []}[where]
    if where == "measuring the data":
        return
    process = start_training(config, run)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = [row for row in read_metrics(run) if row["stage"] == "teacher" and "validation" in row]
    assert [row["step"] for row in rows] == [2]  # what the stop kept it from was made up for
    assert read_manifest(run / "checkpoints").stages["teacher"].best.step == 2
    assert json.loads((run / "teacher" / "config.json").read_text())["best_validation"] == rows[0]["validation"]


def test_a_request_waits_where_it_is_held():
    done = []

    def work(stop: Stop) -> None:
        with stop.held():
            with stop.at_once():
                done.append("before")
            stop.note()
            done.append("work that must not be cut")
            with stop.at_once():
                done.append("nothing that may wait begins then")

    def to_the_end(stop: Stop) -> None:
        with stop.held():
            stop.note()
            done.append("the end")
        done.append("beyond")

    for each in (work, to_the_end, lambda stop: stop.note()):
        stop = Stop()
        with pytest.raises(Interrupted, match="run the same command to go on"):
            each(stop)
        stop.note()  # later ones do nothing
        stop.check()
        assert stop.asked
    assert done == ["before", "work that must not be cut", "the end"]


def test_errors_handled_on_the_way_do_not_swallow_a_request():
    def work() -> None:
        try:
            Stop().note()
        except Exception:  # as libraries do
            pytest.fail("swallowed")

    with pytest.raises(Interrupted):
        work()
