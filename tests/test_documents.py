"""Documents that promise something are held to it."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rsdmri import __version__
from rsdmri.cli import app
from rsdmri.config import Config, load_config
from rsdmri.data.manifest import COLUMNS, read_manifest
from rsdmri.workflows.run_folder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "data_manifests").is_dir(), reason="runs in a source checkout only")


def test_the_described_simulated_set_is_the_default():
    path = ROOT / "data_manifests" / "simulated-default.toml"
    assert load_config(path, []).simulate == Config().simulate
    command = re.search(r"rsdmri simulate OUT (.*)", path.read_text(encoding="utf-8"))[1]
    options = dict(zip(command.split()[::2], command.split()[1::2], strict=True))
    defaults = Config().simulate.model_dump(exclude={"accelerations"})
    assert options == {f"--{name.replace(chr(95), chr(45))}": str(value) for name, value in defaults.items()}


def test_the_manifest_page_names_every_column_and_its_command_runs(tmp_path, monkeypatch, simulated):
    text = (ROOT / "data_manifests" / "README.md").read_text(encoding="utf-8")
    assert "\t".join(COLUMNS) in text
    assert all(f"`{column}`" in text for column in COLUMNS)
    shutil.copytree(simulated, tmp_path / "scans", ignore=shutil.ignore_patterns("*.tsv"))
    monkeypatch.chdir(tmp_path)
    command = re.search(r"```bash\nrsdmri (index .*)\n```", text)[1]
    assert CliRunner().invoke(app, shlex.split(command)).exit_code == 0
    entries = read_manifest(tmp_path / "scans")
    assert [entry.path.name for entry in entries] == [f"sim{i:05d}.h5" for i in range(4)]
    assert {entry.licence for entry in entries} == {"ours"}


HEADINGS = ("What", "Licence and registration", "Layout", "Counts", "Checking it", "Citation")
PAGES = ("fastmri", "m4raw", "cmrxrecon", "skm-tea", "ocmr", "calgary-campinas", "mridata")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_of_a_data_set_has_every_heading_and_its_commands_parse(page):
    text = (ROOT / "data_manifests" / f"{page}.md").read_text(encoding="utf-8")
    assert re.findall(r"^\*\*([^*]+)\.\*\*", text, re.MULTILINE) == list(HEADINGS)
    assert f"({page}.md)" in (ROOT / "data_manifests" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^rsdmri (index .*?)$", text.replace("\\\n", " "), re.MULTILINE)
    assert commands
    for command in commands:
        arguments = shlex.split(command, comments=True)
        options = get_command(app).commands["index"].make_context("index", arguments[1:]).params
        assert options["licence"]
        assert not options["subject"] or re.compile(options["subject"]).groups == 1


def test_every_page_is_tested():
    pages = {path.stem for path in (ROOT / "data_manifests").glob("*.md")} - {"README"}
    assert pages == set(PAGES)


def test_versions_agree():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_training_page_names_what_a_run_holds_and_its_settings(finished_run):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for row in read_metrics(finished_run) for key in row)
    for path in finished_run.iterdir():
        assert f"`{path.name}" in text, path.name
    for key in re.findall(r"`((?:teacher|prior|logging)\.\w+)`", text):
        section, _, name = key.partition(".")
        assert name in type(getattr(Config(), section)).model_fields
    for command in re.findall(r"^rsdmri ((?:average|ablate) .*?)$", text, re.MULTILINE):
        name, *options = shlex.split(command, comments=True)
        get_command(app).commands[name].make_context(name, options)


def test_the_torchrun_lines_of_the_recipes_parse():
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^torchrun (.*) -m rsdmri train (.*)$", text, re.MULTILINE)
    assert len(lines) == 2
    parser = pytest.importorskip("torch.distributed.run", reason="torch was built without it").get_args_parser()
    for start, rest in lines:
        assert parser.parse_args([*shlex.split(start), "script"]).nproc_per_node in ("4", "8")
        options = get_command(app).commands["train"].make_context("train", shlex.split(rest)).params
        assert (ROOT / options["recipe"]).is_file()


STUBS = {
    "srun": """printf '%s\\n' "$@" > "$OUT/called"; [ -z "$MADE" ] || touch "$OUT/$MADE"; exit "$CODE" """,
    "scontrol": """[ "$1" = show ] && printf 'node7\\nnode8\\n' || echo "$@" > "$OUT/requeued" """,
}


@pytest.mark.parametrize(
    ("made", "code", "ends", "requeued"),
    [
        ("prior/config.json", 0, 0, False),
        ("checkpoints/teacher-00000002.safetensors", 0, 0, True),  # asked to stop, saved
        ("checkpoints/teacher-00000002.safetensors", 1, 0, True),  # a node was lost
        ("", 1, 1, False),  # the same error as before
        ("", 0, 1, False),
    ],
)
def test_the_slurm_script_starts_torchrun_and_comes_again_only_after_progress(tmp_path, made, code, ends, requeued):
    bash = shutil.which("bash") or pytest.skip("there is no bash")
    for folder in ("bin", "checkpoints", "prior"):
        (tmp_path / folder).mkdir()
    for name, body in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "checkpoints" / "teacher-00000001.safetensors").touch()
    (tmp_path / ".lock").touch()
    slurm = {"NNODES": "2", "GPUS_ON_NODE": "8", "JOB_ID": "11", "JOB_NODELIST": "node[7-8]", "RESTART_COUNT": "1"}
    environment = os.environ | {f"SLURM_{key}": value for key, value in slurm.items()}
    environment |= {"DATA": "scans.tsv", "OUT": str(tmp_path), "MADE": made, "CODE": str(code)}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run([bash, "recipes/slurm.sh", "--seed", "3"], cwd=ROOT, env=environment, capture_output=True)
    assert run.returncode == ends, run.stderr
    assert (tmp_path / "requeued").exists() == requeued
    assert not (tmp_path / ".lock").exists()
    called = (tmp_path / "called").read_text().split("\n")
    torchrun, train = called[: called.index("-m", 4)], called[called.index("train") :]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node7:29500", "--rdzv-id=11-1"} <= set(torchrun)
    options = get_command(app).commands["train"].make_context("train", train[1:-1]).params
    assert (options["seed"], options["data"], options["out"]) == (3, "scans.tsv", tmp_path)
    assert (ROOT / options["recipe"]).is_file()
