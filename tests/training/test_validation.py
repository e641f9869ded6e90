"""Validation: a fixed measure of the averaged weights that moves nothing."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from runs import go, weights
from test_stages import CPU, batches, build, config, copied

from rsdmri.config import load_config
from rsdmri.diffusion.objectives import draw_for, teacher_loss
from rsdmri.runtime import torch_generator
from rsdmri.training.checkpoint import best_checkpoint, latest_checkpoint
from rsdmri.training.proximal import ProximalCheck
from rsdmri.training.validation import energy_distance, fixed_batches
from rsdmri.workflows.held_out import open_held_out
from rsdmri.workflows.run_folder import read_metrics


def images(*key: object, count: int = 6, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, 5, 4, dtype=torch.complex64, generator=torch_generator("images", *key))


def test_energy_distance_of_two_points_and_by_its_definition():
    flat = torch.zeros(3, 5, 4)
    assert energy_distance(flat, flat + 2.5) == pytest.approx(5.0)
    x, y = images("x"), images("y")

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        return float(np.mean([(a[i] - b[j]).abs().square().mean().sqrt() for i, j in pairs]))

    assert energy_distance(x, y) == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), abs=1e-6)


def test_energy_distance_is_zero_on_average_for_equal_distributions_alone():
    equal = [energy_distance(images("a", k), images("b", k)) for k in range(400)]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / 20
    other = [energy_distance(images("a", k), images("b", k, scale=1.3)) for k in range(400)]
    assert np.mean(other) > 5 * np.std(other) / 20
    shared = [images("mean", k, scale=3) for k in range(400)]  # x_i and y_i of one acquisition
    paired = [energy_distance(images("a", k) + s, images("b", k) + s) for k, s in enumerate(shared)]
    assert abs(np.mean(paired)) < 4 * np.std(paired) / 20


def test_energy_distance_refuses_what_it_cannot_compare():
    for x, y in ((images(1)[:1], images(2)[:1]), (images(1), images(2)[:5])):
        with pytest.raises(ValueError, match="two equally many images of one shape, at least 2"):
            energy_distance(x, y)


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 16), (5, [5] * 3), (16, [16]), (40, [16])])
def test_at_most_16_slices_in_batches_as_small_as_those_of_training(batch, sizes):
    assert [len(drawn) for drawn, _ in fixed_batches(batches, (0,), batch)] == sizes


def looking(name, config, at=batches):
    """A stage that has something to look at; the prior compares 16 samples."""
    stage = build(name, config)
    if name == "teacher":
        stage.held_out = at
    else:
        stage._check = ProximalCheck(at, config.seed, stage.batch, images=16)
    return stage


@pytest.mark.parametrize("name", ["teacher", "prior"])
def test_validation_repeats_and_moves_nothing(name):
    settings = config("network.dropout=0.2")
    plain, watched = build(name, settings), looking(name, settings)
    for index in range(3):
        state, before = torch.get_rng_state(), copied(watched)
        found = watched.validate()
        assert found == watched.validate()
        assert torch.equal(torch.get_rng_state(), state)
        after = copied(watched)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert plain.step(index, 0.1) == watched.step(index, 0.1)
    assert watched.validate() != found
    assert plain.validate() == {}  # it has nothing to look at


def test_the_teacher_is_validated_by_its_loss_with_averaged_weights():
    stage = looking("teacher", config("teacher.batch=8"))
    stage.step(0, 0.0)
    losses = []
    for number in range(2):
        key = (0, "validation", f"batch {number}")
        batch = batches(8, *key)
        draw = draw_for("ambient", batch, torch_generator(*key), -1.2, 1.2)
        losses += teacher_loss("ambient", stage.average, batch, draw).tolist()
    assert stage.validate() == {"validation": pytest.approx(np.mean(losses), rel=1e-5)}
    with torch.no_grad():
        for parameter in stage.denoiser.parameters():
            parameter.add_(1.0)
    assert stage.validate() == {"validation": pytest.approx(np.mean(losses), rel=1e-5)}
    with torch.no_grad():
        next(stage.average.parameters()).fill_(float("nan"))
    assert stage.validate() == {}


def test_the_loss_on_fixed_slices_falls():
    stage = looking("teacher", config("teacher.warmup=0", "teacher.learning_rate=2e-3"))
    before = stage.validate()["validation"]
    for index in range(40):
        stage.step(index, 0.0)
    assert stage.validate()["validation"] < before


def validations(run):
    rows = [row for row in read_metrics(run) if "validation" in row]
    return {stage: [row["validation"] for row in rows if row["stage"] == stage] for stage in ("teacher", "prior")}


def test_scans_of_the_val_split_are_what_is_looked_at(tmp_path, tiny_settings, simulated, finished_run):
    """Other numbers in the val split change the teacher's validation alone; without any it takes training slices.

    The prior is compared with the training set, whatever else there is.
    """
    rows = {}
    for name in ("val", "none"):
        data = tmp_path / name
        shutil.copytree(simulated, data)
        manifest = (data / "manifest.tsv").read_text()
        val = next(line.split("\t")[0] for line in manifest.splitlines() if "\tval\t" in line)
        if name == "none":
            (data / "manifest.tsv").write_text(manifest.replace("\tval\t", "\ttest\t"))
        else:
            with h5py.File(data / val, "r+") as file:
                file["kspace"][...] = file["kspace"][()][::-1]
        run = go(load_config(None, [*tiny_settings, "steps=6", f"data.path={data}"]), tmp_path / f"run-{name}")
        rows[name] = validations(run)
        for stage in ("teacher", "prior"):
            a, b = weights(run / stage), weights(finished_run / stage)
            assert all(torch.equal(a[key], b[key]) for key in a)
    rows["as it was"] = validations(finished_run)
    assert len({value for each in rows.values() for value in each["teacher"]}) == 6
    assert rows["val"]["prior"] == rows["none"]["prior"] == rows["as it was"]["prior"]


def test_a_val_split_that_does_not_fit_is_said_and_left(tmp_path, tiny_settings, simulated):
    config, lines = load_config(None, [*tiny_settings, f"data.path={simulated}"]), []
    assert len(open_held_out(config, simulated, CPU, lines.append)) == 2
    assert lines == []
    shutil.copytree(simulated, tmp_path / "data")
    manifest = (tmp_path / "data" / "manifest.tsv").read_text()
    val = next(line.split("\t")[0] for line in manifest.splitlines() if "\tval\t" in line)
    (tmp_path / "data" / val).write_text("no scan")
    assert open_held_out(config, tmp_path / "data", CPU, lines.append) is None
    assert "validation: on training slices, for the val split does not fit" in lines[0]
    assert val in lines[0]
    (tmp_path / "data" / "manifest.tsv").unlink()
    (tmp_path / "data" / val).unlink()
    assert open_held_out(config, tmp_path / "data", CPU, lines.append) is None
    split = config.model_copy(update={"data": config.data.model_copy(update={"split": "val"})})
    assert open_held_out(split, simulated, CPU, lines.append) is None
    assert len(lines) == 1


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_teacher_of_the_end_or_the_best_one_is_kept(tmp_path, tiny_settings, simulated, monkeypatch, keep):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("rsdmri.training.teacher.TeacherStage.validate", lambda stage: {"validation": next(losses)})
    settings = load_config(None, [*tiny_settings, "steps=9", f"data.path={simulated}", f"teacher.keep={keep}"])
    run = go(settings, tmp_path / "run", stage="teacher")
    chosen = (latest_checkpoint if keep == "last" else best_checkpoint)(run / "checkpoints", "teacher")
    assert chosen.meta["step"] == (9 if keep == "last" else 6)
    for name, tensor in weights(run / "teacher").items():
        if name.startswith("denoiser."):
            assert torch.equal(tensor, chosen.tensors[f"average.{name.removeprefix('denoiser.')}"])
    assert [row["best"] for row in read_metrics(run) if "best" in row] == [3, 6, 6]
