"""Configuration: one frozen tree of settings, from defaults, a TOML recipe and ``key=value`` overrides.

Unknown keys are refused with the nearest name; the resolved tree is written into every run and checkpoint.
"""

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rsdmri.errors import InputError


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)
Level = Annotated[float, Field(gt=0, le=80)]  # standard deviation of noise per real number


class SimulateConfig(Section):
    """Simulated scans, used when no data are given."""

    scans: int = Field(48, ge=1)
    slices: int = Field(8, ge=1)
    size: int = Field(128, ge=32, le=1024, description="matrix size in pixels")
    coils: int = Field(8, ge=1, le=128)
    noise: float = Field(0.01, ge=0, description="noise per complex k-space sample over the image's 99th percentile")
    contrast: Literal["mixed", "T1w", "T2w", "PDw", "FLAIR"] = "mixed"
    seed: int = 0


class DataConfig(Section):
    """Where the scans are; ``path`` empty means simulated ones."""

    path: str = ""
    split: str = "train"
    cache_gb: float = Field(4.0, ge=0, description="prepared slices kept in memory by each process, in GB")
    cache_dir: str = Field("", description="folder for coil maps and scales between runs; empty: not kept")
    cache_dir_gb: float = Field(50.0, gt=0, description="size limit of that folder, in GB")
    workers: int = Field(0, ge=0, le=64, description="threads of each process that prepare the next slices; 0: none")
    allow_gaps: bool = Field(False, description="train though masks leave lines untaught; for experiments")
    strip: int = Field(0, ge=0, description="image rows of each slice that a step sees, drawn anew; 0: all")


class AcquisitionConfig(Section):
    """How fully sampled files are undersampled; prospectively undersampled files keep their own mask."""

    acceleration: float = Field(4.0, ge=1)
    mask: Literal[
        "random", "variable-density", "gaussian", "equispaced", "equispaced_fraction", "magic", "magic_fraction"
    ] = "random"
    center_fraction: float | None = Field(None, gt=0, lt=1, description="ACS share; empty: 0.32/R, at least 8 lines")
    further_drop: int | None = Field(None, ge=1, description="lines the further mask drops; empty: W/R - W/(R+1)")
    shared_mask: bool = Field(False, description="one mask for all slices, as many protocols have")


# What each is for and the memory that it takes: see `rsdmri.diffusion.backbones`.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"channels": (16, 48, 96), "blocks": 1, "attention": 1},
    "small": {"channels": (32, 64, 96, 128), "blocks": 1, "attention": 1},
    "base": {"channels": (64, 128, 256, 320, 352), "blocks": 2, "attention": 2},
    "custom": {},
}


class NetworkConfig(Section):
    """The backbone and how the denoiser wraps it."""

    preset: Literal["tiny", "small", "base", "custom"] = Field(
        "custom", description="sets channels, blocks and attention where they are not given"
    )
    backbone: Literal["unet", "diffusers", "monai"] = Field("unet", description="diffusers, monai: extras of that name")
    channels: tuple[int, ...] = (32, 64, 96, 128)
    blocks: int = Field(1, ge=1, description="residual blocks of each level")
    attention: int = Field(1, ge=0, description="coarsest levels with self-attention; true is 1")
    dropout: float = Field(0.0, ge=0, lt=1)
    conditions: tuple[Literal["contrast", "field"], ...] = Field((), description="what a scan says that images hang on")
    preconditioning: Literal["auto", "operator", "published", "consistent"] = Field(
        "auto", description="auto: operator where lines or pixels are missing, published where none are"
    )
    cg_iterations: int = Field(6, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile in training; auto: on CUDA")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("preset"), str):
            return values
        return PRESETS.get(values["preset"], {}) | values

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.channels or min(self.channels) < 8:
            raise ValueError("channels must name at least one level of 8 or more channels")
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError("conditions must name each once")
        return self


class CorruptionConfig(Section):
    """What happened to the images of the training set; ``fourier`` is MRI acquisition, the others act on magnitudes."""

    kind: Literal["fourier", "denoising", "inpainting", "blur", "super-resolution"] = "fourier"
    noise: float = Field(0.0, ge=0, description="standard deviation of noise added to each measured number")
    keep: float = Field(0.4, gt=0, le=1, description="inpainting: share of the pixels that are kept")
    further_keep: float = Field(0.9, gt=0, lt=1, description="inpainting: share of these that the further mask keeps")
    blur: float = Field(1.0, gt=0, description="blur: width of the Gaussian in pixels")
    factor: int = Field(2, ge=2, description="super-resolution: pixels of a block along each side")


class TeacherConfig(Section):
    """Phase I: the corruption-aware diffusion teacher."""

    objective: Literal["auto", "edm", "ambient-tweedie", "ambient", "fourier-ambient"] = Field(
        "auto", description="auto: ambient where lines or pixels are missing, else ambient-tweedie with noise, else edm"
    )
    images: Literal["adjoint", "l1-wavelet"] = Field("adjoint", description="what edm takes for images of k-space")
    consistency: float = Field(0.0, ge=0, description="weight of the consistency term below the measurement noise")
    equivariance: float = Field(0.0, ge=0, description="weight of the equivariant term for lines that masks lack")
    equivariance_shift: float = Field(0.05, ge=0, le=0.5, description="its largest shift, as a share of each axis")
    equivariance_flips: Literal["none", "y", "x", "both"] = Field(
        "x", description="axes along which images are reversed"
    )
    equivariance_rotation: float = Field(15.0, ge=0, le=45, description="its largest rotation in degrees")
    steps: int = Field(20_000, ge=1)
    batch: int = Field(16, ge=1, description="images of a step, in all processes together")
    accumulate: int = Field(1, ge=1, description="parts of a step's images taken one after the other, for less memory")
    learning_rate: float = Field(2e-4, gt=0)
    warmup: int = Field(100, ge=0, description="steps of linear warm-up")
    decay_from: float = Field(0.7, ge=0, le=1, description="share of the run after which the rate falls to 2 %")
    clip: float = Field(1.0, gt=0, description="gradient norm")
    average: Literal["exponential", "power"] = Field(
        "exponential", description="what becomes the teacher; power: the power-function average of sigma_rel 0.10"
    )
    ema_images: float = Field(
        50_000, ge=0, description="half-life of the exponential average, at most 5 % of the images so far"
    )
    sigma_mean: float = -1.2
    sigma_std: float = Field(1.2, gt=0)
    keep: Literal["last", "best"] = Field("last", description="weights of the end, or of the lowest validation loss")
    share: float = Field(0.55, gt=0, lt=1, description="share of the time budget that the teacher gets")


class PriorConfig(Section):
    """Phase II: distillation into the one-step generator."""

    steps: int = Field(10_000, ge=1)
    batch: int = Field(16, ge=1, description="images of a step, in all processes together")
    accumulate: int = Field(1, ge=1, description="parts of a step's images taken one after the other, for less memory")
    objective: Literal["sid", "dmd", "sds", "ambient-gan"] = Field(
        "sid", description="ambient-gan: no teacher, the generator learns from the discriminator alone; a baseline"
    )
    alpha: float = 1.2
    t_max: float = Field(0.8, gt=0, le=1)
    sigma_init: float = Field(2.5, gt=0)
    mask_free: bool = Field(False, description="show the generator every line whatever the mask")
    seed: int | None = Field(None, description="of what the distillation draws; empty: that of everything")
    fake_residual: Literal["acquired", "further"] = Field(
        "acquired", description="lines of the fake score's loss: those of M, or of M~ alone as in the published code"
    )
    adversarial: float = Field(
        0.0, ge=0, description="weight of a discriminator of generated against measured scans beside the distillation"
    )
    r1: float = Field(1e-4, ge=0, description="weight of the discriminator's gradient penalty")
    learning_rate: float = Field(1e-5, gt=0, description="generator")
    fake_learning_rate: float = Field(2e-5, gt=0, description="fake score")
    discriminator_learning_rate: float = Field(1e-4, gt=0)
    loss_scale: float = Field(100.0, gt=0)
    clip: float = Field(1.0, gt=0, description="gradient norms of the fake score and of the discriminator")
    decay_from: float = Field(0.8, ge=0, le=1)
    average: Literal["exponential", "power"] = "exponential"
    ema_images: float = Field(20_000, ge=0)
    keep: Literal["last", "best"] = Field(
        "best",
        description="weights of the end, or of the latest checkpoint whose proximal distance (samples measured again, "
        "against data) is within its error of the lowest",
    )
    validation_images: int = Field(256, ge=4, description="samples that a checkpoint's proximal distance is taken of")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between its checkpoints, of which the best is kept; empty: as everywhere"
    )
    patience: int = Field(0, ge=0, description="checkpoints without a lower proximal distance that end it; 0: never")

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.adversarial > 0 and not self.distils:
            raise ValueError("adversarial weighs a distillation, and ambient-gan is none; leave it at 0")
        return self

    @property
    def distils(self) -> bool:
        """Whether a teacher is distilled; if not, the generator starts untrained and no denoiser comes of it."""
        return self.objective != "ambient-gan"


class PosteriorConfig(Section):
    """The network of ``variant=amortised``, learnt from held-out lines: see `rsdmri.diffusion.amortised`."""

    start: Literal["teacher", "generator"] = Field("teacher", description="weights that it starts from")
    levels: tuple[Level, ...] = Field((0.1, 0.05, 0.05, 0.03), min_length=1, description="an evaluation each")
    trust: float = Field(0.05, ge=0, description="error per pixel between levels; 0: no data consistency there")
    held_out: float = Field(0.75, ge=0, le=1, description="most of the outer lines; 0: acquisition.further_drop")
    rows: int = Field(4, ge=0, description="image rows of a block whose joint law is scored; 0: all")
    steps: int = Field(2_000, ge=1)
    batch: int = Field(16, ge=1, description="images of a step, in all processes together")
    accumulate: int = Field(1, ge=1, description="parts of a step's images taken one after the other, for less memory")
    learning_rate: float = Field(3e-4, gt=0)
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    decay_from: float = Field(0.5, ge=0, le=1)
    clip: float = Field(1.0, gt=0, description="gradient norm")
    average: Literal["exponential", "power"] = "exponential"
    ema_images: float = Field(20_000, ge=0)
    keep: Literal["last", "best"] = Field("last", description="weights of the end, or of the lowest validation score")


class LoggingConfig(Section):
    """What a run shows of itself beside ``metrics.jsonl``; changes nothing that is trained."""

    tensorboard: Literal["auto", "on", "off"] = Field("auto", description="auto: where tensorboard is installed")
    reference: str = Field(
        "", description="fully sampled scans of other subjects; the prior's distance to them is logged, and no more"
    )
    grid_every: int | None = Field(
        None, ge=0, description="steps between grids of samples; empty: ten a stage within 3 % of its time; 0: none"
    )


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
