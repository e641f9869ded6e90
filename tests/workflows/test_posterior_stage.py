"""The posterior stage of a run: exact continuation, what it writes and leaves alone, and reconstructions with it."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from runs import go, names, weights

from rsdmri.config import load_config
from rsdmri.errors import InputError, Interrupted
from rsdmri.priors import load_prior
from rsdmri.reconstruction.posterior import weights_digest
from rsdmri.reconstruction.settings import AmortisedSettings, ProximalSettings
from rsdmri.training.checkpoint import checkpoint_files, load_tensors
from rsdmri.workflows.plan import open_slices
from rsdmri.workflows.reconstruct import reconstruct
from rsdmri.workflows.reconstruct_files import reconstruct_files
from rsdmri.workflows.run_folder import RunFolder, read_metrics
from rsdmri.workflows.sources import KspaceSource

TINY = ("posterior.batch=4", "posterior.learning_rate=1e-3", "posterior.warmup=0")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_settings, simulated, finished_run):
    """`finished_run` with a posterior network of 4 steps."""
    run = tmp_path_factory.mktemp("posterior") / "run"
    shutil.copytree(finished_run, run)
    return go(chosen(tiny_settings, simulated), run, stage="posterior", allow_changes=True)


def chosen(tiny_settings, data, *more):
    return load_config(None, [*tiny_settings, *TINY, "steps=4", f"data.path={data}", *more])


def test_a_posterior_network_is_written_beside_what_was_there(tuned, finished_run):
    own = {name for name in names(tuned) if "posterior" in name}
    assert own == {
        *(f"checkpoints/posterior-{step}.safetensors" for step in ("00000003", "00000004", "best")),
        *(f"posterior/{name}" for name in ("README.md", "config.json", "model.safetensors")),
    }
    for stage in ("teacher", "prior"):
        for name in ("config.json", "model.safetensors"):
            assert (tuned / stage / name).read_bytes() == (finished_run / stage / name).read_bytes()
    meta = json.loads((tuned / "posterior" / "config.json").read_text())
    assert meta["kind"] == "posterior"
    assert "variant amortised" in (tuned / "posterior" / "README.md").read_text()
    rows = [row for row in read_metrics(tuned) if row["stage"] == "posterior"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "validation" in row] == [3, 4]
    before, after = weights(tuned / "teacher"), weights(tuned / "posterior")
    changed = [key for key in before if key.startswith("denoiser.") and not torch.equal(before[key], after[key])]
    assert "denoiser.network.conv_out.weight" in changed


def test_all_stages_end_with_the_posterior_network(tmp_path, tiny_settings, simulated, tuned):
    settings = ["posterior.share=0.2", "steps=4"]
    both = go(chosen(tiny_settings, simulated, *settings), tmp_path / "run")
    assert [row["stage"] for row in read_metrics(both)] == 4 * ["teacher"] + 4 * ["prior"] + 4 * ["posterior"]
    apart = chosen(tiny_settings, simulated, *settings)
    for stage in ("teacher", "posterior"):
        go(apart, tmp_path / "apart", stage=stage)
    assert all(
        map(torch.equal, weights(both / "posterior").values(), weights(tmp_path / "apart" / "posterior").values())
    )
    said = []
    go(apart, both, say=said.append)
    assert "posterior: finished before, after 4 steps" in said


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ([], True),
        (["posterior.share=0"], False),
        (["teacher.objective=edm"], False),
        (["network.preconditioning=published"], False),
        (["prior.objective=ambient-gan"], False),
        (["prior.objective=ambient-gan", "posterior.start=generator"], True),
        (["corruption.kind=inpainting"], False),
    ],
)
def test_which_runs_end_with_a_posterior_network(settings, trained):
    assert load_config(None, settings).trains_posterior is trained


def test_the_prior_of_the_run_is_what_it_was(tuned, finished_run):
    prior = load_prior(tuned, "cpu")
    assert prior.kind == "prior"
    assert prior.digest == load_prior(finished_run, "cpu").digest
    assert prior.posterior is prior.posterior
    assert (prior.posterior.levels, prior.posterior.trust) == ((0.1, 0.05, 0.03), 0.05)
    assert load_prior(tuned / "teacher", "cpu").posterior.digest == prior.posterior.digest
    assert weights_digest(prior, ProximalSettings()) == prior.digest
    assert weights_digest(prior, AmortisedSettings()) == f"{prior.digest} {prior.posterior.digest}"
    with pytest.raises(InputError, match=r"posterior: the network of variant=amortised, which is no prior; give .*run"):
        load_prior(tuned / "posterior", "cpu")
    (tuned.parent / "copy").mkdir(exist_ok=True)
    shutil.copytree(tuned / "prior", tuned.parent / "copy" / "own", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"no posterior network in .*; run rsdmri train --stage posterior"):
        _ = load_prior(tuned.parent / "copy" / "own", "cpu").posterior


class PowerCut(Exception):
    """The process ends here."""


def test_an_interrupted_posterior_ends_up_with_the_same_bits(
    tmp_path, monkeypatch, tiny_settings, simulated, finished_run, tuned
):
    log = RunFolder.log
    stops = [4]

    def stopping(folder, row):
        log(folder, row)
        if stops and row.get("step") == stops[0]:
            stops.pop()
            raise PowerCut

    monkeypatch.setattr(RunFolder, "log", stopping)
    run, lines = tmp_path / "run", []
    shutil.copytree(finished_run, run)
    how = {"stage": "posterior", "allow_changes": True}
    with pytest.raises((PowerCut, Interrupted)):
        go(chosen(tiny_settings, simulated), run, **how)
    assert checkpoint_files(run / "checkpoints", "posterior")[-1].name == "posterior-00000003.safetensors"
    assert not (run / "posterior").exists()
    go(chosen(tiny_settings, simulated), run, say=lines.append, **how)
    assert "posterior: going on from step 3" in lines
    states = [load_tensors(r / "checkpoints" / "posterior-00000004.safetensors")[0] for r in (run, tuned)]
    for a, b in (states, [weights(r / "posterior") for r in (run, tuned)]):
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    go(chosen(tiny_settings, simulated), run, say=lines.append, **how)
    assert "posterior: finished before, after 4 steps" in lines


def test_what_was_not_acquired_cannot_change_a_posterior(tmp_path, tiny_settings, simulated, finished_run, tuned):
    poisoned = tmp_path / "data"
    shutil.copytree(simulated, poisoned)
    for ref in open_slices(chosen(tiny_settings, simulated), simulated).slices:
        with h5py.File(poisoned / ref.path.name, "r+") as file:
            block = file["kspace"][ref.index]
            block[:, ~np.broadcast_to(ref.mask.numpy(), block.shape[1:])] = np.nan
            file["kspace"][ref.index] = block
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    go(chosen(tiny_settings, poisoned), run, stage="posterior", allow_changes=True)
    clean, other = weights(tuned / "posterior"), weights(run / "posterior")
    assert [key for key in clean if not torch.equal(clean[key], other[key])] == []


@pytest.mark.parametrize("share", [0, 1])
def test_lines_held_out_of_a_posteriors_batch(share, tiny_settings, simulated):
    config = chosen(tiny_settings, simulated, f"posterior.held_out={share}", "simulate.noise=0.01")
    source = KspaceSource(config, open_slices(config, simulated), torch.device("cpu")).for_posterior()
    batch = source.batches(48, "key")
    again = source.batches(48, "key", positions=[5, 7])
    assert torch.equal(again.further_mask, batch.further_mask[[5, 7]])
    assert float(batch.sigma_y.min()) > 0
    held = (batch.mask & ~batch.further_mask).sum((1, 2))
    outer = batch.mask.sum((1, 2)) - source.slices.acs_of(source.slices.slices[0])
    assert set(held.tolist()) == {2} if share == 0 else bool(((held >= 1) & (held <= outer)).all())
    assert share == 0 or len(set(held.tolist())) == int(outer.max())


def test_a_posterior_may_start_from_the_generator(tmp_path, tiny_settings, simulated, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    more = ("steps=1", "posterior.start=generator", "posterior.learning_rate=1e-30")
    go(chosen(tiny_settings, simulated, *more), run, stage="posterior", allow_changes=True)
    left, right = weights(run / "prior"), weights(run / "posterior")
    key = "network.conv_out.weight"
    assert torch.equal(left[f"generator.{key}"], right[f"denoiser.{key}"])
    assert not torch.equal(left[f"denoiser.{key}"], right[f"denoiser.{key}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"--stage posterior: .* holds no finished teacher; run --stage teacher there first"),
        (["posterior.start=generator"], r"holds no finished prior; run --stage prior there first"),
        (["network.preconditioning=published"], r"this run has objective ambient, published preconditioning"),
        (["teacher.objective=edm", "acquisition.acceleration=1"], r"this run has objective edm, published"),
    ],
)
def test_posteriors_that_cannot_be_trained(tmp_path, settings, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        go(settings(*overrides), tmp_path / "run", stage="posterior")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_reconstruction_takes_one_evaluation_a_draw_and_two_for_all(tuned, simulated):
    scan = sorted(simulated.glob("*.h5"))[0]
    prior = load_prior(tuned, "cpu")
    how = {"prior": prior, "acceleration": 4, "samples": 3}
    result = reconstruct(scan, options={"variant": "amortised"}, **how)
    assert result.attrs["evaluations"] == 2 + 3
    assert result.attrs["posterior_sha256"] == prior.posterior.digest
    assert result.scores["nmse"] < 0.5
    told = {"variant": "amortised", "trust": 0}
    assert np.array_equal(result.complex_images, reconstruct(scan, options=told, **how).complex_images)
    changed = reconstruct(scan, options={"variant": "amortised", "trust": 0.05}, **how)
    assert not np.allclose(result.complex_images, changed.complex_images, atol=1e-4)
    coarse = reconstruct(scan, options={"bfloat16": True}, **how)
    off = np.linalg.norm(coarse.complex_images - result.complex_images) / np.linalg.norm(result.complex_images)
    assert 1e-6 < off < 0.03
    assert not prior.posterior.denoiser.autocast
    warmer = reconstruct(scan, options={"warm": 60}, **how)
    assert not np.allclose(result.complex_images, warmer.complex_images, atol=1e-4)
    assert np.array_equal(result.complex_images, reconstruct(scan, options={"warm": 20}, **how).complex_images)
    nearer = reconstruct(scan, options={"agree": 10}, **how)
    assert nearer.scores["nmse"] < result.scores["nmse"]  # of a network of 4 steps
    moved = nearer.complex_images - result.complex_images
    left = reconstruct(scan, options={"agree": 40}, **how).complex_images - nearer.complex_images
    assert 0 < np.linalg.norm(left) < 0.3 * np.linalg.norm(moved)


def test_rsd_takes_it_unless_asked_for_another(tuned, simulated):
    scan, prior = sorted(simulated.glob("*.h5"))[0], load_prior(tuned, "cpu")

    def settings(options):
        return reconstruct(scan, prior=prior, acceleration=4, samples=2, options=options).attrs["settings"]

    assert settings(None) == settings({"variant": "amortised"}) != settings({"trust": 0.1})
    assert '"amortised"' in settings({"trust": 0.1})
    assert '"proximal"' in settings({"levels": [0.1]})
    assert '"proximal"' in settings({"variant": "proximal"})


def test_files_are_made_with_it_and_skipped_by_it(tmp_path, tuned, simulated):
    scan, lines = sorted(simulated.glob("*.h5"))[0], []
    for options, force in ((None, False), ({"variant": "amortised"}, False), ({"variant": "proximal"}, True)):
        how = {"prior": tuned, "acceleration": 4, "samples": 2, "settings": options, "force": force}
        (row,) = reconstruct_files([scan], tmp_path / "out", formats=["h5"], say=lines.append, **how)
        assert ("skipped" in row) == (options == {"variant": "amortised"})
        with h5py.File(row["path"]) as file:
            assert f'"{(options or {}).get("variant", "amortised")}"' in file.attrs["settings"]


def test_a_run_without_one_is_refused_in_a_line(finished_run, simulated):
    scan = sorted(simulated.glob("*.h5"))[0]
    words = r"variant=amortised: no posterior network in .*; run rsdmri train --stage posterior"
    with pytest.raises(InputError, match=words) as caught:
        reconstruct(scan, prior=finished_run, acceleration=4, options={"variant": "amortised"}, device="cpu")
    assert "\n" not in str(caught.value)
