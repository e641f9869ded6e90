"""Priors of another average: what is written, how the length is chosen, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rsdmri.cli import app
from rsdmri.config import load_config
from rsdmri.errors import InputError
from rsdmri.priors import load_prior
from rsdmri.training import snapshots
from rsdmri.training.post_hoc import Profile, average_of
from rsdmri.training.snapshots import snapshot_files
from rsdmri.workflows import average as module
from rsdmri.workflows.average import average, validation_loss, validation_source
from rsdmri.workflows.train import train


def quiet(line: str) -> None:
    del line


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_settings, simulated) -> Path:
    """A run of 8 steps of each stage with a snapshot of every step."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    config = load_config(None, [*tiny_settings, "steps=8", "teacher.learning_rate=3e-3", f"data.path={simulated}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "FIRST", 1)
        return train(config, folder, device="cpu", say=quiet)


@pytest.mark.parametrize("stage", ["teacher", "prior"])
def test_the_prior_that_is_written_has_the_averaged_weights(tmp_path, run, stage):
    expected, error = average_of(snapshot_files(run / "averages", stage), Profile(8, 0.08))
    average(run, tmp_path / "out", sigma_rel=0.08, stage=stage, device="cpu", say=quiet)
    made, before = load_prior(tmp_path / "out", "cpu"), load_prior(run / stage, "cpu")
    assert made.kind == stage
    network, old = (p.denoiser if stage == "teacher" else p.generator for p in (made, before))
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in expected.items())
    assert not torch.equal(network.state_dict()[next(iter(expected))], old.state_dict()[next(iter(expected))])
    if stage == "prior":
        kept = before.denoiser.state_dict()
        assert all(torch.equal(kept[key], tensor) for key, tensor in made.denoiser.state_dict().items())
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["average"] == {"kind": "power", "sigma_rel": 0.08, "step": 8, "profile_error": error}
    assert told["training"] == before.meta["training"]
    assert made.sample(2, teacher=stage == "teacher", steps=2).shape == (2, 32, 32)


@pytest.mark.parametrize("stage", ["teacher", "prior"])
def test_the_best_of_several_is_taken_where_none_is_asked_for(tmp_path, monkeypatch, run, stage):
    monkeypatch.setattr(module, "BATCHES", 2)
    lines = []
    average(run, tmp_path / "out", stage=stage, device="cpu", say=lines.append)
    chosen = json.loads((tmp_path / "out" / "config.json").read_text())["average"]["sigma_rel"]
    (line,) = [line for line in lines if "as the run left it" in line]
    losses = {float(part.split(" at ")[1]): float(part.split(" at ")[0]) for part in line.split("; ")[1].split(", ")}
    assert len(losses) > 3
    assert losses[chosen] == min(losses.values())
    source = validation_source(load_prior(run, "cpu").config, run, None, torch.device("cpu"), quiet)
    found = validation_loss(load_prior(tmp_path / "out", "cpu"), source)
    assert found == pytest.approx(losses[chosen], rel=1e-4)
    assert validation_loss(load_prior(tmp_path / "out", "cpu"), source) == found


def test_validation_takes_held_out_scans_or_says_that_there_are_none(tmp_path, run, simulated):
    config, lines = load_prior(run, "cpu").config, []
    assert len(validation_source(config, run, None, torch.device("cpu"), lines.append)) > 0
    held_out = "val" in (simulated / "manifest.tsv").read_text()
    assert any("no scans of split val" in line for line in lines) != held_out
    with pytest.raises(InputError, match="--data names the scans to validate on"):
        validation_source(config, run, str(tmp_path / "none"), torch.device("cpu"), quiet)


def test_the_command(tmp_path, run):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["average", str(run), "--sigma-rel", "0.07", "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0
    assert "prior: 8 snapshots, steps 1 to 8" in result.output
    assert load_prior(out, "cpu").kind == "prior"


def test_refusals(tmp_path, run):
    for length in (0.0, 0.3, float("nan")):
        with pytest.raises(InputError, match=r"--sigma-rel .*: expected a share above 0 and at most 0\.289"):
            average(run, tmp_path / "out", sigma_rel=length, device="cpu", say=quiet)
    with pytest.raises(InputError, match="holds a prior; choose another folder"):
        average(run, run / "prior", sigma_rel=0.08, device="cpu", say=quiet)
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("averages"))
    with pytest.raises(InputError, match="no snapshots of the prior's averages"):
        average(bare, tmp_path / "out", sigma_rel=0.08, device="cpu", say=quiet)
    with pytest.raises(InputError, match=r"no such prior|no finished"):
        average(tmp_path / "none", tmp_path / "out", device="cpu", say=quiet)
    assert not (tmp_path / "out").exists()
