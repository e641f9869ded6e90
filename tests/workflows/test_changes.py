"""Other settings for a run that is there: shown, refused, or gone on with and recorded."""

import re
import shutil

import pytest
from runs import STAGES, go, names, start

from rsdmri.config import load_config
from rsdmri.errors import InputError
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows.run_folder import read_events, read_metrics


@pytest.fixture
def run(tmp_path, finished_run):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("teacher.batch=5", "teacher.batch: 4 there, 5 asked"),
        ("seed=1", "seed: 0 there, 1 asked"),
        ("acquisition.acceleration=3", "acquisition.acceleration: 4.0 there, 3.0 asked"),
        ("network.channels=[8,24]", "network.channels: [8, 16] there, [8, 24] asked"),
        ("acquisition.further_drop=1", "acquisition.further_drop: unset there, 1 asked"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(settings, run, override, key):
    before, lines = {name: (run / name).read_bytes() for name in names(run)}, []
    with pytest.raises(InputError, match=re.escape(key.partition(":")[0])) as caught:
        go(settings(override), run, say=lines.append)
    assert "choose another --out" in str(caught.value)
    assert lines == [f"settings that differ from those of the run in {run}:", f"  {key}"]
    assert {name: (run / name).read_bytes() for name in names(run)} == before


def test_the_command_shows_a_line_for_each_and_exits_with_2(settings, run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings("teacher.learning_rate=0.5", "prior.alpha=1", "seed=3", "steps=9").to_toml())
    process = start("train", "--recipe", recipe, "--out", run)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out.splitlines()[1:] == [
        "  prior.alpha: 1.2 there, 1.0 asked",
        "  seed: 0 there, 3 asked",
        "  teacher.learning_rate: 0.001 there, 0.5 asked",
    ]
    assert err.startswith("rsdmri: ")
    assert err.count("\n") == 1
    assert "and more" in err
    assert "--allow-changes to go on with the new ones" in err


def test_allowed_changes_are_gone_on_with_and_recorded(settings, run):
    old = (run / "config.toml").read_text()
    config = settings("steps=8", "teacher.learning_rate=0.01", "prior.alpha=1")
    go(config, run, allow_changes=True)
    assert load_config(run / "config.toml") == config
    assert (run / "config-teacher-6-prior-6.toml").read_text() == old
    (event,) = read_events(run)
    assert event == {
        "event": "settings changed",
        "steps": {"teacher": 6, "prior": 6},
        "changes": {"teacher.learning_rate": [0.001, 0.01], "prior.alpha": [1.2, 1.0]},
        "kept": "config-teacher-6-prior-6.toml",
    }
    for stage in STAGES:
        assert [row["step"] for row in read_metrics(run) if row["stage"] == stage] == list(range(1, 9))
        assert load_tensors(run / "checkpoints" / f"{stage}-00000008.safetensors")[1]["config"] == config.to_dict()
    rates = {row["step"]: row["rate"] for row in read_metrics(run) if row["stage"] == "teacher"}
    assert rates[5] == pytest.approx(1e-3)
    assert rates[7] == pytest.approx(1e-2 * (1 - 6 / 8) / 0.3)
    go(config, run)  # the new settings are those of the run now
    go(config.model_copy(update={"seed": 1}), run, allow_changes=True)
    go(config.model_copy(update={"seed": 2}), run, allow_changes=True)
    kept = {event["kept"] for event in read_events(run)}
    assert kept == {f"config-teacher-{x}.toml" for x in ("6-prior-6", "8-prior-8", "8-prior-8.2")}
    assert kept <= names(run)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("network.channels=[8,24]", r"network.channels: changes the network's shape \(network\.\S+ is .*16.* and .*24"),
        ("network.blocks=2", r"network.blocks: changes the network's shape \(network\.\S+ is .* and .* asked\)"),
        ("network.attention=false", r"network.attention: changes .*attention\S+ is \d+ there and nothing asked"),
        (
            "corruption.kind=denoising",
            r"corruption.kind: changes the network's shape \(network.conv_in.weight is 8 x 3",
        ),
    ],
)
def test_another_shape_of_the_network_is_refused_even_then(settings, run, override, reason):
    before = {name: (run / name).read_bytes() for name in names(run)}
    with pytest.raises(InputError, match=reason) as caught:
        go(settings(override, "teacher.clip=2"), run, allow_changes=True)
    assert "choose another --out to start afresh" in str(caught.value)
    assert "teacher.clip" not in str(caught.value)
    assert {name: (run / name).read_bytes() for name in names(run)} == before


def test_changes_are_not_recorded_where_the_data_are_refused(settings, run):
    before = {name: (run / name).read_bytes() for name in names(run)}
    with pytest.raises(InputError, match="no such manifest"):
        go(settings("data.path=/nowhere"), run, allow_changes=True)
    assert {name: (run / name).read_bytes() for name in names(run)} == before
