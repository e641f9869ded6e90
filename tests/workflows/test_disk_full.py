"""A disk that fills up: the last checkpoint stays, one line, exit code 75, and the same command goes on."""

import os
import resource
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from runs import assert_same_run, go_alone, start, start_training, wait_until

from rsdmri.errors import DiskFullError, InputError
from rsdmri.files import append_text, full_disk, write_text
from rsdmri.training.checkpoint import latest_checkpoint
from rsdmri.training.manifest import read_manifest
from rsdmri.workflows.run_folder import RunFolder, read_metrics


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(megabytes)`` is the folder of a file system of that size."""
    mounted = []

    def mount(megabytes: float) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()[:80]}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stopped(process: subprocess.Popen) -> str:
    """The one line that a process with exit code 75 ends with."""
    out, err = process.communicate(timeout=180)
    assert process.returncode == 75, (out, err)
    lines = [line for line in err.splitlines() if line.startswith("rsdmri: ")]
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0])
    assert "Traceback" not in err
    assert "free some" in lines[0]
    assert "same command again" in lines[0]
    return lines[0]


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with open(path, "wb", buffering=0) as handle, suppress(OSError):
        while True:
            handle.write(bytes(4096))


def test_a_disk_that_fills_up_in_training_costs_nothing(small_disk, tmp_path, settings):
    config = settings("steps=40", "workers=1", "checkpoint_every=2")
    disk = small_disk(24)
    run, ballast = disk / "run", disk / "ballast"
    process = start_training(config, run)
    wait_until(lambda: read_manifest(run / "checkpoints").stages if (run / "checkpoints").exists() else None, process)
    fill(ballast)
    stopped(process)
    step = latest_checkpoint(run / "checkpoints", "teacher", pytest.fail).meta["step"]
    assert step >= 2
    stopped(start_training(config, run))  # it is still full
    assert latest_checkpoint(run / "checkpoints", "teacher", pytest.fail).meta["step"] == step
    ballast.unlink()
    process = start_training(config, run)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert f"teacher: going on from step {step}" in out
    go_alone(config, tmp_path / "straight")
    assert_same_run(run, tmp_path / "straight")


def test_a_limit_of_file_size_met_half_way_through_a_checkpoint(tmp_path, settings):
    """RLIMIT_FSIZE, lowered once there is a checkpoint: the next one breaks off in the middle of its file."""
    config, run = settings("steps=12", "workers=1", "checkpoint_every=3"), tmp_path / "run"
    code = """
import resource
import rsdmri.training.checkpoint as c
save = c.save_checkpoint
def limited(folder, stage, step, *rest, **more):
    if step >= 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    return save(folder, stage, step, *rest, **more)
import rsdmri.workflows.keeper as k
k.save_checkpoint = limited
"""
    line = stopped(start_training(config, run, code=code))
    assert "teacher-00000006.safetensors: cannot be written, the disk is full" in line
    assert not list(run.rglob(".tmp-*"))
    assert latest_checkpoint(run / "checkpoints", "teacher", pytest.fail).meta["step"] == 3
    process = start_training(config, run)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    go_alone(config, tmp_path / "straight")
    assert_same_run(run, tmp_path / "straight")


def test_a_full_disk_while_scans_are_simulated(small_disk):
    """Scans that are whole stay; none is half."""
    disk = small_disk(2)
    line = stopped(start("simulate", disk / "data", "--scans", "30", "--size", "64", "--coils", "4", "--slices", "4"))
    assert "the disk is full" in line
    assert list((disk / "data").glob("*.h5"))
    assert not list(disk.rglob(".tmp-*"))


def test_metrics_on_a_full_disk(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.log({"stage": "teacher", "step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48, before[1]))
    try:
        with pytest.raises(DiskFullError, match=r"metrics\.jsonl: cannot be written, the disk is full"):
            folder.log({"stage": "teacher", "step": 2, "loss": 0.5})
        with pytest.raises(DiskFullError, match=r"metrics\.jsonl"):
            write_text(folder.metrics, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_metrics(folder.path) == [{"stage": "teacher", "step": 1}]  # a cut line counts as none
    folder.rewind_metrics("teacher", 1)
    folder.log({"stage": "teacher", "step": 2})
    assert [row["step"] for row in read_metrics(folder.path)] == [1, 2]


@pytest.mark.parametrize("device", ["/dev/full"])
def test_the_errors_of_the_system_are_told_apart(tmp_path, device):
    if not os.path.exists(device):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(DiskFullError, match="disk is full"):
        append_text(device, "text")
    with pytest.raises(IsADirectoryError):
        append_text(tmp_path, "text")
    assert issubclass(DiskFullError, InputError)
    assert (DiskFullError.exit_code, InputError.exit_code) == (75, 2)
    assert full_disk(RuntimeError("file write failed: errno = 28, error message = 'No space left on device'"))
    assert not full_disk(OSError(13, "Permission denied"))
