"""Configuration: every key reachable, nothing unknown or impossible accepted, files and overrides in order."""

import json
import tomllib
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rsdmri.config import PRESETS, Config, config_from_dict, load_config
from rsdmri.errors import InputError
from rsdmri.workflows.demo import demo_config


def leaves(section: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Every setting as (dotted name, default)."""
    found: list[tuple[str, Any]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += leaves(field.annotation, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field.default))
    return found


LEAVES = leaves(Config)


def other(key: str, default: Any) -> tuple[str, Any]:
    """A permitted value that is not the default: as text for --set, and as it should arrive."""
    special = {
        "acquisition.mask": ("variable-density", "variable-density"),
        "acquisition.center_fraction": ("0.1", 0.1),
        "network.channels": ("[8, 16]", (8, 16)),
        "network.preset": ("small", "small"),  # the defaults by name
        "network.backbone": ("monai", "monai"),
        "network.conditions": ("['field']", ("field",)),
        "network.preconditioning": ("published", "published"),
        "network.precision": ("bfloat16", "bfloat16"),
        "network.compile": ("off", "off"),
        "prior.objective": ("dmd", "dmd"),
        "prior.fake_residual": ("further", "further"),
        "teacher.objective": ("fourier-ambient", "fourier-ambient"),
        "teacher.equivariance_flips": ("both", "both"),
        "teacher.average": ("power", "power"),
        "prior.average": ("power", "power"),
        "logging.tensorboard": ("off", "off"),
        "teacher.keep": ("best", "best"),
        "prior.keep": ("last", "last"),
        "posterior.levels": ("[0.2, 0.1]", (0.2, 0.1)),
        "posterior.start": ("generator", "generator"),
        "posterior.average": ("power", "power"),
        "posterior.keep": ("best", "best"),
        "logging.reference": ("clean scans", "clean scans"),
        "teacher.images": ("l1-wavelet", "l1-wavelet"),
        "corruption.kind": ("inpainting", "inpainting"),
        "simulate.contrast": ("FLAIR", "FLAIR"),
        "simulate.echo": ("gradient", "gradient"),
        "simulate.accelerations": ("[2, 4]", (2.0, 4.0)),
        "simulate.sampling": ("points", "points"),
        "data.path": ("somewhere/else with spaces", "somewhere/else with spaces"),
        "data.cache_dir": ("a cache", "a cache"),
        "data.split": ("val", "val"),
        "network.dropout": ("0.25", 0.25),
    }
    if key in special:
        return special[key]
    if isinstance(default, bool):
        return str(not default).lower(), not default
    if default is None or isinstance(default, int):
        value = (default or 0) + 33
        return str(value), value
    value = default / 2 if default else 0.5
    return repr(value), value


def get(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("key", "default"), LEAVES, ids=[key for key, _ in LEAVES])
def test_set_reaches_every_key_and_changes_nothing_else(key, default):
    text, value = other(key, default)
    config = load_config(None, [f"{key}={text}"])
    assert get(config, key) == value != default
    assert [name for name, _ in LEAVES if get(config, name) != get(Config(), name)] == [key]


def test_names_that_scripts_rely_on():
    names = dict(LEAVES)
    assert {
        "seed",
        "steps",
        "checkpoint_every",
        "acquisition.acceleration",
        "teacher.batch",
        "data.path",
    } <= names.keys()
    assert names["acquisition.acceleration"] == 4.0
    assert names["seed"] == 0


def test_later_sources_win(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("seed = 5\n[teacher]\nbatch = 3\nsteps = 11\n")
    config = load_config(recipe, ["teacher.batch=4", "teacher.batch=7"])
    assert (config.seed, config.teacher.batch, config.teacher.steps) == (5, 7, 11)
    assert config.prior == Config().prior
    assert load_config() == Config()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["steps=5", "network.channels=[8,24,40]", "acquisition.center_fraction=0.08", "data.path=C:\\a 'b' \"c\" ü"],
        ["teacher.learning_rate=1e-7", "seed=-3"],
    ],
)
def test_what_is_written_is_read_back(tmp_path, overrides):
    config = load_config(None, overrides)
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config
    assert config_from_dict(json.loads(config.to_json()), "here") == config
    assert tomllib.loads(config.to_toml()) == config.to_dict()


def test_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        Config().teacher.batch = 1


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("teacher.learningrate=1", "teacher.learning_rate"),
        ("sede=1", "seed"),
        ("acquisition.aceleration=3", "acquisition.acceleration"),
        ("checkpoints_every=3", "checkpoint_every"),
        ("network.chanels=[8]", "network.channels"),
        ("Teacher.batch=3", "teacher"),
        ("prior.objectiv=sid", "prior.objective"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(tmp_path, override, near):
    key = override.partition("=")[0]
    with pytest.raises(InputError, match=f"--set {override.split('[')[0]}") as caught:
        load_config(None, [override])
    assert "unknown key" in str(caught.value)
    assert f"did you mean '{near}'?" in str(caught.value)
    assert "\n" not in str(caught.value)
    section, _, name = key.rpartition(".")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((f"[{section}]\n" if section else "") + f"{name} = 1\n")
    with pytest.raises(InputError, match=f"recipe.toml: unknown key.*did you mean '{near}'"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("acquisition.acceleration=0.5", "acquisition.acceleration: input should be greater than or equal to 1"),
        ("acquisition.acceleration=nan", "finite number"),
        ("acquisition.acceleration=inf", "finite number"),
        ("acquisition.acceleration=four", "valid number"),
        ("acquisition.center_fraction=0", "greater than 0"),
        ("acquisition.center_fraction=1", "less than 1"),
        ("acquisition.further_drop=0", "greater than or equal to 1"),
        ("acquisition.mask=spiral", "'gaussian', 'equispaced', 'equispaced_fraction', 'magic' or 'magic_fraction'"),
        ("teacher.batch=0", "greater than or equal to 1"),
        ("teacher.batch=2.5", "integer"),
        ("teacher.batch=", "integer"),
        ("teacher=5", "teacher: "),
        ("teacher.learning_rate=0", "greater than 0"),
        ("teacher.learning_rate=-inf", "finite number"),
        ("network.channels=[]", "at least one level"),
        ("network.channels=[4]", "8 or more channels"),
        ("network.channels=32", "tuple"),
        ("network.dropout=1", "less than 1"),
        ("network.preset=huge", "'tiny', 'small', 'base' or 'custom'"),
        ("network.preset=3", "'tiny', 'small', 'base' or 'custom'"),
        ("network=3", "network: "),
        ("network.attention=-1", "greater than or equal to 0"),
        ("network.conditions=['age']", "'contrast' or 'field'"),
        ("network.conditions=['field','field']", "conditions must name each once"),
        ("prior.t_max=1.5", "less than or equal to 1"),
        ("simulate.size=16", "greater than or equal to 32"),
        ("seed=1.5", "integer"),
        ("steps=0", "greater than or equal to 1"),
        ("steps.x=1", "steps: "),
        ("workers=-1", "greater than or equal to 0"),
        ("teacher.sigma_std=0", "greater than 0"),
    ],
)
def test_impossible_values_are_one_line_that_names_the_key(override, message):
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"--set {override}: ")
    assert "\n" not in text


@pytest.mark.parametrize("override", ["seed", "=5", " = 5", "", "teacher.batch"])
def test_overrides_need_a_key_and_a_value(override):
    with pytest.raises(InputError, match="expected key=value"):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=b", "a=b"), ("'quoted'", "quoted"), ("[half", "[half"), ("x\ny", "x\ny"), ("[" * 5000, "[" * 5000)],
)
def test_values_that_are_not_toml_are_text(text, value):
    assert load_config(None, [f"data.path={text}"]).data.path == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = \n", "not valid TOML"),
        (b"[teacher\nbatch = 1", "not valid TOML"),
        (b"\xff\xfe\x00", "not valid TOML"),
        (b"seed = 1\nseed = 2\n", "not valid TOML"),
        (b"a = " + b"[" * 50_000, "nested too deeply"),
        (b"# " + b"x" * 1_000_001, "larger than 1 MB"),
        (b"teacher = 3\n", "teacher: "),
        (b"[teacher]\nbatch = -1\n", "teacher.batch: input should be greater"),
    ],
)
def test_recipes_that_are_none(tmp_path, content, message):
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.toml: ") as caught:
        load_config(recipe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such recipe"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)


def test_stored_settings_that_do_not_fit_name_their_file():
    with pytest.raises(InputError, match=r"run/config\.json: unknown key 'steops'; did you mean 'steps'"):
        config_from_dict({"steops": 3}, "run/config.json")


def test_presets_fill_what_is_not_given():
    assert load_config(None, ["network.preset=small"]).network == Config().network.model_copy(
        update={"preset": "small"}
    )
    base = load_config(None, ["network.preset=base"]).network
    assert (base.channels, base.blocks, base.attention) == ((64, 128, 256, 320, 352), 2, 2)
    for order in (["network.preset=base", "network.blocks=1"], ["network.blocks=1", "network.preset=base"]):
        assert load_config(None, order).network == base.model_copy(update={"blocks": 1})
    assert load_config(None, ["network.preset=base", "network.preset=custom"]).network == Config().network


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_preset_is_complete_and_reads_back(tmp_path, preset):
    config = load_config(None, [f"network.preset={preset}", "network.attention=3", "network.conditions=['field']"])
    written = tomllib.loads(config.to_toml())["network"]
    assert written.keys() == type(config.network).model_fields.keys()
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "config.toml") == config
    del written["preset"]
    again = config_from_dict({"network": written}, "here").network  # nothing is left to the preset
    assert again == config.network.model_copy(update={"preset": "custom"})


def test_the_demo_trains_the_preset_tiny():
    names = PRESETS["tiny"].keys()
    demo, tiny = demo_config().network, load_config(None, ["network.preset=tiny"]).network
    assert {name: getattr(demo, name) for name in names} == {name: getattr(tiny, name) for name in names}


def test_attention_was_once_a_switch():
    assert config_from_dict({"network": {"attention": True}}, "here") == Config()
    assert config_from_dict({"network": {"attention": False}}, "here").network.attention == 0
