"""Many scans: going on where a command stopped, signals, the ledger, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from rsdmri.cli import main
from rsdmri.errors import InputError, Interrupted
from rsdmri.workflows import reconstruct_files as workflow
from rsdmri.workflows.ledger import Ledger
from rsdmri.workflows.reconstruct_files import reconstruct_files

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"method": "zero-filled", "acceleration": 2, "formats": ["h5"], "trust": True}


@pytest.fixture(scope="module")
def files(simulated):
    return sorted(simulated.glob("*.h5"))[:3]


def quiet(line):
    pass


def ledger(folder):
    return {row["scan"]: row for row in map(json.loads, (folder / "reconstructions.jsonl").read_text().splitlines())}


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def test_the_same_command_goes_on_where_it_stopped(files, tmp_path, monkeypatch):
    real, lines = workflow.reconstruct, []

    def stopping(scan, **options):
        if scan.name == files[1].stem:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(scan, **options)

    monkeypatch.setattr(workflow, "reconstruct", stopping)
    with pytest.raises(Interrupted, match=r"stopped after 1 of 3 scans; run the same command to go on"):
        reconstruct_files(files, tmp_path, say=quiet, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reconstructions.jsonl", files[0].name]
    before = stamps(tmp_path)
    monkeypatch.undo()
    rows = reconstruct_files(files, tmp_path, say=lines.append, **OPTIONS)
    assert ["skipped" in row for row in rows] == [True, False, False]
    assert rows[0]["path"] == tmp_path / files[0].name
    assert rows[0]["method"] == "zero-filled"
    assert f"{files[0].stem}: finished before with these settings" in lines
    assert lines[-1] == "3 scans: 2 reconstructed, 1 finished before"
    assert stamps(tmp_path)[files[0].name] == before[files[0].name]
    assert list(ledger(tmp_path)) == [file.stem for file in files]


def test_a_signal_waits_until_a_result_is_whole(files, tmp_path, monkeypatch):
    real = workflow.export

    def stopping(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(workflow, "export", stopping)
    options = OPTIONS | {"formats": ["h5", "nifti", "png"]}
    with pytest.raises(Interrupted):
        reconstruct_files(files, tmp_path, say=quiet, **options)
    monkeypatch.undo()
    assert {files[0].name, f"{files[0].stem}.png"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob(".tmp*"))
    assert list(ledger(tmp_path)) == [files[0].stem]
    monkeypatch.setattr(workflow, "reconstruct", None)  # not called for what is there
    assert "skipped" in reconstruct_files(files[:1], tmp_path, say=quiet, **options)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"method": "sense"},
        {"acceleration": 3},
        {"map_sets": 2},
        {"mask": "equispaced_fraction"},
        {"center_fraction": 0.4},
    ],
)
def test_results_of_other_settings_are_no_reason_to_skip(change, files, tmp_path):
    reconstruct_files(files[:1], tmp_path, say=quiet, **OPTIONS)
    with pytest.raises(InputError, match="exists; --force replaces it"):
        reconstruct_files(files[:1], tmp_path, say=quiet, **OPTIONS | change)


def test_results_of_other_samples_or_by_force_are_made_anew(files, tmp_path):
    (tmp_path / "in").mkdir()
    scan = tmp_path / "in" / "scan.h5"
    scan.write_bytes(files[0].read_bytes())
    reconstruct_files([scan], tmp_path / "out", say=quiet, **OPTIONS)
    assert "skipped" in reconstruct_files([scan], tmp_path / "out", say=quiet, **OPTIONS)[0]
    assert "skipped" not in reconstruct_files([scan], tmp_path / "out", say=quiet, force=True, **OPTIONS)[0]
    with h5py.File(scan, "r+") as file:
        file["kspace"][0, 0, 0, 0] += 1
    with pytest.raises(InputError, match="exists; --force replaces it"):
        reconstruct_files([scan], tmp_path / "out", say=quiet, **OPTIONS)


def test_the_ledger_tells_of_each_scan_but_not_of_paths(files, tmp_path):
    bad = tmp_path / "DOE_JOHN" / "bad.h5"
    bad.parent.mkdir()
    bad.write_text("not a scan")
    rows = reconstruct_files([files[0], bad], tmp_path / "out", say=quiet, **OPTIONS)
    found = ledger(tmp_path / "out")
    assert [found[name]["status"] for name in (files[0].stem, "bad")] == ["done", "failed"]
    assert found[files[0].stem]["files"] == [files[0].name]
    assert found[files[0].stem]["scores"] == pytest.approx(rows[0]["scores"])
    assert str(bad) in rows[1]["error"]
    assert "DOE" not in (tmp_path / "out" / "reconstructions.jsonl").read_text()
    bad.write_bytes(files[1].read_bytes())  # mended
    lines = []
    reconstruct_files([files[0], bad], tmp_path / "out", say=lines.append, **OPTIONS)
    assert lines[-1] == "2 scans: 1 reconstructed, 1 finished before"
    assert ledger(tmp_path / "out")["bad"]["status"] == "done"


def test_a_damaged_ledger_loses_its_lines_alone(tmp_path):
    (tmp_path / "reconstructions.jsonl").write_text('{"scan": "a"}\n{"scan": 3}\n[1]\n{"scan"')
    (tmp_path / ".reconstructions-1.jsonl").write_text('{"scan": "b"}\n')
    book = Ledger(tmp_path, kept=True)
    book.absorb()
    assert list(ledger(tmp_path)) == ["a", "b"]
    assert not list(tmp_path.glob(".reconstructions*"))


def test_stopping_the_command_is_one_line_and_130(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "reconstruct", lambda scan, **options: os.kill(os.getpid(), signal.SIGTERM))
    command = ["rsdmri", "reconstruct", *map(str, files), "--method", "zero-filled", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Reconstructing")]
    assert said == ["rsdmri: stopped after 0 of 3 scans; run the same command to go on"]


def test_two_processes_share_a_list(files, tmp_path):
    bad = tmp_path / "bad.h5"
    bad.write_text("not a scan")
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")]
    command += [*("-m", "rsdmri", "reconstruct", *map(str, files), str(bad), "--method", "zero-filled", "--trust")]
    command += [*("--acceleration", "2", "--format", "h5", "--out", str(tmp_path / "out"))]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    summaries = [line for line in done.stdout.splitlines() if "scans:" in line]
    assert summaries == ["4 scans: 3 reconstructed, 1 failed"]
    assert sum(f"rsdmri: {bad}" in line for line in done.stderr.splitlines()) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f.name for f in files} | {"reconstructions.jsonl"}
    found = ledger(tmp_path / "out")
    assert [found[name]["status"] for name in (*(f.stem for f in files), "bad")] == ["done"] * 3 + ["failed"]
    alone = reconstruct_files(files, tmp_path / "alone", say=quiet, **OPTIONS)
    for row in alone:
        with h5py.File(row["path"]) as one, h5py.File(tmp_path / "out" / row["path"].name) as other:
            assert (one["reconstruction"][()] == other["reconstruction"][()]).all()
