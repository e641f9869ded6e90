"""Settings of the data, the network and what a run shows."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rsdmri.config.section import Section


class SimulateConfig(Section):
    """Simulated scans, used when no data are given."""

    scans: int = Field(48, ge=1)
    slices: int = Field(8, ge=1)
    size: int = Field(128, ge=32, le=1024, description="matrix size in pixels")
    coils: int = Field(8, ge=1, le=128)
    noise: float = Field(0.01, ge=0, description="noise per complex k-space sample over the image's 99th percentile")
    contrast: Literal["mixed", "T1w", "T2w", "PDw", "FLAIR"] = "mixed"
    echo: Literal["spin", "gradient", "mixed"] = Field("spin", description="gradient: phase of air nearby and of fat")
    accelerations: tuple[float, ...] = Field((), description="scans undersampled by these in turn; none: full ones")
    sampling: Literal["lines", "points"] = Field("lines", description="points: of two phase encodings, whole slices")
    phase_fov: float = Field(1.0, ge=0.5, le=1, description="field of view of the phase encoding over the readout's")
    margin: float = Field(0.075, ge=0, le=0.11, description="least share of the readout before and behind a head")
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


class LoggingConfig(Section):
    """What a run shows of itself beside ``metrics.jsonl``; changes nothing that is trained."""

    tensorboard: Literal["auto", "on", "off"] = Field("auto", description="auto: where tensorboard is installed")
    reference: str = Field(
        "", description="fully sampled scans of other subjects; the prior's distance to them is logged, and no more"
    )
    grid_every: int | None = Field(
        None, ge=0, description="steps between grids of samples; empty: ten a stage within 3 % of its time; 0: none"
    )
