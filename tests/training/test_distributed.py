"""Several processes: the weights of one, errors and signals that reach one, a process that dies, parts of batches."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pair import exploding, settings
from runs import CLOCKS, go_alone
from torch import Tensor
from typer.testing import CliRunner

from rsdmri import runtime
from rsdmri.cli import app
from rsdmri.config import load_config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.diffusion.batch import Batch, draw_noise
from rsdmri.errors import InputError
from rsdmri.runtime import torch_generator
from rsdmri.training.checkpoint import checkpoint_files, load_tensors
from rsdmri.training.distributed import ALONE, Processes, joined
from rsdmri.workflows.plan import open_slices, plan_training
from rsdmri.workflows.run_folder import read_events, read_metrics
from rsdmri.workflows.sources import open_source
from rsdmri.workflows.train import train

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("teacher", "prior")
CPU = torch.device("cpu")


def torchrun(*command: object) -> subprocess.Popen:
    """Two processes of one thread each, in a session of their own."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen, workers: dict[int, int]) -> None:
    """Kill what a failed test left."""
    for pid in (process.pid, *workers.values()):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def workers_of(pid: int) -> dict[int, int]:
    """Process number by rank of what torchrun started."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) if folder.name.isdigit() else 0
            variables = (folder / "environ").read_text().split("\0") if parent == pid else ()
        except OSError:  # gone meanwhile
            continue
        found |= {int(v[5:]): int(folder.name) for v in variables if v.startswith("RANK=")}
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory, simulated) -> Path:
    """Folder of what two processes did (`pair.py`)."""
    out = tmp_path_factory.mktemp("pair")
    process = torchrun(Path(__file__).with_name("pair.py"), simulated, out)
    try:
        error = process.communicate(timeout=600)[1]
    finally:
        end(process, workers_of(process.pid))
    assert process.returncode == 0, error
    return out


@pytest.fixture(scope="module")
def told(pair) -> list[dict]:
    """What each of the two processes met."""
    return [json.loads((pair / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, simulated) -> Path:
    """The same trainings in one process."""
    out, before = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    parts = "teacher.accumulate=2", "prior.accumulate=3"
    for name, more in (("plain", ()), ("parts", parts)):
        train(settings(simulated, *more), out / name, device="cpu", say=lambda line: None)
    with exploding():
        train(settings(simulated), out / "exploded", stage="teacher", device="cpu", say=lambda line: None)
    torch.set_num_threads(before)
    return out


def state(run: Path, stage: str) -> dict[str, Tensor]:
    return load_tensors(checkpoint_files(run / "checkpoints", stage)[-1])[0]


def off(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Share of the weights that differ by more than 1e-5.

    Adam's first step has one size whatever the gradient's: where that is rounding, its sign may differ. Here in one
    weight of the generator, which with its averages is 4 of 138,000 numbers.
    """
    names = [k for k in left if "adam" not in k]
    differ = sum(int(((left[k].double() - right[k].double()).abs() > 1e-5).sum()) for k in names)
    return differ / sum(left[k].numel() for k in names)


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest difference of the weights (not of Adam's moments)."""
    assert left.keys() == right.keys()
    return max(float((left[k].double() - right[k].double()).abs().max()) for k in left if "adam" not in k)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["plain", "parts"])
def test_two_processes_reach_the_weights_of_one(pair, alone, name, stage):
    """Batches of 5, so that the shares are of 3 and 2, in one go and in parts."""
    expected, found = state(alone / "plain", stage), state(pair / name, stage)
    assert distance(expected, found) < 1e-6
    first = load_tensors(checkpoint_files(alone / "plain" / "checkpoints", stage)[0])[0]
    assert distance(expected, first) > 1e-4  # two steps earlier
    for left, right in zip(read_metrics(alone / "plain"), read_metrics(pair / name), strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"stage", *CLOCKS}:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("stage", STAGES)
def test_parts_of_a_batch_give_the_weights_of_the_whole(alone, stage):
    assert 0 < distance(state(alone / "plain", stage), state(alone / "parts", stage)) < 1e-6


def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_with_the_same_bits(pair, told):
    for stage in STAGES:
        straight, resumed = state(pair / "plain", stage), state(pair / "stopped", stage)
        assert straight.keys() == resumed.keys()
        assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []
        for each in told:
            assert f"{stage}: stopped after step 3; run the same command to go on" in each["stopped"]
    assert "teacher: going on from step 3" in told[0]["stopped"]
    assert "prior: going on from step 3" in told[0]["stopped"]


def test_a_run_of_two_processes_goes_on_in_one(tmp_path, pair, alone, simulated):
    lines = []
    for name, run in (("two", pair), ("one", alone)):
        shutil.copytree(run / "plain", tmp_path / name)
        config = settings(simulated, "steps=5")
        train(config, tmp_path / name, stage="teacher", device="cpu", say=lines.append)
    assert lines.count("teacher: going on from step 4") == 2
    assert distance(state(tmp_path / "two", "teacher"), state(tmp_path / "one", "teacher")) < 1e-6


def test_only_the_first_process_says_anything(told):
    assert any("in each of 2 processes" in line for line in told[0]["said"])
    assert told[1]["said"] == []


def test_each_process_prepares_its_share_and_what_it_draws(told):
    assert [each["prepared"][:2] for each in told] == [[0, 2], [1, 3]]


def test_an_error_of_one_process_stops_both_and_is_said_once(pair, told):
    elsewhere = "StoppedElsewhereError"
    assert told[1]["one breaks"] == ["InputError", "scan.h5: slice 3 is damaged", ["in process 1"]]
    assert told[0]["one breaks"] == [elsewhere, "process 1 stopped", []]
    assert not (pair / "broken" / ".lock").exists()
    assert [each["second"][:2] for each in told] == [[elsewhere, "process 1 stopped"], ["InputError", "broken file 1"]]
    assert [each["both"][:2] for each in told] == [["InputError", "broken file 0"], [elsewhere, "process 0 stopped"]]
    assert [each["none"] for each in told] == [[], []]
    assert [each["full"][0] for each in told] == ["DiskFullError", elsewhere]
    assert not list((pair / "full" / "checkpoints").glob("*.safetensors"))
    assert [each["diverged"][0] for each in told] == ["TrainingDivergedError", elsewhere]
    assert [each["refused"][0] for each in told] == ["InputError", elsewhere]
    assert "seed: 0 there, 1 asked" in told[0]["refused"][1]


def test_a_request_to_stop_one_process_is_one_to_all(told):
    assert [each["interrupted"][0] for each in told] == ["Interrupted", "Interrupted"]
    assert told[0]["interrupted and broken"] == ["StoppedElsewhereError", "process 1 stopped", []]
    assert told[1]["interrupted and broken"][:2] == ["InputError", "broken file 1"]


def test_a_slice_that_explodes_in_one_process_is_left_out_by_both(pair, alone):
    """Whichever process has it: norms of single slices are those of one process, and so are later batches."""
    (event,) = read_events(alone / "exploded")
    assert event["back_to"] == 2
    assert [item["item"] for item in event["left_out"]] == [2]
    assert read_events(pair / "exploded") == [event]
    expected, found = state(alone / "exploded", "teacher"), state(pair / "exploded", "teacher")
    assert distance(expected, found) < 1e-6
    assert distance(expected, state(alone / "plain", "teacher")) > 1e-5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads by /proc")
def test_no_thread_outlives_the_group(told):
    """One that meets the end of the interpreter aborts it."""
    assert all(each["threads before"] > 0 for each in told)
    assert [each["threads after"] for each in told] == [0, 0]


def test_what_processes_exchange(told):
    for each in told:
        found = each["exchanged"]
        assert found["sums"] == [[[0, 3, 6], [9, 12, 15]], 3, 1, 9 << 20]
        assert found["largest"] == [1, 0, 1.5]
        assert found["of first"] == [{"from": 0, "time": 0.1}, [[0, 0], [0, 0]]]
        assert found["different"][1].startswith("bias: not the same in all processes")
        assert found["few"][1].startswith("teacher.batch 1: fewer images than the 2 processes; --set teacher.batch=2")
    assert [each["exchanged"]["few"][0] for each in told] == ["InputError", "StoppedElsewhereError"]


def wait_for(run: Path, pattern: str, process: subprocess.Popen, known: set[Path]) -> None:
    deadline = time.monotonic() + 300
    while not set(run.glob(pattern)) - known:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {pattern} after five minutes"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes by /proc")
def test_a_process_that_dies_takes_all_along_and_a_signal_to_torchrun_saves(tmp_path, simulated):
    config, run, recipe = (
        settings(simulated, "steps=100000", "checkpoint_every=5"),
        tmp_path / "run",
        tmp_path / "r.toml",
    )
    recipe.write_text(config.to_toml())
    command = "-m", "rsdmri", "train", "--recipe", recipe, "--out", run, "--device", "cpu"
    known: set[Path] = set()
    for how in ("death", "signal"):
        process, workers = torchrun(*command), {}
        try:
            wait_for(run, "checkpoints/teacher-*.safetensors", process, known)
            workers = workers_of(process.pid)
            assert sorted(workers) == [0, 1]
            if how == "death":
                os.kill(workers[1], signal.SIGKILL)
            else:
                process.terminate()
            out, err = process.communicate(timeout=120)
        finally:
            end(process, workers)
        assert not any(alive(pid) for pid in workers.values())
        known = set(run.glob("checkpoints/teacher-*.safetensors"))
        if how == "death":
            assert process.returncode != 0
            assert "rsdmri/training/" not in err  # torchrun's own traceback, none of ours
            assert len(known) in (1, 2)
        else:
            assert re.search(r"teacher: going on from step \d+", out)
            step = re.search(r"teacher: stopped after step (\d+); run the same command to go on", err)
            assert step is not None, err
            assert run / "checkpoints" / f"teacher-{int(step[1]):08d}.safetensors" in known
            assert not (run / ".lock").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes by /proc")
def test_a_run_of_two_that_is_stopped_goes_on_in_one_or_after_damage_in_two(tmp_path, simulated):
    """SIGTERM to the second process; then alone, and, the newest checkpoint cut short, in two from the one before."""
    config = settings(simulated, "steps=24", "checkpoint_every=4", "network.dropout=0.1")
    run, recipe, stopped = tmp_path / "run", tmp_path / "r.toml", r"teacher: stopped after step (\d+); run the same"
    recipe.write_text(config.to_toml())
    command = "-m", "rsdmri", "train", "--recipe", recipe, "--out", run, "--device", "cpu"
    process, workers = torchrun(*command), {}
    try:
        wait_for(run, "checkpoints/teacher-00000008.safetensors", process, set())
        workers = workers_of(process.pid)
        os.kill(workers[1], signal.SIGTERM)
        err = process.communicate(timeout=120)[1]
    finally:
        end(process, workers)
    assert process.returncode == 0, err
    step = re.search(stopped, err)
    assert step is not None, err
    newest = run / "checkpoints" / f"teacher-{int(step[1]):08d}.safetensors"
    shutil.copytree(run, tmp_path / "one")
    newest.write_bytes(newest.read_bytes()[:-100])
    process = torchrun(*command)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        end(process, workers_of(process.pid))
    assert process.returncode == 0, err
    assert "passed over for the checkpoint before" in out
    assert re.search(r"teacher: going on from step (4|8|12|16|20)\n", out)
    go_alone(config, tmp_path / "one")
    go_alone(config, tmp_path / "straight")
    for stage in STAGES:
        expected = state(tmp_path / "straight", stage)
        for other in (run, tmp_path / "one"):
            assert off(expected, state(other, stage)) < 1e-4
            assert stage == "prior" or distance(expected, state(other, stage)) < 1e-5
    rows = [[(r["stage"], r["step"]) for r in read_metrics(each)] for each in (run, tmp_path / "straight")]
    assert rows[0] == rows[1]


def test_a_share_of_a_batch_draws_what_the_whole_batch_draws():
    maps = torch.ones(5, 2, 6, 4, dtype=torch.complex64)
    mask = torch.ones(5, 1, 4, dtype=torch.bool)
    whole = Batch(maps * 2, maps, mask, mask, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    for rank in (0, 1):
        share = Processes(rank, 2).share
        for measured in (False, True):
            expected = draw_noise(whole, torch_generator("noise"), measured=measured)[share]
            mine = whole[share].among(share, 5)
            assert len(mine) == 5
            found = draw_noise(mine, torch_generator("noise"), measured=measured)[share]
            assert torch.equal(found.sigma, expected.sigma)
            assert torch.equal(found.noise, expected.noise)


@pytest.mark.parametrize("kind", ["kspace", "images", "pixels"])
def test_a_source_prepares_no_more_than_the_positions_asked(simulated, monkeypatch, kind):
    full = "acquisition.acceleration=1"
    more = {"kspace": (), "images": (full, "teacher.objective=edm"), "pixels": (full, "corruption.kind=inpainting")}
    config = settings(simulated, "data.cache_gb=0", *more[kind])
    slices = open_slices(config, simulated)
    source = open_source(config, slices, CPU)
    whole = source.batches(3, 0, "teacher", 7)
    prepared, one = [], TrainingSlices._prepared
    monkeypatch.setattr(TrainingSlices, "_prepared", lambda self, item: (prepared.append(item), one(self, item))[1])
    part = source.batches(3, 0, "teacher", 7, positions=[2, 0])
    items = slices.draw_items(3, 0, "teacher", 7)
    assert prepared == [items[2], items[0]]
    for name in ("measured", "maps", "mask", "further_mask", "sigma_y"):
        left, right = getattr(whole, name), getattr(part, name)
        assert (left is None) == (right is None)
        assert left is None or torch.equal(left[[2, 0]], right), name


def test_slices_are_prepared_by_share(simulated):
    slices = open_slices(settings(simulated), simulated)
    advanced = []
    slices.prepare(lambda: advanced.append(1), slice(1, None, 2))
    assert sorted(slices._cache) == [1, 3]
    assert len(advanced) == 2


def test_memory_of_the_plan_is_that_of_a_process_and_a_part(simulated):
    def memory(processes: int, *more: str) -> float:
        config = settings(simulated, "teacher.batch=2048", "network.channels=[16,16]", *more)
        lines = plan_training(config, open_slices(config, simulated), "scans", CPU, processes).lines
        return float(re.search(r"^teacher: .* about ([\d.]+) GB", "\n".join(lines), re.MULTILINE)[1])

    parts = ("teacher.accumulate=4",)
    assert memory(1) > 1.8 * memory(2) > 3.2 * memory(4)
    assert memory(4) < memory(1, *parts) < memory(2)


def test_parts_may_change_when_a_run_goes_on(tmp_path, simulated):
    train(settings(simulated, "steps=1"), tmp_path, stage="teacher", device="cpu", say=lambda line: None)
    config = settings(simulated, "steps=2", "teacher.accumulate=5")
    train(config, tmp_path, stage="teacher", device="cpu", say=lambda line: None)
    assert load_config(tmp_path / "config.toml").teacher.accumulate == 5
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_one_process_exchanges_nothing():
    tensors = [torch.ones(2)]
    ALONE.add(tensors)
    assert tensors[0].tolist() == [1, 1]
    assert ALONE.largest(2.5) == [2.5]
    assert ALONE.of_first({"a": 1}, {"t": tensors[0]})[1]["t"] is tensors[0]
    with joined(CPU) as processes:
        assert processes is ALONE
    with pytest.raises(ArithmeticError) as caught, ALONE.together():
        raise ArithmeticError
    assert not hasattr(caught.value, "__notes__")
    ALONE.check_batch("teacher", 1)


def as_torchrun(monkeypatch, rank: int, local: int, count: int, local_count: int) -> None:
    values = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": local_count}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_ranks_come_from_torchrun_alone(monkeypatch):
    cores = runtime.available_cores()
    as_torchrun(monkeypatch, rank=5, local=1, count=8, local_count=4)
    assert (runtime.process_rank(), runtime.process_count(), runtime.available_cores()) == (0, 1, cores)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert (runtime.process_rank(), runtime.process_count()) == (5, 8)
    assert runtime.available_cores() == max(1, cores // 4)


def test_each_process_takes_its_own_device(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    as_torchrun(monkeypatch, rank=5, local=1, count=8, local_count=4)
    assert runtime._own_device("cuda", 1, 4) == "cuda:1"
    with pytest.raises(InputError, match="--nproc-per-node 1"):
        runtime._own_device("cuda", 1, 1)
    with pytest.raises(InputError, match="--device cuda:0: one device for several processes"):
        runtime.select_device("cuda:0")
    assert runtime.select_device("cpu") == CPU
    assert runtime.communication(CPU) == "gloo"
    assert runtime.communication(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"


def test_other_commands_refuse_several_processes(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    as_torchrun(monkeypatch, rank=0, local=0, count=2, local_count=2)
    with pytest.raises(InputError, match="torchrun: sample runs in one process; only train and reconstruct"):
        CliRunner().invoke(app, ["sample"], catch_exceptions=False)
