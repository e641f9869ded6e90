"""Hostile files through the command line: exit code 2, one line that names the file, little memory, no second file.

One process runs every case, so that the libraries are loaded once; what a case takes is measured around it, and its
memory is that of the process which parses the file.
"""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import test_maps
from hostile import CANARY, CASES, READ, ROWS

MOST_SECONDS, MOST_MB = 2.0, 300

# Runs the child and writes the peak of its resident memory: that of a process started by a large one would count both.
METER = """
import os, resource, subprocess, sys
done = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE)
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024))
sys.stdout.buffer.write(done.stdout)
sys.stdout.flush()
if done.returncode < 0:
    os.kill(os.getpid(), -done.returncode)
sys.exit(done.returncode)
"""
DRIVER = """
import contextlib, io, json, os, sys, time
from rsdmri import cli
from rsdmri.data import sandbox
meter, peak, cases = sys.argv[1], sys.argv[2], json.load(sys.stdin)
command = sandbox._command()
sandbox._command = lambda: [sys.executable, "-S", "-c", meter, peak, *command]
for arguments in cases:
    sys.argv = ["rsdmri", *arguments]
    with contextlib.suppress(OSError):
        os.unlink(peak)
    out, err, started = io.StringIO(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    seconds = time.perf_counter() - started
    memory = int(open(peak).read()) if os.path.exists(peak) else 0
    row = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds, "memory": memory}
    print(json.dumps(row), flush=True)
"""

MAPS = [
    *(test_maps.pickled, test_maps.numpy_bomb, test_maps.cut_short, test_maps.external_link, test_maps.hdf5_bomb),
    *(test_maps.bart_without_data, test_maps.bart_cut_short),
]
OTHERS = [build for build in CASES if build not in ROWS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Outcomes of one file a row."""
    return run_all(tmp_path_factory.mktemp("hostile"), [*ROWS, *READ], MAPS)


@pytest.fixture(scope="module")
def other_outcomes(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("hostile"), OTHERS, [])


def run_all(folder: Path, scans: list, maps: list) -> dict:
    """Name of a case: (path, what is to be said, what the command did)."""
    cases = {}
    scan = folder / "good.h5"
    with h5py.File(scan, "w") as file:
        file["kspace"] = np.ones(test_maps.SHAPE, np.complex64)
    for build in scans:
        (here := folder / build.__name__).mkdir()
        path = here / "scan.h5"
        cases[build.__name__] = path, build(path), ["inspect", str(path)]
    for build in maps:
        name = f"maps_{build.__name__}"
        (here := folder / name).mkdir()
        path, said = build(here)
        arguments = ["reconstruct", str(scan), "--method", "sense", "--out", str(here / "out"), "--maps", str(path)]
        cases[name] = path, said, arguments
    before = listing(folder)
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, METER, str(folder / "peak")],
        input=json.dumps([["inspect", str(scan)], *(arguments for *_, arguments in cases.values())]),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (folder / "peak").unlink(missing_ok=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()][1:]
    assert run.stderr == ""
    assert listing(folder) == before, "a file was left"
    return {name: (path, said, row) for (name, (path, said, _)), row in zip(cases.items(), rows, strict=True)}


def listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def check_refused(path: Path, said: str, row: dict) -> None:
    assert row["code"] == 2, row
    assert row["out"] == ""
    assert row["err"].count("\n") == 1
    assert row["err"].rstrip("\n").isprintable()
    assert str(path) in row["err"] or path.name in row["err"]
    with pytest.raises(ValueError, match=said):
        raise ValueError(row["err"].rstrip("\n"))
    check(row)


def check(row: dict) -> None:
    """What holds of every file."""
    assert CANARY not in row["out"] + row["err"]
    assert "Traceback" not in row["out"] + row["err"]
    assert row["out"].replace("\n", "").isprintable()
    assert row["seconds"] < MOST_SECONDS
    assert row["memory"] < MOST_MB


@pytest.mark.parametrize("name", [build.__name__ for build in ROWS] + [f"maps_{build.__name__}" for build in MAPS])
def test_refused_by_the_command(outcomes, name):
    check_refused(*outcomes[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [build.__name__ for build in OTHERS])
def test_variants_refused_by_the_command(other_outcomes, name):
    check_refused(*other_outcomes[name])


@pytest.mark.parametrize("name", [build.__name__ for build in READ])
def test_read_with_a_warning_by_the_command(outcomes, name):
    _, said, row = outcomes[name]
    assert row["code"] == 0, row
    assert row["err"] == ""
    with pytest.raises(ValueError, match=said):
        raise ValueError(row["out"])
    check(row)


def test_there_are_enough_of_them(outcomes):
    assert len(ROWS) + len(READ) >= 25
    assert sum(row["memory"] > 20 for *_, row in outcomes.values()) > len(outcomes) - 3  # it is really measured
