"""The lock of a run folder: one training at a time, whatever became of the last one."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from runs import start_training, wait_until

from rsdmri.errors import InputError
from rsdmri.workflows.run_folder import RunFolder
from rsdmri.workflows.run_lock import lock_folder


def lock_of(pid: int, host: str | None = None) -> str:
    return json.dumps({"pid": pid, "host": host or socket.gethostname()})


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def refused(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match), lock_folder(folder):
        pytest.fail("two at once")


def test_the_second_of_two_processes_is_refused_with_one_line_and_code_2(tmp_path, settings):
    config, run = settings("steps=100000", "workers=1"), tmp_path / "run"
    first = start_training(config, run)
    try:
        wait_until(lambda: (run / ".lock").exists() and (run / ".lock").read_text(), first)
        second = start_training(config, run)
        _, err = second.communicate(timeout=120)
        assert second.returncode == 2
        assert err.startswith(
            f"rsdmri: {run}: process {first.pid} on {socket.gethostname()} is training here; wait for"
        )
        assert err.count("\n") == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert (run / ".lock").exists()
    with RunFolder(run).lock():  # the dead hold nothing
        assert json.loads((run / ".lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not (run / ".lock").exists()


def test_a_lock_holds_within_a_process_and_is_given_back_by_errors(tmp_path):
    def work() -> None:
        with lock_folder(tmp_path):
            refused(tmp_path, f"process {os.getpid()} on .* is training here")
            assert (tmp_path / ".lock").exists()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not (tmp_path / ".lock").exists()
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("left", ["dead", "own number", "number in use again", "damaged", "empty"])
def test_locks_of_the_dead_are_taken_over(tmp_path, left):
    """What the file says does not count: its holder's lock went with it."""
    text = {"dead": lock_of(dead_pid()), "own number": lock_of(os.getpid()), "number in use again": lock_of(1)}
    (tmp_path / ".lock").write_text(text.get(left, '{"pid' if left == "damaged" else ""))
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_the_name_of_another_machine_is_respected(tmp_path):
    (tmp_path / ".lock").write_text(lock_of(dead_pid(), "another-machine"))
    refused(tmp_path, "on another-machine is training here; wait for it, choose another --out, or delete .lock there")
    assert (tmp_path / ".lock").read_text().endswith('"another-machine"}')


def test_one_of_many_that_take_over_a_dead_lock_at_once_gets_it(tmp_path):
    """Again and again: 8 threads, with a file of their own each, as processes have."""
    inside, most, refusals, barrier = [], [], [], threading.Barrier(8)

    def work() -> None:
        for turn in range(40):
            if barrier.wait() == 0:
                (tmp_path / ".lock").write_text(lock_of(dead))
            barrier.wait()
            try:
                with lock_folder(tmp_path):
                    inside.append(turn)
                    most.append(len(inside))
                    inside.pop()
            except InputError as error:
                refusals.append(str(error))

    dead = dead_pid()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) >= 40  # each time at least one
    assert set(most) == {1}  # never two
    assert len(most) + len(refusals) == 320
    assert not (tmp_path / ".lock").exists()


def test_a_lock_that_is_released_as_another_opens_it_is_not_shared(tmp_path, monkeypatch):
    """The holder removes the file between the other's opening and locking it: the other must lock the new file."""
    flock, holder = fcntl.flock, lock_folder(tmp_path)
    holder.__enter__()
    first = os.stat(tmp_path / ".lock").st_ino
    keep = open(tmp_path / ".lock")  # noqa: SIM115 - so that its number is not given out again

    def late(descriptor: int, operation: int) -> None:
        if (tmp_path / ".lock").exists() and os.fstat(descriptor).st_ino == first:
            holder.__exit__(None, None, None)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_folder(tmp_path):
        assert os.stat(tmp_path / ".lock").st_ino != first
        refused(tmp_path, "is training here")
    keep.close()


def test_without_flock_the_holder_that_is_named_counts(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks on this file system")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for text in (lock_of(os.getppid()), lock_of(1), lock_of(dead_pid(), "another-machine")):
        (tmp_path / ".lock").write_text(text)
        refused(tmp_path, "is training here")
        assert (tmp_path / ".lock").read_text() == text
    for text in (lock_of(dead_pid()), lock_of(os.getpid()), '{"pid'):
        (tmp_path / ".lock").write_text(text)
        with lock_folder(tmp_path):
            refused(tmp_path, f"process {os.getpid()} on")
