"""What an ablation varies: its axes, their values, and the configuration of each value and seed."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsdmri.config import Config, config_from_dict, load_config
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location, is_uri
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.workflows.changes import differences
from rsdmri.workflows.plan import mask_law, open_slices
from rsdmri.workflows.run_folder import FREE

Value = float | int | str


@dataclass(frozen=True)
class Axis:
    """A setting that is varied.

    Attributes:
        name: on the command line.
        key: in the configuration.
        values: where none are given; empty: around the automatic one.
    """

    name: str
    key: str
    values: tuple[Value, ...] = ()

    @property
    def retrains(self) -> bool:
        """The teacher sees the setting, so that each value and seed needs a teacher of its own."""
        return not self.key.startswith("prior.")


AXES = (
    Axis("alpha", "prior.alpha", (0.8, 1.0, 1.2)),
    Axis("t_max", "prior.t_max", (0.5, 0.65, 0.8, 0.95)),
    Axis("sigma_init", "prior.sigma_init", (1.0, 2.5, 5.0)),
    Axis("objective", "prior.objective", ("sid", "dmd", "sds")),
    Axis("further-mask", "acquisition.further_drop"),
)
_AROUND = (0.5, 1.0, 2.0)  # the automatic number of dropped lines


@dataclass(frozen=True)
class Cell:
    """One run of an ablation."""

    value: Value
    seed: int
    config: Config

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.value}-seed{self.seed}"


def axis_named(name: str) -> Axis:
    """The axis called ``name``; `InputError` offers the nearest name."""
    names = [axis.name for axis in AXES]
    if name in names:
        return AXES[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise InputError(f"ablate {name}: no such axis; did you mean {near}? There are {', '.join(names)}")


def base_of_teacher(
    axis: Axis, run: Path, overrides: Sequence[str], steps: int | None, budget: float | None, data: str | None
) -> Config:
    """Configuration of the run whose finished teacher is distilled, with ``data.path`` as an absolute location.

    ``data.path`` stays empty where the run simulated its scans and they are gone: they can be simulated again.

    Errors:
        InputError: no finished teacher, an override of what the teacher was trained with, scans that moved.
    """
    if not (run / "config.toml").is_file() or not (run / "teacher" / "config.json").is_file():
        raise InputError(
            f"--teacher {run}: holds no finished teacher; give the folder of a run that has one, or finish it with "
            f"rsdmri train --stage teacher --out {run}"
        )
    before = load_config(run / "config.toml")
    config = _overridden(axis, run / "config.toml", overrides, steps, budget)
    fixed = [change.key for change in differences(before, config, FREE) if not change.key.startswith("prior.")]
    if fixed:
        raise InputError(
            f"--set {fixed[0]}: the teacher of {run} was trained with another value; leave it out, or train a teacher "
            "with it first (prior.*, and settings of speed and logging, may change)"
        )
    path = data or config.data.path
    if not path and (run / "data" / "manifest.tsv").is_file():
        path = str((run / "data").resolve())
    if path and not is_uri(path) and not Path(path).exists():
        raise InputError(f"{run}: its scans are not at {path} (moved, or renamed for privacy); name them with --data")
    return with_data(config, path)


def base_of_recipe(
    axis: Axis, recipe: Path | None, overrides: Sequence[str], steps: int | None, budget: float | None, data: str | None
) -> Config:
    """Configuration that teachers and priors are trained with; `InputError` where its scans are not there."""
    config = _overridden(axis, recipe, overrides, steps, budget)
    path = data or config.data.path
    if path:
        read_manifest(path if is_uri(path) else Path(path))
    return with_data(config, path)


def with_data(config: Config, path: str) -> Config:
    """``config`` with the scans at ``path``, made absolute; empty: simulated ones."""
    path = path if not path or is_uri(path) else str(Path(path).resolve())
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


def _overridden(
    axis: Axis, recipe: Path | None, overrides: Sequence[str], steps: int | None, budget: float | None
) -> Config:
    if steps is not None and budget is not None:
        raise InputError("--steps and --budget: both say how long a training lasts; give one of them")
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key, instead in ((axis.key, "--values"), ("seed", "--seeds"), ("prior.seed", "--seeds")):
        if key in keys:
            raise InputError(f"--set {key}: differs from run to run here; give {instead}")
    last = [f"steps={steps}"] if steps is not None else []
    config = load_config(recipe, [*overrides, *last])
    if budget is not None and "steps" not in keys:  # those of the earlier run
        config = config.model_copy(update={"steps": None})
    return config


def parse_seeds(text: str) -> list[int]:
    """Seeds of ``0,1,2``."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text}: expected whole numbers joined by commas, such as 0,1,2") from None
    return list(dict.fromkeys(seeds))


def cells_of(axis: Axis, base: Config, values: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The runs, all values of the first seed first, so that an unfinished grid compares them.

    Args:
        axis: what is varied.
        base: configuration of what is not.
        values: as given, also several joined by commas; none: the axis's own.
        seeds: of the distillations, from the teacher and on the measurements that all share; where teachers are
            trained, of everything, masks included.

    Errors:
        InputError: a value out of range, or an axis that the configuration makes no use of.
    """
    _check_use(axis, base)
    texts = [part.strip() for text in values for part in text.split(",")]
    if axis.retrains:
        chosen = _drops(axis, base, texts)
    else:
        chosen = [_valued(axis, base, value)[0] for value in texts or axis.values]
    key = "seed" if axis.retrains else "prior.seed"
    return [
        Cell(value, seed, _changed(_valued(axis, base, value)[1], key, seed, "--seeds"))
        for seed in seeds
        for value in dict.fromkeys(chosen)
    ]


def _check_use(axis: Axis, base: Config) -> None:
    if axis.name == "alpha" and base.prior.objective != "sid":
        raise InputError(f"ablate alpha: objective {base.prior.objective} has none; add --set prior.objective=sid")
    if axis.retrains and not base.trains_on_kspace:
        raise InputError(
            f"ablate {axis.name}: objective {base.objective} on {base.corruption.kind} drops no lines further; use a "
            "recipe with teacher.objective ambient or fourier-ambient on k-space"
        )


def _valued(axis: Axis, base: Config, value: Value) -> tuple[Value, Config]:
    """``value`` as the configuration reads it, and the configuration."""
    config = _changed(base, axis.key, value, f"--values {value}")
    section, name = axis.key.split(".")
    return getattr(getattr(config, section), name), config


def _changed(config: Config, key: str, value: Value, source: str) -> Config:
    tree = config.to_dict()
    section, _, name = key.rpartition(".")
    part: dict[str, Any] = tree[section] if section else tree
    part[name] = value
    return config_from_dict(tree, source)


def _drops(axis: Axis, base: Config, texts: Sequence[str]) -> list[Value]:
    """Numbers of dropped lines: those given, or of some around the automatic one those that masks allow."""
    width, coils, automatic, drawn = _matrix(base)
    values: Sequence[Value] = texts or [max(1, round(factor * automatic)) for factor in _AROUND]
    chosen: list[Value] = []
    for given in values:
        value, config = _valued(axis, base, given)
        try:
            if drawn:
                _check_drop(config, int(value), width, coils)
        except InputError as error:
            if texts:
                raise InputError(f"--values {given}: {error}") from None
            continue
        chosen.append(value)
    if not chosen:
        raise InputError(f"ablate {axis.name}: these masks allow none of {', '.join(map(str, values))}; give --values")
    return chosen


def _check_drop(config: Config, drop: int, width: int, coils: int) -> None:
    acquired = width / config.acquisition.acceleration
    if drop >= acquired:
        raise InputError(f"masks acquire about {acquired:.0f} of {width} lines; drop fewer")
    mask_law(config).check(width, coils)


def _matrix(base: Config) -> tuple[int, int, int, bool]:
    """Phase-encode lines, coils, the automatic number of lines dropped further, and whether masks are drawn."""
    if not base.data.path:
        settings, acceleration = base.simulate, base.acquisition.acceleration
        return settings.size, settings.coils, masks.further_drop(settings.size, acceleration), True
    plain = base.model_copy(update={"acquisition": base.acquisition.model_copy(update={"further_drop": None})})
    where: Location = base.data.path if is_uri(base.data.path) else Path(base.data.path)
    slices = open_slices(plain, where)
    try:
        ref = slices.slices[slices.commonest()[0]]
        return ref.file.x, ref.file.coils, slices.further_drop(ref), not ref.file.prospective
    finally:
        slices.close()
