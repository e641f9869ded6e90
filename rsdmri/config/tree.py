"""The whole tree of settings, and how it is read from a TOML recipe and ``key=value`` overrides."""

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from rsdmri.config.inputs import (
    AcquisitionConfig,
    CorruptionConfig,
    DataConfig,
    LoggingConfig,
    NetworkConfig,
    SimulateConfig,
)
from rsdmri.config.section import AnySection, Section
from rsdmri.config.stages import PosteriorConfig, PriorConfig, TeacherConfig
from rsdmri.errors import InputError

_OBJECTIVES = {
    "fourier": ("ambient", "fourier-ambient", "edm", "ambient-tweedie"),
    "inpainting": ("ambient", "edm"),
    "denoising": ("ambient-tweedie", "edm"),
    "blur": ("edm", "ambient-tweedie"),
    "super-resolution": ("edm", "ambient-tweedie"),
}


class Config(Section):
    """Everything that determines a run."""

    seed: int = 0
    steps: int | None = Field(None, ge=1, description="optimiser steps of each stage, over the stages' own")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    snapshots: int = Field(16, ge=0, description="snapshots of the power-function averages kept of a stage; 0: none")
    snapshots_gb: float = Field(4.0, ge=0, description="disk that they may take of a stage, in GB")
    workers: int = Field(0, ge=0, description="threads of a process that share its images on a CPU; 0: automatic")
    data: DataConfig = DataConfig()
    simulate: SimulateConfig = SimulateConfig()
    acquisition: AcquisitionConfig = AcquisitionConfig()
    corruption: CorruptionConfig = CorruptionConfig()
    network: NetworkConfig = NetworkConfig()
    teacher: TeacherConfig = TeacherConfig()
    prior: PriorConfig = PriorConfig()
    posterior: PosteriorConfig = PosteriorConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        fitting = _OBJECTIVES[self.corruption.kind]
        if self.teacher.objective not in ("auto", *fitting):
            raise ValueError(
                f"teacher.objective {self.teacher.objective} does not fit corruption.kind {self.corruption.kind}; "
                f"use {' or '.join(fitting)}"
            )
        if self.teacher.equivariance > 0 and self.objective not in ("ambient", "fourier-ambient"):
            raise ValueError(f"teacher.equivariance: objective {self.objective} lacks no lines that it could teach")
        if self.teacher.equivariance > 0 and not self.prior.distils:
            raise ValueError("teacher.equivariance: prior.objective ambient-gan has no such term; leave it at 0")
        return self

    @property
    def objective(self) -> Literal["edm", "ambient-tweedie", "ambient", "fourier-ambient"]:
        """The teacher's objective, ``auto`` resolved."""
        if self.teacher.objective != "auto":
            return self.teacher.objective
        if self.corruption.kind in ("fourier", "inpainting"):
            return "ambient"
        return "ambient-tweedie" if self.corruption.noise > 0 else "edm"

    def checkpoints(self, stage: str) -> int:
        """Steps between the checkpoints of ``stage``."""
        own = self.prior.checkpoint_every if stage == "prior" else None
        return own or self.checkpoint_every

    @property
    def trains_on_kspace(self) -> bool:
        """Lines of k-space are learnt from others; otherwise images are."""
        return self.corruption.kind == "fourier" and self.objective in ("ambient", "fourier-ambient")

    @property
    def preconditioning(self) -> Literal["operator", "published", "consistent"]:
        """The denoiser's preconditioning, ``auto`` resolved."""
        if self.network.preconditioning != "auto":
            return self.network.preconditioning
        return "operator" if self.objective in ("ambient", "fourier-ambient") else "published"

    @property
    def trains_posterior(self) -> bool:
        """Whether ``--stage all`` trains the posterior network: where lines can be held out, if it is wanted."""
        able = self.trains_on_kspace and self.preconditioning == "operator"
        starts = self.prior.distils or self.posterior.start == "generator"
        return able and starts and self.posterior.share > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary without the empty settings."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """The resolved configuration as TOML."""
        return tomli_w.dumps(self.to_dict())

    def to_json(self) -> str:
        """The resolved configuration as one line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)


def load_config(recipe: str | os.PathLike[str] | None = None, overrides: list[str] | None = None) -> Config:
    """Build the configuration from defaults, then ``recipe`` (TOML), then ``overrides`` (``a.b=value``).

    Errors:
        InputError: a file that cannot be read, an unknown key (the nearest name is offered), a value out of range.
    """
    tree: dict[str, Any] = {}
    if recipe is not None:
        tree = _read_toml(Path(recipe))
        _check(tree, str(recipe))
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {override}: expected key=value, for example --set teacher.batch=8")
        _insert(tree, key.strip().split("."), parse_value(text.strip()), override)
        _check(tree, f"--set {override}")
    return _check(tree, str(recipe or "configuration"))


def config_from_dict(tree: dict[str, Any], source: str) -> Config:
    """Build the configuration stored in ``source``; `InputError` names it if the tree does not fit."""
    return _check(tree, source)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1_000_000:
            raise InputError(f"{path}: larger than 1 MB, so not a recipe; give a TOML recipe")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; see the recipes folder for examples") from None
    except OSError as error:
        raise InputError(f"{path}: the recipe cannot be read ({error.strerror}); give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not valid TOML ({reason}); correct that line") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be a recipe; give a TOML recipe") from None


def parse_value(text: str) -> Any:
    """Read ``text`` as a TOML value, else as a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _insert(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise InputError(f"--set {override}: {key} is a value, not a section")
    tree[keys[-1]] = value


def _check(tree: dict[str, Any], source: str) -> Config:
    return validated(Config, tree, source)


def validated(section: type[AnySection], tree: Any, source: str) -> AnySection:
    """``section`` of the values in ``tree``; `InputError` names ``source``, and the nearest name for an unknown key."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, _all_keys(section), n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}?" if near else "it takes none"
            raise InputError(f"{source}: unknown key {key!r}; {hint}") from None
        raise InputError(f"{source}: {key}: {first['msg'].lower()}, got {first['input']!r}") from None


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys
