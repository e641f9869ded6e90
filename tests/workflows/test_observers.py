"""Those that look on: pictures, snapshots and event files, none of which change or stop a training."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import CLOCKS

from rsdmri.config import Config, load_config
from rsdmri.errors import InputError
from rsdmri.training import snapshots
from rsdmri.training.checkpoint import load_tensors
from rsdmri.training.loop import StepReport
from rsdmri.workflows import grids, tensorboard
from rsdmri.workflows.grids import Grids
from rsdmri.workflows.run_folder import RunFolder, read_metrics
from rsdmri.workflows.snapshots import Snapshots
from rsdmri.workflows.tensorboard import TensorBoard, tensorboard_wanted
from rsdmri.workflows.train import train

STAGES = ("teacher", "prior")


def quiet(line: str) -> None:
    del line


def report(step: int, elapsed: float = 1.0, progress: float = 0.5) -> StepReport:
    return StepReport(step, elapsed, progress, {})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def settings(tiny_settings, simulated):
    return lambda *more: load_config(None, [*tiny_settings, "steps=6", f"data.path={simulated}", *more])


def rows_of(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(run)]


def assert_same_weights(left: Path, right: Path) -> None:
    for stage in STAGES:
        a, b = (load_tensors(run / stage / "model.safetensors")[0] for run in (left, right))
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_a_watched_run_has_its_pictures_and_the_same_bits(tmp_path, settings, finished_run):
    lines = []
    train(settings("logging.grid_every=4"), tmp_path / "run", device="cpu", say=lines.append)
    drawn = names(tmp_path / "run" / "samples")
    assert drawn == [f"{stage}-0000000{step}.png" for stage in sorted(STAGES) for step in (4, 6)]
    pictures = [tmp_path / "run" / "curves.png", *(tmp_path / "run" / "samples" / name for name in drawn)]
    assert all(path.read_bytes()[:4] == b"\x89PNG" and b"Research use only" in path.read_bytes() for path in pictures)
    assert_same_weights(tmp_path / "run", finished_run)
    assert rows_of(tmp_path / "run") == rows_of(finished_run)
    assert any(line.startswith("to follow: ") and "metrics.jsonl" in line for line in lines)


def test_what_a_row_holds(finished_run):
    for row in read_metrics(finished_run):
        assert {"stage", "step", "images", "time", "elapsed", "loss", "gradient", "rate"} <= row.keys()
        assert 1.6e9 < row["time"] < 1e11


def test_a_dry_run_draws_nothing(tmp_path, settings):
    train(settings("logging.grid_every=1"), tmp_path / "run", device="cpu", dry_run=True, say=quiet)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_has_the_same_snapshots_to_the_bit(tmp_path, monkeypatch, settings):
    """Snapshots every other step, checkpoints every third; the teacher stops after the fifth."""
    monkeypatch.setattr(snapshots, "FIRST", 2)
    log, stops = RunFolder.log, [5]

    def stopping(folder: RunFolder, row: dict) -> None:
        log(folder, row)
        if stops and row["step"] == stops[0]:
            stops.clear()
            raise ZeroDivisionError

    train(settings(), tmp_path / "straight", device="cpu", say=quiet)
    monkeypatch.setattr(RunFolder, "log", stopping)
    with pytest.raises(ZeroDivisionError):
        train(settings(), tmp_path / "run", device="cpu", say=quiet)
    averages = tmp_path / "run" / "averages"
    assert names(averages) == ["teacher-00000002.safetensors", "teacher-00000004.safetensors"]
    (averages / ".tmp-4711-teacher-00000006.safetensors").write_bytes(b"half")
    train(settings(), tmp_path / "run", device="cpu", say=quiet)
    expected = [f"{stage}-0000000{step}.safetensors" for stage in sorted(STAGES) for step in (2, 4, 6)]
    for run in ("run", "straight"):
        assert names(tmp_path / run / "averages") == expected
    for name in expected:
        one, other = ((tmp_path / run / "averages" / name).read_bytes() for run in ("run", "straight"))
        assert one == other


def test_the_power_average_can_be_the_result(tmp_path, settings):
    config = settings("teacher.average=power", "snapshots=0")
    train(config, tmp_path / "run", stage="teacher", device="cpu", say=quiet)
    assert not (tmp_path / "run" / "averages").exists()
    state, _ = load_tensors(tmp_path / "run" / "checkpoints" / "teacher-00000006.safetensors")
    result, _ = load_tensors(tmp_path / "run" / "teacher" / "model.safetensors")
    assert not any(key.startswith("average.") for key in state)
    weights = [key for key in result if key.startswith("denoiser.")]
    assert all(torch.equal(result[key], state[key.replace("denoiser.", "power_100.", 1)]) for key in weights)


class Averaged:
    """A stage that is only looked at."""

    name, batch = "teacher", 4

    def __init__(self):
        self.averages = SimpleNamespace(snapshot=lambda: {"power_050.x": torch.ones(1)}, result=None)


def test_a_snapshot_that_cannot_be_written_is_said_once(tmp_path):
    lines = []
    watching = Snapshots(Config(), RunFolder(tmp_path), lines.append)
    (tmp_path / "averages").write_text("in the way")
    watching.start(Averaged(), report(0))
    for step in (32, 64):
        assert watching.after_step(Averaged(), report(step)) == {}
    assert len(lines) == 1
    assert re.search("snapshot of step 32 left out .*; training goes on", lines[0])


def test_snapshots_too_large_for_their_share_of_the_disk_are_left_out(tmp_path):
    lines = []
    watching = Snapshots(load_config(None, ["snapshots_gb=0"]), RunFolder(tmp_path), lines.append)
    watching.start(Averaged(), report(0))
    watching.after_step(Averaged(), report(32))
    assert lines == ["teacher: no snapshots of averages, one takes more than snapshots_gb"]
    assert names(tmp_path) == []


def grids_with_clock(monkeypatch, tmp_path, cost: float, *overrides: str) -> tuple[Grids, list[int], list[str]]:
    """Grids whose drawing takes ``cost`` seconds of a clock that stands still otherwise."""
    now, drawn, lines = [0.0], [], []
    watching = Grids(load_config(None, list(overrides)), RunFolder(tmp_path), lambda: None, lines.append)

    def draw(_stage: object, step: int) -> None:
        now[0] += cost
        drawn.append(step)

    monkeypatch.setattr(grids.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watching, "_draw", draw)
    return watching, drawn, lines


def watch(watching: Grids, steps: int, seconds: float, begin: int = 0) -> None:
    watching.start(Averaged(), report(begin, begin / steps * seconds, begin / steps))
    for step in range(begin + 1, steps + 1):
        assert watching.after_step(Averaged(), report(step, step / steps * seconds, step / steps)) == {}
    watching.finish(Averaged(), report(steps, seconds, 1.0))


def test_ten_grids_a_stage_where_time_allows(tmp_path, monkeypatch):
    watching, drawn, _ = grids_with_clock(monkeypatch, tmp_path, 0.5)
    watch(watching, 20_000, 2000.0)
    assert drawn == list(range(2000, 20_001, 2000))


@pytest.mark.parametrize("cost", [0.5, 2.0, 20.0])
def test_grids_keep_to_three_per_cent_but_for_the_last(tmp_path, monkeypatch, cost):
    watching, drawn, _ = grids_with_clock(monkeypatch, tmp_path, cost)
    watch(watching, 10_000, 100.0)
    assert drawn[-1] == 10_000
    first = cost  # is not known before
    assert cost * (len(drawn) - 1) <= max(3.0, first)
    assert len(drawn) > 1


def test_grids_at_the_steps_that_were_asked_for(tmp_path, monkeypatch):
    watching, drawn, _ = grids_with_clock(monkeypatch, tmp_path, 50.0, "logging.grid_every=7")
    watch(watching, 30, 1.0, begin=10)
    assert drawn == [14, 21, 28, 30]
    none, drawn, _ = grids_with_clock(monkeypatch, tmp_path, 1.0, "logging.grid_every=0")
    watch(none, 30, 1000.0)
    assert drawn == []


def test_resuming_takes_later_grids_back(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("teacher-00000002", "teacher-00000008", "prior-00000008"):
        (tmp_path / "samples" / f"{name}.png").write_bytes(b"")
    Grids(Config(), RunFolder(tmp_path), lambda: None, quiet).start(Averaged(), report(5))
    assert names(tmp_path / "samples") == ["prior-00000008.png", "teacher-00000002.png"]


def test_a_picture_that_fails_is_said_once_and_stops_nothing(tmp_path):
    def bank():
        raise MemoryError("out of\nmemory")

    lines = []
    watching = Grids(load_config(None, ["logging.grid_every=1"]), RunFolder(tmp_path), bank, lines.append)
    watch(watching, 5, 10.0)
    assert lines == ["pictures: one could not be drawn (out of memory); training goes on"]


def test_drawing_neither_moves_random_streams_nor_weights(tmp_path, settings, finished_run):
    from rsdmri.priors import load_prior

    prior = load_prior(finished_run / "teacher", "cpu")
    stage = Averaged()
    stage.averages.result = prior.denoiser
    before = {key: tensor.clone() for key, tensor in prior.denoiser.state_dict().items()}
    state = torch.get_rng_state()
    for folder in ("one", "two"):
        watching = Grids(settings("logging.grid_every=1"), RunFolder(tmp_path / folder), lambda: prior.bank, quiet)
        watching.start(stage, report(0))
        watching.after_step(stage, report(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], tensor) for key, tensor in prior.denoiser.state_dict().items())
    one, two = ((tmp_path / folder / "samples" / "teacher-00000001.png").read_bytes() for folder in ("one", "two"))
    assert one == two


def test_without_tensorboard_there_is_one_note(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    lines = []
    watching = TensorBoard(Config(), RunFolder(tmp_path), lines.append)
    watching.start(Averaged(), report(0))
    watching.after_step(Averaged(), report(1))
    watching.logged(Averaged(), {"step": 1, "loss": 1.0})
    watching.finish(Averaged(), report(1))
    assert len(lines) == 1
    assert "pip install 'rsdmri[tensorboard]'" in lines[0]
    assert names(tmp_path) == []
    TensorBoard(load_config(None, ["logging.tensorboard=off"]), RunFolder(tmp_path), lines.append)
    assert len(lines) == 1


def test_tensorboard_that_was_asked_for_is_missed_before_anything_else(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"logging\.tensorboard is on, but tensorboard is not installed: python -m"):
        train(settings("logging.tensorboard=on"), tmp_path / "run", device="cpu", say=quiet)
    assert not (tmp_path / "run").exists()


def test_nothing_of_tensorboard_is_loaded_before_a_stage_starts():
    code = "import sys, rsdmri.workflows.train; print(*(m for m in sys.modules if 'tensorboard' in m))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["rsdmri.workflows.tensorboard"]


needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="tensorboard is not installed; it comes with the extra of its name"
)


@needs_tensorboard
def test_event_files_hold_rows_grids_and_settings_once(tmp_path):
    """Stopped after step 20 with a checkpoint at 10, resumed to 30: each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rsdmri.report.figures import image_grid, save_png

    folder, config = RunFolder(tmp_path), load_config(None, ["seed=5"])
    assert tensorboard_wanted(config)
    folder.samples.mkdir()
    for begin, end in ((0, 20), (10, 30)):
        watching = TensorBoard(config, folder, quiet)
        watching.start(Averaged(), report(begin))
        for step in range(begin + 1, end + 1):
            if step % 10 == 0:
                save_png(image_grid(torch.ones(2, 8, 8)), folder.samples / f"teacher-{step:08d}.png")
            watching.after_step(Averaged(), report(step))
            watching.logged(Averaged(), {"stage": "teacher", "step": step, "loss": 100 * begin + step, "rate": 0.5})
        watching.finish(Averaged(), report(end))
    read = EventAccumulator(str(tmp_path / "tensorboard" / "teacher"), size_guidance={"images": 0}).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "rate"}
    values = [(event.step, event.value) for event in read.Scalars("loss")]
    assert values == [(s, float(s)) for s in range(1, 11)] + [(s, 1000.0 + s) for s in range(11, 31)]
    assert [event.step for event in read.Images("samples")] == [10, 20, 30]
    assert read.Images("samples")[0].encoded_image_string[:4] == b"\x89PNG"
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    seed = 5" in text


@needs_tensorboard
def test_an_event_file_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    lines = []
    watching = TensorBoard(Config(), RunFolder(tmp_path), lines.append)
    watching.start(Averaged(), report(0))
    watching.logged(Averaged(), {"step": 1, "loss": 1.0})
    watching.finish(Averaged(), report(1))
    assert len(lines) == 1
    assert "training goes on" in lines[0]
