"""Ablations: the grid, going on after a stop, what is measured, and refusals that leave nothing."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from runs import names, quiet, weights
from typer.testing import CliRunner

from rsdmri import RESEARCH_ONLY
from rsdmri.cli import app
from rsdmri.config import load_config
from rsdmri.errors import InputError, Interrupted
from rsdmri.training.manifest import DrawnItem, Manifest, Record, RollBack, read_manifest
from rsdmri.training.recovery import TrainingDivergedError
from rsdmri.workflows import ablate as workflow
from rsdmri.workflows.ablate import Measures, ablate
from rsdmri.workflows.ablation_grid import axis_named, cells_of, parse_seeds
from rsdmri.workflows.run_folder import RunFolder, read_metrics

CLOCKS = {"seconds", "images/s"}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def timeless(row: dict) -> dict:
    """``row`` without what depends on the speed of the machine."""
    kept = {key: value for key, value in row.items() if key not in CLOCKS}
    return {key: timeless(value) if isinstance(value, dict) else value for key, value in kept.items()}


@pytest.fixture(scope="module")
def measured(finished_run, reference, tmp_path_factory):
    """Alpha 1.2, the run's own, and two seeds through the command, measured: output, folder, RUN as it was."""
    out, before = tmp_path_factory.mktemp("ablation") / "out", state(finished_run)
    command = ["ablate", "alpha", "--teacher", str(finished_run), "--values", "1.2"]
    command += ["--seeds", "0,1", "--reference", str(reference), "--samples", "12", "-o", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output, out, before


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "ablation.jsonl").read_text().splitlines()]


def test_the_grid_is_trained_measured_and_written(measured, finished_run):
    output, out, before = measured
    assert state(finished_run) == before
    rows = rows_of(out)
    assert [(row["value"], row["seed"]) for row in rows] == [(1.2, 0), (1.2, 1)]
    assert {row["axis"] for row in rows} == {"prior.alpha"}
    for row in rows:
        run = out / row["run"]
        losses = [r["validation"] for r in read_metrics(run) if "validation" in r]
        assert (row["validation"], row["lowest validation"]) == (losses[-1], min(losses))
        assert row["prior"] == json.loads((run / "assessment" / "assessment.json").read_text())["prior"]
        assert row["ratio"] == row["prior"]["frechet"] / row["teacher"]["frechet"]
        assert "12 samples; 16 reference images, sha256 " in row["prior"]["features"]
        assert load_config(run / "config.toml").prior.alpha == row["value"]
        assert (run / "teacher" / "model.safetensors").samefile(out / "teacher" / "model.safetensors")
        assert not (run / "teacher" / "model.safetensors").samefile(finished_run / "teacher" / "model.safetensors")
    assert len({json.dumps(row["teacher"]) for row in rows}) == 1
    assert len({row["prior"]["frechet"] for row in rows}) == 2
    assert "run 2 of 2: alpha 1.2, seed 1; about 0 h 0" in output
    for name in ("ablation.md", "ablation.jsonl", "ablation.json", "ablation.png"):
        assert RESEARCH_ONLY.encode() in (out / name).read_bytes(), name
    assert not (out / ".lock").exists()


def test_seeds_share_measurements_and_that_of_the_run_gives_its_prior(measured, finished_run):
    _, out, _ = measured
    own = weights(finished_run / "prior")  # alpha 1.2, seed 0, the same steps
    again, other = (weights(out / "runs" / f"1.2-seed{seed}" / "prior") for seed in (0, 1))
    assert [key for key in own if not torch.equal(own[key], again[key])] == []
    changed = {key.partition(".")[0] for key in own if not torch.equal(own[key], other[key])}
    assert changed == {"generator"}  # neither the teacher nor masks and coil maps


def test_a_stopped_ablation_goes_on_to_the_same_rows(measured, finished_run, reference, tmp_path, monkeypatch):
    log, out, lines = RunFolder.log, tmp_path / "out", []
    stops = [("1.2-seed0", 2), ("1.2-seed1", 4)]

    def stopping(folder: RunFolder, row: dict) -> None:
        log(folder, row)
        if stops and (folder.path.name, row["step"]) == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)

    def go() -> list[dict]:
        wanted = {"values": ["1.2"], "seeds": (0, 1), "measures": Measures(reference, 12)}
        return ablate("alpha", out, teacher=finished_run, device="cpu", say=lines.append, **wanted)

    monkeypatch.setattr(RunFolder, "log", stopping)
    for done in (0, 1):
        with pytest.raises(Interrupted, match=r"prior: stopped after step \d; run the same command to go on"):
            go()
        assert len(rows_of(out)) == done
        with (out / "ablation.jsonl").open("a") as file:
            file.write('{"value": 1.2, "se')  # as a crash leaves it
    rows = go()
    assert "prior: going on from step 4" in lines
    assert "1 of 2 runs finished before" in lines
    assert list(map(timeless, rows)) == list(map(timeless, rows_of(measured[1])))
    before = state(out / "runs")
    assert go() == rows
    assert state(out / "runs") == before


def test_distances_may_be_asked_for_later(finished_run, reference, tmp_path):
    how = {"teacher": finished_run, "values": ["1"], "seeds": (0,), "steps": 1, "device": "cpu", "say": quiet}
    (first,) = ablate("sigma_init", tmp_path / "out", **how)
    assert "prior" not in first
    before = state(tmp_path / "out" / "runs")
    measures = Measures(reference, 12)
    (second,) = ablate("sigma_init", tmp_path / "out", **how, measures=measures)
    assert timeless({key: second[key] for key in first}) == timeless(first)
    assert second["prior"]["frechet"] > 0
    assert rows_of(tmp_path / "out") == [second]
    after = state(tmp_path / "out" / "runs")
    assert {key: after[key] for key in before} == before
    with pytest.raises(InputError, match=r"holds another ablation \(samples: 12 there, None asked"):
        ablate("sigma_init", tmp_path / "out", **how)


def test_further_masks_get_teachers_of_their_own(simulated, tiny_settings, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(load_config(None, list(tiny_settings)).to_toml())
    how = {"recipe": recipe, "data": str(simulated), "seeds": (5,), "steps": 2, "device": "cpu", "say": quiet}
    rows = ablate("further-mask", tmp_path / "out", values=["1", "3"], **how)
    assert [row["value"] for row in rows] == [1, 3]
    for row in rows:
        meta = json.loads((tmp_path / "out" / row["run"] / "teacher" / "config.json").read_text())
        assert (meta["further_drop"], meta["config"]["seed"]) == (row["value"], 5)
    assert not (tmp_path / "out" / "teacher").exists()


def trained(config, run: Path, **_) -> None:
    """What a training of one step leaves, without it."""
    if config.prior.objective == "dmd" and config.prior.seed == 1:
        raise TrainingDivergedError("prior", 3, "loss not finite")
    folder = RunFolder(run)
    folder.adopt(config)
    (run / "prior").mkdir()
    (run / "prior" / "config.json").write_text('{"steps": 1, "seconds": 2.0}')
    for step, validation in ((1, 0.25), (2, 0.125), (3, 0.5)):
        folder.log({"stage": "prior", "step": step, "validation": validation})


def test_a_value_that_diverges_is_an_answer_and_more_seeds_may_follow(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "train", trained)
    how = {"teacher": finished_run, "device": "cpu", "say": quiet}
    rows = ablate("objective", tmp_path / "out", seeds=(0, 1), **how)
    assert [(r["value"], r["seed"]) for r in rows] == [(v, s) for s in (0, 1) for v in ("sid", "dmd", "sds")]
    assert [row.get("diverged") for row in rows] == [None] * 4 + ["prior: loss not finite at step 3", None]
    assert {(r["validation"], r["lowest validation"], r["lowest at step"]) for r in rows if "diverged" not in r} == {
        (0.5, 0.125, 2)
    }
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "| dmd | 1, 1 diverged | 1 | 0.5 | 0.125 |" in text
    assert "| dmd | 1 | diverged (prior: loss not finite at step 3) |" in text
    monkeypatch.setattr(workflow, "train", lambda config, run, **_: trained(config, run))
    assert ablate("objective", tmp_path / "out", seeds=(0, 1, 2), **how)[:6] == rows


def test_what_the_teacher_could_not_learn_from_stays_out(finished_run, tmp_path, monkeypatch):
    run = shutil.copytree(finished_run, tmp_path / "run")
    item = DrawnItem(item=1, file="sim00000.h5", slice=1)
    roll_back = RollBack(step=2, back_to=0, problem="loss", left_out=(item,))
    Manifest().write(run / "checkpoints", "teacher", Record(roll_backs=(roll_back,)))
    monkeypatch.setattr(workflow, "train", trained)
    ablate("t_max", tmp_path / "out", teacher=run, values=["0.5"], seeds=(0,), device="cpu", say=quiet)
    found = read_manifest(tmp_path / "out" / "runs" / "0.5-seed0" / "checkpoints").stage("teacher")
    assert found.roll_backs == (roll_back,)
    assert found.generations == ()


def test_simulated_scans_are_those_of_the_run_or_made_once(finished_run, tmp_path, monkeypatch):
    run, used = tmp_path / "run", []
    shutil.copytree(finished_run, run)
    sizes = ["simulate.size=32", "simulate.scans=3", "simulate.slices=1", "simulate.coils=4", "data.path=''"]
    (run / "config.toml").write_text(load_config(run / "config.toml", sizes).to_toml())

    def noting(config, out: Path, **_) -> None:
        used.append(config.data.path)
        trained(config, out)

    monkeypatch.setattr(workflow, "train", noting)
    how = {"teacher": run, "values": ["0.5"], "seeds": (0, 1), "device": "cpu", "say": quiet}
    ablate("t_max", tmp_path / "made", **how)
    assert set(used) == {str(tmp_path / "made" / "data")}
    shutil.copytree(tmp_path / "made" / "data", run / "data")
    before = state(run)
    ablate("t_max", tmp_path / "found", **how)
    assert used[2:] == [str(run / "data")] * 2
    assert state(run) == before
    assert not (tmp_path / "found" / "data").exists()


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("alpha", [0.8, 1.0, 1.2]),
        ("t_max", [0.5, 0.65, 0.8, 0.95]),
        ("sigma_init", [1.0, 2.5, 5.0]),
        ("objective", ["sid", "dmd", "sds"]),
        ("further-mask", [1, 2, 4]),  # of 32 lines at R = 4, 2 are dropped by themselves
    ],
)
def test_default_values(settings, axis, values):
    cells = cells_of(axis_named(axis), settings(), (), (0, 1))
    assert [(cell.value, cell.seed) for cell in cells] == [(value, seed) for seed in (0, 1) for value in values]
    section, _, name = axis_named(axis).key.partition(".")
    assert [getattr(getattr(cell.config, section), name) for cell in cells] == values * 2
    plain = settings("data.path=''", "simulate.size=32", "simulate.coils=4")
    assert [cell.value for cell in cells_of(axis_named(axis), plain, (), (0,))] == values
    assert len({cell.folder for cell in cells}) == len(cells)


def test_a_budget_takes_the_place_of_the_runs_steps(finished_run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(workflow, "train", lambda c, run, **how: (seen.append((c.steps, how)), trained(c, run)))
    how = {"teacher": finished_run, "values": ["0.5"], "seeds": (0,), "device": "cpu", "say": quiet}
    ablate("t_max", tmp_path / "out", budget=7.0, **how)
    assert (seen[0][0], seen[0][1]["budget"]) == (None, 7.0)
    with pytest.raises(InputError, match=r"budget: 7\.0 there, None asked; steps: unset there, 6 asked"):
        ablate("t_max", tmp_path / "out", **how)


@pytest.mark.parametrize(
    ("axis", "options", "message"),
    [
        ("alhpa", {}, "ablate alhpa: no such axis; did you mean alpha"),
        ("alpha", {"teacher": None}, "give --teacher"),
        ("alpha", {"teacher": Path("none")}, r"--teacher none: holds no finished teacher; .* --stage teacher --out"),
        ("alpha", {"values": ["nan"]}, r"--values nan: prior\.alpha: .* finite number"),
        ("alpha", {"values": ["1", ""]}, r"--values : prior\.alpha: .* valid number"),
        ("t_max", {"values": ["0.5,1.5"]}, r"--values 1\.5: prior\.t_max: .* less than or equal to 1"),
        ("sigma_init", {"values": ["0"]}, r"--values 0: prior\.sigma_init: .* greater than 0"),
        ("objective", {"values": ["gan"]}, r"--values gan: prior\.objective: input should be 'sid'"),
        ("alpha", {"overrides": ["prior.objective=dmd"]}, r"has none; add --set prior\.objective=sid"),
        ("alpha", {"overrides": ["prior.alpha=1"]}, r"--set prior\.alpha: differs .* give --values"),
        ("alpha", {"overrides": ["seed=1"]}, "--set seed: differs from run to run here; give --seeds"),
        ("alpha", {"overrides": ["acquisition.acceleration=2"]}, r"--set acquisition\.acceleration: the teacher of"),
        ("alpha", {"overrides": ["prior.alhpa=1"]}, r"did you mean 'prior\.alpha'"),
        ("alpha", {"recipe": Path("recipe.toml")}, "give --set instead"),
        ("alpha", {"steps": 2, "budget": 3.0}, "--steps and --budget: both"),
        ("alpha", {"data": "none"}, "its scans are not at none .* name them with --data"),
        ("alpha", {"measures": Measures(Path("none"))}, "none: no such manifest or folder"),
        ("alpha", {"measures": Measures("{simulated}", 11)}, "--samples 11: must be at least 12"),
        ("alpha", {"measures": Measures("{simulated}", 12, ("fid",))}, "expected one of mr-magnitude-v1"),
        ("alpha", {"device": "nonsense"}, "--device nonsense: not available here"),
        ("alpha", {"out": "{run}"}, r"holds other files \(averages\); choose another --out"),
        ("further-mask", {}, "--teacher: the teacher sees the further mask"),
        ("further-mask", {"teacher": None, "data": "none"}, "none: no such manifest or folder"),
        ("further-mask", {"teacher": None, "values": ["0"]}, r"--values 0: acquisition\.further_drop"),
        (
            "further-mask",
            {"teacher": None, "values": ["31", "32"]},
            "32: masks acquire about 32 of 128 lines; drop fewer",
        ),
        ("further-mask", {"teacher": None, "overrides": ["teacher.objective=edm"]}, "drops no lines further"),
    ],
)
def test_refusals_leave_nothing(finished_run, simulated, tmp_path, monkeypatch, axis, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(workflow, "simulate_into", lambda *_: pytest.fail("simulated"))
    options = {"teacher": finished_run, "device": "cpu", "say": quiet} | options
    measures = options.get("measures")
    if measures is not None and measures.reference == "{simulated}":
        options["measures"] = Measures(simulated, measures.samples, measures.features)
    out = tmp_path / "out" if options.pop("out", None) is None else finished_run
    before = state(finished_run)
    with pytest.raises(InputError, match=message):
        ablate(axis, out, **options)
    assert names(tmp_path) == set()
    assert state(finished_run) == before


def test_a_folder_of_another_ablation_is_refused_by_name(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "train", trained)
    how = {"values": ["0.5"], "seeds": (0,), "device": "cpu", "say": quiet}
    ablate("t_max", tmp_path / "out", teacher=finished_run, **how)
    before = state(tmp_path)
    other = shutil.copytree(finished_run, tmp_path.with_name(f"{tmp_path.name}-run"))
    config = json.loads((other / "teacher" / "config.json").read_text())
    (other / "teacher" / "config.json").write_text(json.dumps(config | {"sha256": "0"}))
    for axis, changes, message in (
        ("alpha", {}, r"axis: t_max there, alpha asked"),
        ("t_max", {"overrides": ["prior.batch=8"]}, r"prior\.batch: 4 there, 8 asked"),
        ("t_max", {"steps": 3}, r"steps: 6 there, 3 asked"),
        ("t_max", {"teacher": other}, "the weights are not those that its config.json names"),
    ):
        with pytest.raises(InputError, match=message):
            ablate(axis, tmp_path / "out", **{"teacher": finished_run, **how, **changes})
    assert state(tmp_path) == before
    ablate("t_max", tmp_path / "out", teacher=finished_run, overrides=["workers=1"], **how)  # speed alone


def test_seeds_of_the_command_line():
    assert parse_seeds("2, 0,2") == [2, 0]
    with pytest.raises(InputError, match=re.escape("--seeds 0;1: expected whole numbers joined by commas")):
        parse_seeds("0;1")
