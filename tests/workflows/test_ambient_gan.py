"""The AmbientGAN baseline from the command to its figures: no teacher, and a prior like any other."""

import json

import pytest
from runs import go

from rsdmri.data.simulate_files import write_simulated
from rsdmri.errors import InputError
from rsdmri.priors import load_prior
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows.assess import assess
from rsdmri.workflows.reconstruct import chosen_prior
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.sample import sample


@pytest.fixture(scope="module")
def trained(tiny_settings, simulated, tmp_path_factory):
    from rsdmri.config import load_config

    chosen = ["prior.objective=ambient-gan", "teacher.objective=fourier-ambient", "steps=3", f"data.path={simulated}"]
    lines = []
    folder = tmp_path_factory.mktemp("runs") / "gan"
    return go(load_config(None, [*tiny_settings, *chosen]), folder, say=lines.append), lines


def test_one_command_trains_a_prior_without_a_teacher(trained, tmp_path):
    folder, lines = trained
    assert not (folder / "teacher").exists()
    assert {row["stage"] for row in read_metrics(folder)} == {"prior"}
    assert not [line for line in lines if line.startswith("teacher: ")]
    names = load_tensors(folder / "prior" / "model.safetensors")[0]
    assert not [name for name in names if name.startswith("denoiser.")]
    assert "one-step generator without a teacher" in (folder / "prior" / "README.md").read_text()
    sample(folder, n=2, out=tmp_path, device="cpu", say=lines.append)
    assert (tmp_path / "samples.png").exists()


def test_what_needs_a_denoiser_is_refused(trained):
    prior = load_prior(trained[0], "cpu")
    with pytest.raises(InputError, match="--teacher: a prior of ambient-gan has none; leave it out"):
        prior.sample(1, teacher=True)
    with pytest.raises(InputError, match="no denoiser to reconstruct with; give a distilled one"):
        chosen_prior(prior, "cpu")


def test_it_is_assessed_without_the_teacher(trained, tmp_path):
    write_simulated(tmp_path / "clean", scans=3, slices=4, size=32, coils=4, noise=0.02, seed=9)
    assess(trained[0], tmp_path / "clean", samples=12, out=tmp_path / "out", device="cpu", say=lambda line: None)
    row = json.loads((tmp_path / "out" / "assessment.json").read_text())
    assert row["objective"] == "ambient-gan"
    assert row["prior"]["frechet"] > 0
    assert not {"teacher", "denoiser NRMSE"} & row.keys()
