"""Priors on disk: loading, what is refused, samples that depend on their number alone."""

import hashlib
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import rsdmri
from rsdmri.config import load_config
from rsdmri.data.derived import contrast
from rsdmri.data.manifest import read_manifest
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.sample import Churn, SamplerSettings, Trajectory
from rsdmri.distillation.generator import Generator
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.priors import build_denoiser, load_prior, newest_prior, save_prior
from rsdmri.runtime import select_device, torch_generator
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows.sample import sample, timed_samples
from rsdmri.workflows.train import train


@pytest.fixture(scope="module")
def prior(finished_run):
    return load_prior(finished_run, "cpu")


@pytest.fixture
def copy(tmp_path, finished_run) -> Path:
    """A prior folder that a test may damage."""
    return Path(shutil.copytree(finished_run / "prior", tmp_path / "copy"))


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_sample_depends_on_its_number_and_seed_alone(prior):
    base = prior.sample(5, seed=3)
    assert base.shape == (5, 32, 32)
    assert base.dtype == torch.complex64
    assert torch.equal(prior.sample(5, seed=3), base)
    close(prior.sample(2, seed=3), base[:2])
    close(prior.sample(5, seed=3, batch=1), base)
    close(prior.sample(5, seed=3, batch=3), base)
    other = prior.sample(5, seed=4)
    for i in range(5):
        for j in range(5):
            assert not torch.allclose(other[i], base[j], rtol=1e-3)
            assert i == j or not torch.allclose(base[i], base[j], rtol=1e-3)


def test_teacher_samples_depend_on_their_number_and_seed_alone(prior):
    base = prior.sample(3, seed=1, teacher=True, steps=4)
    close(prior.sample(1, seed=1, teacher=True, steps=4, batch=2), base[:1])
    close(prior.sample(3, seed=1, teacher=True, steps=4, batch=2), base)
    assert not torch.allclose(prior.sample(3, seed=2, teacher=True, steps=4), base, rtol=1e-3)
    assert not torch.allclose(prior.sample(3, seed=1, teacher=True, steps=6), base, rtol=1e-3)
    assert not torch.allclose(prior.sample(3, seed=1), base, rtol=1e-3)


def test_samplers_of_the_teacher_and_their_steps(prior):
    settings = [SamplerSettings("heun", 4), SamplerSettings("euler", 4), SamplerSettings("dpmpp-2m", 4)]
    heun, euler, dpmpp = (prior.sample(2, teacher=True, sampler=each) for each in settings)
    assert torch.equal(heun, prior.sample(2, teacher=True, steps=4))
    assert torch.equal(dpmpp, prior.sample(2, teacher=True, sampler=SamplerSettings("dpmpp-2m"), steps=4))
    for one, other in ((heun, euler), (heun, dpmpp), (euler, dpmpp)):
        assert not torch.allclose(one, other, rtol=1e-3)


def test_churned_samples_depend_on_their_number_and_seed_alone(prior):
    how = SamplerSettings("heun", 4, Churn(2.0))
    base = prior.sample(3, seed=1, teacher=True, sampler=how)
    close(prior.sample(3, seed=1, teacher=True, sampler=how, batch=2), base)
    close(prior.sample(1, seed=1, teacher=True, sampler=how), base[:1])
    assert not torch.allclose(prior.sample(3, seed=1, teacher=True, steps=4), base, rtol=1e-3)


def test_states_of_all_batches_are_kept(prior):
    states = Trajectory()
    base = prior.sample(3, teacher=True, steps=4, batch=2, on_step=states)
    assert states.states.shape == states.denoised.shape == (3, 4, 32, 32)
    assert states.sigmas[0] == pytest.approx(80)
    close(states.denoised[:, -1], base)  # the last step lands on its estimate
    with pytest.raises(InputError, match="--states: the one-step prior has no steps to show; add --teacher"):
        prior.sample(1, on_step=states)


def test_seed_zero_is_a_seed(prior):
    assert torch.equal(prior.sample(1), prior.sample(1, seed=0))
    assert not torch.allclose(prior.sample(1, seed=0), prior.sample(1, seed=1), rtol=1e-3)


def test_sampling_neither_reads_nor_moves_the_global_random_state(prior):
    state = torch.get_rng_state()
    first = prior.sample(2)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)
        assert torch.equal(prior.sample(2), first)


def test_progress_counts_images(prior):
    counts = []
    batches = [len(images) for images in prior.stream(5, batch=2, advance=counts.append)]
    assert batches == counts
    assert counts == [2, 2, 1]


def test_bank_draws_masks_below_those_that_were_acquired(prior):
    bank = prior.bank
    operator = bank.draw(64, torch_generator("bank"))
    assert operator.maps.shape == (64, 4, 32, 32)
    acs = masks.acs_block(bank.mask)
    for maps, shown in zip(operator.maps, operator.mask, strict=True):
        source = next(i for i in range(len(bank.maps)) if torch.equal(bank.maps[i], maps))
        acquired = bank.mask[source]
        assert bool((shown <= acquired).all())
        assert bool(shown[..., acs[1]].all())
        outer = int(acquired.sum()) - (acs[1].stop - acs[1].start)
        assert int(acquired.sum()) - int(shown.sum()) == min(bank.drop, outer)


@pytest.mark.parametrize("place", ["", "prior", "prior/model.safetensors", "prior/config.json"])
def test_a_prior_is_found_from_every_place(finished_run, prior, place):
    found = load_prior(finished_run / place, "cpu")
    assert found.kind == "prior"
    assert found.digest == prior.digest
    assert torch.equal(found.sample(1), prior.sample(1))


def test_a_teacher_folder_is_a_prior_without_a_generator(finished_run, prior):
    teacher = load_prior(str(finished_run / "teacher"), "cpu")
    assert teacher.kind == "teacher"
    assert torch.equal(teacher.sample(2, teacher=True, steps=3), prior.sample(2, teacher=True, steps=3))
    with pytest.raises(InputError, match="no one-step prior yet"):
        teacher.sample(2)


def test_the_package_offers_it(finished_run):
    assert rsdmri.load_prior(finished_run).sample(2).shape == (2, 32, 32)


def test_weights_are_the_averages_and_the_digest_is_theirs(finished_run, prior):
    state, _ = load_tensors(finished_run / "checkpoints" / "prior-00000006.safetensors")
    for name, tensor in prior.generator.denoiser.state_dict().items():
        assert torch.equal(tensor, state[f"average.denoiser.{name}"])
    state, _ = load_tensors(finished_run / "checkpoints" / "teacher-00000006.safetensors")
    for name, tensor in prior.denoiser.state_dict().items():
        assert torch.equal(tensor, state[f"average.{name}"])
    data = (finished_run / "prior" / "model.safetensors").read_bytes()
    assert prior.digest == hashlib.sha256(data).hexdigest()
    assert not any(p.requires_grad for p in [*prior.denoiser.parameters(), *prior.generator.parameters()])


def test_model_card_says_what_it_must(finished_run):
    card = (finished_run / "prior" / "README.md").read_text()
    for text in (rsdmri.RESEARCH_ONLY, "32 x 32, 4 coils", "4 (random masks)", "6 steps, 24 images", "27,578"):
        assert text in card
    assert json.loads((finished_run / "prior" / "config.json").read_text())["note"] == rsdmri.RESEARCH_ONLY


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_prior(path, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_places_are_refused(tmp_path, finished_run):
    refused(tmp_path / "none", "no such prior")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no finished prior in this folder")
    refused(finished_run / "metrics.jsonl", "damaged or not a safetensors file")
    refused(finished_run / "checkpoints" / "prior-00000006.safetensors", "without the config.json beside them")


def test_an_unfinished_run_gives_its_teacher(tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "prior" / "config.json").unlink()
    assert load_prior(run, "cpu").kind == "teacher"
    shutil.rmtree(run / "teacher")
    refused(run, "no finished prior in this folder")


@pytest.mark.parametrize("head", [b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04\x00\x00"])
def test_pickled_weights_are_refused_unopened(tmp_path, copy, head):
    content = head + b"cposix\nsystem\n(S'touch " + str(tmp_path / "trace").encode() + b"'\ntR."
    (copy / "model.safetensors").write_bytes(content)
    (tmp_path / "weights.pt").write_bytes(content)
    for path in (copy, copy / "model.safetensors", tmp_path / "weights.pt"):
        refused(path, "pickled weights are not opened")
    assert not (tmp_path / "trace").exists()


def changed(**values: object):
    return lambda text: json.dumps({**json.loads(text), **values})


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "a word": lambda text: "null",
    "no scale": lambda text: text.replace('"sigma_data"', '"sigma"'),
    "scale of nothing": changed(sigma_data=None),
    "negative scale": changed(sigma_data=-1.0),
    "scale in words": changed(sigma_data="much"),
    "drop in words": changed(further_drop="some"),
    "no settings": changed(config=None),
    "unknown settings": changed(config={"network": {"chanels": [8, 16]}}),
    "other architecture": changed(config={"network": {"channels": [8, 24]}}),
    "hostile architecture": changed(config={"network": {"channels": [8, -16]}}),
    "deep nesting": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_config_is_one_line(copy, name):
    file = copy / "config.json"
    file.write_text(DAMAGE[name](file.read_text()))
    refused(copy, r"copy(/config\.json)?: ")


def test_binary_config_is_one_line(copy):
    (copy / "config.json").write_bytes(b"\xff\xfe\x00" * 50)
    refused(copy, "not readable JSON")


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_damaged_weights_are_one_line(copy, keep):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(copy, "damaged or not a safetensors file")


def test_missing_weights_are_one_line(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, "cannot be read")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": 0}, "--n 0: must be at least 1"),
        ({"n": -3}, "--n -3"),
        ({"states": True}, "--states: the one-step prior has no steps to show; add --teacher"),
        ({"sampler": SamplerSettings("euler")}, "the one-step prior takes one step; add --teacher"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path, finished_run, request_, message):
    with pytest.raises(InputError, match=message):
        sample(finished_run, out=tmp_path / "out", device="cpu", **request_)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("request_", "message"), [({"n": 0}, "--n 0"), ({"teacher": True, "steps": 0}, "--steps 0")])
def test_impossible_samples_are_refused(prior, request_, message):
    with pytest.raises(InputError, match=f"{message}: must be at least 1"):
        prior.sample(**request_)


@pytest.mark.parametrize(
    ("how", "method"),
    [
        ({}, "one-step prior"),
        ({"teacher": True, "sampler": SamplerSettings(steps=3)}, "teacher, Heun, 3 steps"),
        ({"teacher": True, "sampler": SamplerSettings("dpmpp-2m", 4)}, "teacher, DPM-Solver++(2M), 4 steps"),
    ],
)
def test_sample_workflow_writes_images_picture_and_provenance(tmp_path, finished_run, prior, how, method):
    lines = []
    sample(finished_run, n=3, seed=2, out=tmp_path / "out", device="cpu", say=lines.append, **how)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["samples.h5", "samples.png"]
    with h5py.File(tmp_path / "out" / "samples.h5") as file:
        assert list(file) == ["samples"]
        images, attrs = file["samples"][()], dict(file.attrs)
    assert images.dtype == np.complex64
    close(torch.from_numpy(images), prior.sample(3, seed=2, **how))
    assert attrs["prior_sha256"] == prior.digest
    assert attrs["method"] == method
    assert attrs["network_evaluations"] == (how["sampler"].evaluations if how else 1)
    assert attrs["seed"] == 2
    assert attrs["note"] == rsdmri.RESEARCH_ONLY
    assert "images/s" in lines[0]


def test_sample_workflow_writes_the_states_of_the_first_images(tmp_path, finished_run, prior):
    settings = SamplerSettings("dpmpp-2m", 3)
    sample(
        finished_run, n=9, teacher=True, sampler=settings, states=True, out=tmp_path, device="cpu", say=lambda _: None
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.h5", "samples.png", "states.png"]
    kept = Trajectory()
    prior.sample(8, teacher=True, sampler=settings, on_step=kept)
    with h5py.File(tmp_path / "samples.h5") as file:
        assert file["samples"].shape == (9, 32, 32)
        close(torch.from_numpy(file["denoised"][()]), kept.denoised)
        torch.testing.assert_close(torch.from_numpy(file["states"][()]), kept.states, rtol=1e-4, atol=1e-3)
        assert file["sigma"][()].tolist() == kept.sigmas.tolist()
    with Image.open(tmp_path / "states.png") as image:
        assert image.info["Description"] == rsdmri.RESEARCH_ONLY


@pytest.mark.parametrize(("teacher", "moves"), [(False, [3]), (True, [0.75] * 4)])
def test_progress_of_sampling_moves_with_each_step_of_the_teacher(prior, monkeypatch, teacher, moves):
    seen = []

    @contextmanager
    def recorded(title, total):
        assert total == 3
        yield SimpleNamespace(advance=seen.append)

    monkeypatch.setattr("rsdmri.workflows.sample.progress", recorded)
    timed_samples(prior, 3, teacher=teacher, sampler=SamplerSettings("euler", 4))
    assert seen == moves


IMAGE_PRIORS = {
    "magnitudes with missing pixels": ("inpainting", 0.7, True, 0.0),
    "noisy magnitudes": ("denoising", 1.0, True, 0.2),
    "complex images of k-space": ("fourier", 1.0, False, 0.1),
}


@pytest.mark.parametrize("name", IMAGE_PRIORS)
@pytest.mark.parametrize("teacher", [False, True])
def test_priors_of_images_are_sampled_without_coils(tmp_path, tiny_settings, name, teacher):
    kind, keep, real, level = IMAGE_PRIORS[name]
    objective = ["teacher.objective=edm"] if kind == "fourier" else []
    config = load_config(None, [*tiny_settings, f"corruption.kind={kind}", *objective])
    device = select_device("cpu")
    mask = torch.rand(3, 9, 12, generator=torch_generator("mask")) < keep
    bank = Acquisitions(None, mask, keep=keep, real=real, sigma_y=level)
    denoiser = build_denoiser(config, 0.5, device)
    save_prior(tmp_path / "prior", denoiser, Generator(build_denoiser(config, 0.5, device)), bank, config, {})

    prior = load_prior(tmp_path / "prior", "cpu")
    how = {"teacher": teacher, "sampler": SamplerSettings("heun", 3, Churn(1.0))} if teacher else {}
    base = prior.sample(3, seed=1, **how)
    assert base.shape == (3, 9, 12)
    assert base.dtype == (torch.float32 if real else torch.complex64)
    assert bool(torch.isfinite(base.abs()).all())
    close(prior.sample(3, seed=1, batch=2, **how), base)
    out = tmp_path / "out"
    sample(tmp_path / "prior", n=3, seed=1, states=teacher, out=out, device="cpu", say=lambda _: None, **how)
    with h5py.File(out / "samples.h5") as file:
        assert file["samples"].dtype == (np.float32 if real else np.complex64)
        close(torch.from_numpy(file["samples"][()]), base)
        if teacher:
            assert file["states"].dtype == file["samples"].dtype
            assert file["sigma"][-1] == pytest.approx(level or 0.002)
    pictures = ["samples.png", *(["states.png"] if teacher else [])]
    assert sorted(path.name for path in out.glob("*.png")) == pictures


def test_newest_prior_is_the_last_to_finish(tmp_path, monkeypatch, finished_run):
    import os

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no finished prior under runs/; run rsdmri train first"):
        newest_prior()
    for number, name in enumerate(("b", "c", "a")):
        shutil.copytree(finished_run / "prior", Path("runs") / name / "prior")
        os.utime(Path("runs") / name / "prior" / "config.json", (10**9 + number, 10**9 + number))
    (Path("runs") / "unfinished" / "prior").mkdir(parents=True)
    assert newest_prior() == Path("runs/a/prior")


@pytest.fixture(scope="module")
def conditional(tmp_path_factory, simulated, tiny_settings):
    """A prior of both stages that takes contrast and field; its scans tell the contrast alone."""
    folder = tmp_path_factory.mktemp("runs") / "conditional"
    asked = ["network.conditions=['contrast','field']", "steps=5", f"data.path={simulated}"]
    train(load_config(None, [*tiny_settings, *asked]), folder, device="cpu", say=lambda line: None)
    return load_prior(folder, "cpu")


@pytest.mark.parametrize("teacher", [False, True])
def test_samples_are_of_the_contrast_that_is_asked_for(conditional, teacher):
    def draw(**known: object) -> torch.Tensor:
        return conditional.sample(2, teacher=teacher, steps=2, **known)

    base = draw()
    assert torch.equal(base, draw(contrast="unknown"))
    assert torch.equal(base, draw(field=3.0))  # no scan told its field: nothing was learnt
    found = [draw(contrast=name) for name in ("T1w", "T2w", "PDw", "FLAIR")]
    assert any(not torch.equal(images, base) for images in found)
    assert all(torch.equal(draw(contrast="t1w", field=field), found[0]) for field in (None, 7.0))


def test_reconstruction_takes_the_contrast_from_the_scan(conditional, simulated):
    path = next(Path(entry.path) for entry in read_manifest(simulated) if entry.split == "train")
    scan = rsdmri.load_scan(path, trust=True)
    strange = replace(scan, acquisition="unknown")
    told = conditional.conditions(1, contrast(scan.acquisition))
    assert float(told[0, 0]) > 0
    for method in ("ambient-one-step", "rsd"):
        images = [
            rsdmri.reconstruct(one, method=method, prior=conditional, samples=1).complex_images
            for one in (scan, scan, strange)
        ]
        assert np.array_equal(images[0], images[1])
        assert not np.array_equal(images[0], images[2])


@pytest.mark.parametrize("known", [{"contrast": "T2w"}, {"field": 3.0}])
def test_conditions_that_a_prior_was_not_trained_with_are_refused(prior, known):
    assert prior.conditions(3) is None
    with pytest.raises(InputError, match=rf"--{next(iter(known))} .*: this prior was trained without it; leave it out"):
        prior.sample(1, **known)


def test_impossible_conditions_are_refused(conditional):
    with pytest.raises(InputError, match="--contrast bold: expected one of unknown, T1w"):
        conditional.sample(1, contrast="bold")
    with pytest.raises(InputError, match="--field -1: expected the field strength in tesla"):
        conditional.sample(1, field=-1.0)


def test_written_samples_say_what_was_asked_for(conditional, tmp_path, monkeypatch):
    monkeypatch.setattr("rsdmri.workflows.sample.load_prior", lambda path, device: conditional)
    known = {"contrast": "FLAIR", "field": 1.5}
    folder = sample(tmp_path, n=1, out=tmp_path / "out", say=lambda line: None, **known)
    with h5py.File(folder / "samples.h5") as file:
        assert {name: file.attrs[name] for name in known} == known
        assert np.array_equal(file["samples"], conditional.sample(1, **known).numpy())
