"""The command line: every refusal one line and exit code 2 with nothing written, and the contract of names."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import rsdmri
from rsdmri import cli
from rsdmri.data.manifest import read_manifest
from rsdmri.physics.masks import FAMILIES
from rsdmri.workflows.run_folder import RunFolder

COMMANDS = (
    "simulate",
    "index",
    "train",
    "average",
    "ablate",
    "sample",
    "reconstruct",
    "calibrate",
    "evaluate",
    "inspect",
    "convert",
    "validate",
    "doctor",
    "demo",
)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """``run(*arguments)`` is (exit code, standard output, standard error) of the command in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rsdmri", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(run, tmp_path):
    """``refused(*arguments)`` is the one line with which the command refuses; nothing was written or removed."""

    def call(*arguments: object) -> str:
        before = files(tmp_path)
        code, out, err = run(*arguments)
        assert code == 2, (out, err)
        assert err.startswith("rsdmri: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in out + err
        assert len(err) < 600
        assert files(tmp_path) == before
        assert not list((tmp_path / "here").iterdir()), "a folder was left"
        return err

    return call


@pytest.fixture
def hostile(tmp_path, simulated) -> Path:
    """Folder of files that are not what they should be."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    whole = (simulated / "sim00000.h5").read_bytes()
    (folder / "text.h5").write_text("no scan\n")
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.h5").touch()
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95cposix\nsystem\n.")
    (folder / "zip.pt").write_bytes(b"PK\x03\x04archive/data.pkl")
    (folder / "in-the-way").write_text("a file")
    (folder / "typo.toml").write_text("[teacher]\nbacth = 3\n")
    (folder / "broken.toml").write_text("[teacher\n")
    with h5py.File(folder / "no-kspace.h5", "w") as file:
        file["image"] = np.zeros((2, 2))
    for name, kspace in {
        "rank": np.zeros((4, 4), np.complex64),
        "dtype": np.zeros((1, 2, 8, 8), np.int32),
        "coils": np.zeros((1, 0, 8, 8), np.complex64),
        "nan": np.full((1, 2, 32, 32), np.nan, np.complex64),
    }.items():
        (folder / name).mkdir()
        with h5py.File(folder / name / "scan.h5", "w") as file:
            file["kspace"] = kspace
    for name in ("text", "cut", "empty", "no-kspace"):
        (folder / name).mkdir()
        (folder / f"{name}.h5").rename(folder / name / "scan.h5")
    return folder


@pytest.mark.parametrize(
    ("scans", "message"),
    [
        ("none", "no such manifest or folder"),
        ("none/scan.h5", "no such manifest or folder"),
        ("text", "is not an HDF5 file"),
        ("cut", "cut short|damaged"),
        ("empty", "is empty"),
        ("no-kspace", "no data set 'kspace'"),
        ("rank", "k-space has 2 axes"),
        ("dtype", "k-space has type int32"),
        ("coils", "k-space has 0 coils"),
        ("nan", "NaN or infinite"),
    ],
)
def test_train_refuses_bad_scans(refused, hostile, scans, message):
    assert re.search(message, refused("train", "--data", hostile / scans, "--device", "cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "none.toml"], "no such recipe"),
        (["--recipe", "{hostile}/broken.toml"], "not valid TOML"),
        (["--recipe", "{hostile}/typo.toml"], "unknown key 'teacher.bacth'; did you mean 'teacher.batch'?"),
        (["--set", "teacher.bacth=3"], "unknown key 'teacher.bacth'; did you mean 'teacher.batch'?"),
        (["--set", "stepz=3"], "unknown key 'stepz'; did you mean 'steps'?"),
        (["--set", "steps"], "expected key=value"),
        (["--set", "teacher.batch=many"], "teacher.batch"),
        (["--acceleration", "0.5"], "acquisition.acceleration: input should be greater than or equal to 1"),
        (["--acceleration", "-4"], "greater than or equal to 1"),
        (["--acceleration", "nan"], "finite number"),
        (["--acceleration", "40"], "coil maps need 4; use at most 16"),
        (["--acceleration", "40", "--data", "{scans}"], "coil maps need 4; use at most 4"),
        (["--acceleration", "8", "--set", "acquisition.center_fraction=0.5"], "fewer than the 64 ACS lines"),
        (["--set", "acquisition.mask=equispaced_fraction"], "acquisition.mask=random"),
        (["--out", "{hostile}/in-the-way", "--data", "{scans}"], "output folder cannot be written"),
        (["--out", "{hostile}/in-the-way/run"], "output folder cannot be written"),
        (["--budget", "soon"], "--budget soon: expected a time such as"),
        (["--budget", "0"], "--budget 0: expected a time"),
        (["--budget", "-5m"], "--budget -5m: expected a time"),
        (["--budget", ""], "--budget : expected a time"),
        (["--device", "nonsense"], "--device nonsense: not available here"),
        (["--device", "cuda:99"], "--device cuda:99: not available here"),
        (["--device", "meta"], "--device meta: not available here"),
        (["--stage", "prior"], "--stage prior: .* holds no finished teacher"),
        (["--stage", "posterior"], "--stage posterior: .* holds no finished teacher"),
    ],
)
def test_train_refuses_bad_options(refused, hostile, simulated, arguments, message):
    err = refused("train", *(each.format(hostile=hostile, scans=simulated) for each in arguments))
    assert re.search(message.replace("?", r"\?"), err)


def test_train_refuses_other_settings_by_name(refused, tmp_path, finished_run):
    shutil.copytree(finished_run, tmp_path / "run")
    settings = ["--recipe", tmp_path / "run" / "config.toml", "--out", tmp_path / "run", "--device", "cpu"]
    assert "acquisition.acceleration: 4.0 there, 2.0 asked" in refused("train", *settings, "--acceleration", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", "none"], "none: no such prior"),
        (["--prior", "{hostile}/pickle.safetensors"], "pickled weights are not opened"),
        (["--prior", "{hostile}/zip.pt"], "pickled weights are not opened"),
        (["--prior", "{hostile}/typo.toml"], "not a safetensors file"),
        (["--prior", "{hostile}"], "no finished prior in this folder"),
        ([], "no finished prior under runs/; run rsdmri train first"),
        (["--prior", "{run}", "--n", "0"], "--n 0: must be at least 1"),
        (["--prior", "{run}", "--n", "-1"], "--n -1: must be at least 1"),
        (["--prior", "{run}", "--teacher", "--steps", "0"], "--steps 0: must be at least 1"),
        (["--prior", "{run}", "--teacher", "--churn", "-1"], "--churn -1: must be a number of at least 0"),
        (["--prior", "{run}", "--teacher", "--churn", "nan"], "--churn nan: must be a number"),
        (["--prior", "{run}", "--teacher", "--sampler", "euler", "--churn", "1"], "not with --sampler euler"),
        (["--prior", "{run}", "--steps", "9"], "--sampler, --steps and --churn: the one-step prior takes one step"),
        (["--prior", "{run}", "--states"], "--states: the one-step prior has no steps to show; add --teacher"),
        (["--prior", "{run}", "--device", "nonsense"], "--device nonsense: not available here"),
        (["--prior", "{run}", "--out", "{hostile}/in-the-way"], "output folder cannot be written"),
        (["--prior", "{run}/teacher"], "no one-step prior yet"),
    ],
)
def test_sample_refuses_bad_input(refused, hostile, finished_run, arguments, message):
    assert message in refused("sample", *(each.format(hostile=hostile, run=finished_run) for each in arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{hostile}/in-the-way"], "output folder cannot be written"),
        (["out", "--scans", "0"], "--scans 0: must be between"),
        (["out", "--slices", "0"], "--slices 0: must be between"),
        (["out", "--size", "3"], "--size 3: must be between"),
        (["out", "--coils", "0"], "--coils 0: must be between"),
        (["out", "--noise", "-1"], "--noise -1.0: must be between"),
        (["out", "--noise", "nan"], "--noise nan: must be between"),
    ],
)
def test_simulate_refuses_bad_input(refused, hostile, arguments, message):
    assert message in refused("simulate", *(each.format(hostile=hostile) for each in arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.h5", "{scan}"], "none.h5: no such file"),
        (["{scan}", "none.h5"], "none.h5: no such file"),
        (["{hostile}/text/scan.h5", "{scan}"], "is not an HDF5 file"),
        (["{scan}", "{scan}"], "reconstruction"),
        (["{good}", "{scan}", "--out", "{hostile}/in-the-way/metrics.json"], "cannot be written"),
    ],
)
def test_evaluate_refuses_bad_input(refused, hostile, simulated, tmp_path, arguments, message):
    good = tmp_path / "good.h5"
    with h5py.File(simulated / "sim00000.h5") as scan, h5py.File(good, "w") as file:
        file["reconstruction"] = scan["reconstruction_rss"][()]
    places = {"hostile": hostile, "scan": simulated / "sim00000.h5", "good": good}
    assert message in refused("evaluate", *(each.format(**places) for each in arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["reconstruct", "scan.h5", "--method", "magic"],
        ["calibrate", "scan.h5", "--acceleration", "fast"],
        ["train", "--stage", "third"],
        ["train", "--acceleration", "four"],
        ["simulate"],
        ["simulate", "out", "--contrast", "T9"],
        ["sample", "--frobnicate"],
        ["frobnicate"],
    ],
)
def test_misspelt_commands_get_a_short_usage_error(run, tmp_path, arguments):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "Error: " in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 5
    assert not list((tmp_path / "here").iterdir())


def test_errors_of_several_lines_become_one(run, monkeypatch):
    def fail() -> None:
        raise rsdmri.errors.InputError("a file:\nwith a\n\tstrange name")

    monkeypatch.setattr(cli, "app", fail)
    assert run() == (2, "", "rsdmri: a file: with a strange name\n")


def test_interrupting_is_one_line(run, monkeypatch):
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stop)
    assert run() == (130, "", "rsdmri: stopped\n")


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert rsdmri.RESEARCH_ONLY in " ".join(out.split())
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s+\S", out, re.MULTILINE), command


OPTIONS = {
    "simulate": {"--scans": 10, "--slices": 8, "--size": 128, "--coils": 8, "--noise": 0.01, "--contrast": "mixed",
                 "--seed": 0},
    "index": {"--out": "manifest.tsv", "--splits": "0.8,0.1,0.1", "--subject": None, "--anatomy": None,
              "--licence": None, "--salt": None, "--strict": None, "--seed": 0, "--trust": None},
    "train": {"--data": None, "--acceleration": 4, "--stage": "all", "--recipe": None, "--set": None,
              "--out": "runs/NAME", "--budget": None, "--device": "auto", "--seed": 0, "--equivariance": None,
              "--dry-run": None, "--allow-changes": None},
    "average": {"--out": None, "--sigma-rel": None, "--stage": "all", "--data": None, "--device": "auto"},
    "ablate": {"--teacher": None, "--values": None, "--seeds": "0,1,2", "--budget": None, "--steps": None,
               "--set": None, "--reference": None, "--features": None, "--samples": 256, "--recipe": None,
               "--data": None, "--out": "ablations/AXIS", "--device": "auto"},
    "sample": {"--prior": None, "--n": 16, "--teacher": None, "--sampler": "heun", "--steps": 18, "--churn": 0.0,
               "--states": None, "--contrast": None, "--field": None, "--seed": 0, "--out": None},
    "reconstruct": {"--method": "rsd", "--prior": None, "--acceleration": None, "--mask": "random",
                    "--center-fraction": None, "--samples": 8, "--out": None,
                    "--format": "h5,png", "--force": None, "--dicom-source": None, "--budget": None, "--trust": None,
                    "--set-method": None, "--check": None, "--warn-only": None},
    "calibrate": {"--acceleration": None, "--mask": "random", "--center-fraction": None, "--prior": None,
                  "--method": "rsd", "--samples": 8, "--set-method": None, "--level": 0.9, "--seed": 0},
    "evaluate": {"--target": None, "--acquisition": None, "--acceleration": None, "--out": None},
    "inspect": {"--png": None, "--variable": None, "--axes": None, "--frame": None, "--trust": None},
    "convert": {"--emulate-singlecoil": None, "--force": None, "--variable": None, "--axes": None, "--frame": None},
    "validate": {"--json": None, "--trust": None},
    "demo": {"--quick": None},
    "doctor": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("simulate", ["mixed", "T1w", "T2w", "PDw", "FLAIR"]),
        ("train", ["all", "teacher", "prior", "posterior"]),
        ("sample", ["heun", "euler", "dpmpp-2m"]),
        ("average", ["all", "teacher", "prior"]),
        ("reconstruct", ["rsd", "adps", "diffpir", "ambient-one-step", "sense", "l1-wavelet", "tv", "zero-filled"]),
        ("reconstruct", FAMILIES),
        ("calibrate", FAMILIES),
    ],
)
def test_choices_are_the_contract(run, command, choices):
    _, out, _ = run(command, "--help")
    assert "|".join(choices).lower() in out.lower()


@pytest.mark.parametrize("command", COMMANDS)
def test_options_and_defaults_are_the_contract(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    entries = re.split(r"^  (?:-\w, )?(--[\w-]+)", out, flags=re.MULTILINE)
    texts = {option: " ".join(text.split()) for option, text in zip(entries[1::2], entries[2::2], strict=True)}
    for option, default in OPTIONS[command].items():
        assert option in texts
        if default is not None:
            assert re.search(rf"\[(default: )?{re.escape(str(default))}\]", texts[option]), (option, texts[option])


def test_version(run):
    assert run("--version") == (0, f"rsdmri {rsdmri.__version__}\n", "")


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_imports_stay_light():
    heavy = [
        "torch",
        "numpy",
        "scipy",
        "h5py",
        "sigpy",
        "skimage",
        "matplotlib",
        "pydantic",
        "nibabel",
        "nilearn",
        "rich",
    ]
    code = (
        "import sys; import rsdmri; first = set(sys.modules); import rsdmri.cli; "
        f"print([m for m in {heavy!r} if m in sys.modules], [m for m in first if m.startswith('rsdmri')])"
    )
    done = python(code)
    assert done.stdout.strip() == "[] ['rsdmri']", done.stderr


def test_help_answers_at_once():
    """Half a second of processor time, so that a busy machine does not fail it."""
    code = (
        "import os, sys, time; from rsdmri.cli import main; sys.argv = ['rsdmri', '--help']\n"
        "try: main()\nexcept SystemExit: print(sum(os.times()[:2]), file=sys.stderr)"
    )
    done = python(code)
    assert "reconstruct" in done.stdout
    assert float(done.stderr) < 0.5


def test_installed_command_exits_with_two_and_one_line(tmp_path):
    """The same from outside: a real process, its exit status and its streams."""
    command = [sys.executable, "-m", "rsdmri", "train", "--recipe", "none.toml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "rsdmri: none.toml: no such recipe; see the recipes folder for examples\n"
    assert list(tmp_path.iterdir()) == []


def test_simulate_writes_scans_and_a_manifest(run):
    code, out, _ = run("simulate", "out", "--scans", 3, "--slices", 1, "--size", 32, "--coils", 2, "--contrast", "t2w")
    assert code == 0
    assert out == "3 scans of 1 slices: out/manifest.tsv\n"
    entries = read_manifest("out")
    assert [entry.split for entry in entries] == ["train", "val", "test"]
    assert {entry.contrast for entry in entries} == {"T2w"}


def said(err: str) -> list[str]:
    """Lines of standard error but those of progress, which appear where the machine is slow."""
    return [line for line in err.splitlines() if not re.search(r" in \d+ s|elapsed", line)]


def test_index_writes_a_manifest_and_warns_of_broken_files(run, simulated):
    shutil.copytree(simulated, "scans", ignore=shutil.ignore_patterns("*.tsv"))
    Path("scans/bad.h5").write_text("bad")
    code, out, err = run("index", "scans", "-o", "m.tsv", "--licence", "CC0")
    assert code == 0
    assert out.startswith("4 scans of 4 subjects: train ")
    assert out.endswith("written: m.tsv\n")
    assert said(err) == ["rsdmri: warning: 1 broken files left out, listed with reasons in m.broken.tsv"]
    code, out, err = run("index", "scans", "-o", "n.tsv", "--strict")
    assert (code, out, len(said(err))) == (2, "", 1)
    assert "bad.h5: is not an HDF5 file" in err
    assert not Path("n.tsv").exists()


def test_data_with_credentials_is_refused_before_anything_is_stored(refused):
    line = refused("train", "--data", "s3://key:hunter2@bucket/set?token=hunter2")
    assert "--data s3://bucket/set: carries credentials" in line
    assert "hunter2" not in line
    line = refused("train", "--set", "data.path=https://host/m.tsv?token=hunter2")
    assert "hunter2" not in line


def test_train_and_sample(run, tmp_path, simulated, tiny_settings):
    sets = [part for each in (*tiny_settings, "steps=2") for part in ("--set", each)]
    shared = ["--data", os.path.relpath(simulated), "--acceleration", 3, "--seed", 1, "--device", "cpu"]
    code, out, err = run("train", *shared, *sets)
    assert code == 0, err
    assert "nominal 3, achieved" in out
    told = out.splitlines()[-2:]  # tiny_settings leave the posterior network out
    assert told[0] == "finished: runs/multicoil-r3-seed1"
    assert told[1] == "next: the same command with --stage posterior trains what reconstructs best"
    code, out, _ = run("train", *shared, *sets)
    assert code == 0
    assert "prior: finished before, after 2 steps" in out

    code, out, _ = run("sample", "--n", 2, "--out", "samples", "--device", "cpu")
    assert code == 0
    assert "2 images of 32 x 32, 1 evaluations each" in out
    assert sorted(path.name for path in Path("samples").iterdir()) == ["samples.h5", "samples.png"]

    teacher = ["--teacher", "--sampler", "dpmpp-2m", "--steps", 5, "--states", "--device", "cpu"]
    code, out, _ = run("sample", "--n", 2, "--out", "teacher", *teacher)
    assert code == 0
    assert "2 images of 32 x 32, 5 evaluations each" in out
    assert "teacher/states.png" in out
    assert Path("teacher/states.png").is_file()


def test_dry_run_prints_the_plan_and_writes_nothing(run, tmp_path, simulated):
    code, out, _ = run("train", "--data", simulated, "--dry-run")
    assert code == 0
    for word in ("nominal 4", "achieved", "ACS 4 lines", "random", "image scale", "parameters", "GB"):
        assert word in out
    assert not list((tmp_path / "here").iterdir())
    code, out, _ = run(
        "train", "--data", simulated, "--dry-run", "--out", "run", "--set", "acquisition.shared_mask=true"
    )
    assert code == 2
    assert [path.name for path in (tmp_path / "here" / "run").iterdir()] == ["coverage.png"]
    shared = ("train", "--data", simulated, "--dry-run", "--equivariance", "--set", "acquisition.shared_mask=true")
    code, out, _ = run(*shared)
    assert code == 0
    assert "the equivariant term alone teaches" in out


def test_evaluate_prints_and_writes_the_figures(run, tmp_path, simulated):
    with h5py.File(simulated / "sim00000.h5") as scan, h5py.File(tmp_path / "sim00000.h5", "w") as file:
        file["reconstruction"] = 1.1 * scan["reconstruction_rss"][()]
    code, out, _ = run("evaluate", tmp_path / "sim00000.h5", simulated, "--out", "metrics.json")
    assert code == 0
    assert re.search(r"\b0\.01\b", out)
    figures = json.loads(Path("metrics.json").read_text())
    assert figures["mean"]["nmse"] == pytest.approx(0.01, rel=1e-3)


def test_stopping_a_training_exits_with_zero(run, monkeypatch, simulated, tiny_settings):
    log = RunFolder.log

    def stopping(folder: RunFolder, row: dict) -> None:
        log(folder, row)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "log", stopping)
    sets = [part for each in (*tiny_settings, "steps=4") for part in ("--set", each)]
    code, _, err = run("train", "--data", simulated, "--out", "run", "--device", "cpu", *sets)
    assert code == 0
    assert said(err)[-1] == "teacher: stopped after step 1; run the same command to go on"
    found = {path.name for path in Path("run/checkpoints").iterdir()}
    assert found == {"manifest.json", "teacher-00000001.safetensors"}
