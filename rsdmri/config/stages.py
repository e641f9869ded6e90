"""Settings of the stages of training."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rsdmri.config.section import Level, Section


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
    share: float = Field(0.55, gt=0, lt=1, description="the teacher's share of the time budget of both phases")


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
    levels: tuple[Level, ...] = Field((0.1, 0.05, 0.03), min_length=1, description="an evaluation each")
    warm: int = Field(20, ge=0, description="iterations of L1-wavelet that the first level starts from; 0: from SENSE")
    trust: float = Field(0.05, ge=0, description="error per pixel between levels; 0: no data consistency there")
    held_out: float = Field(0.75, ge=0, le=1, description="most of the outer lines; 0: acquisition.further_drop")
    rows: int = Field(4, ge=0, description="image rows of a block whose joint law is scored; 0: all")
    columns: int = Field(8, ge=0, description="columns of a patch of as many rows whose law is scored, too; 0: none")
    noise: float = Field(0.1, ge=0, description="highest level of noise added to samples per real number; 0: none")
    phase: float = Field(1.5, ge=0, description="largest amplitude of smooth phase that images are turned by, radians")
    steps: int = Field(2_000, ge=1)
    batch: int = Field(16, ge=1, description="images of a step, in all processes together")
    accumulate: int = Field(1, ge=1, description="parts of a step's images taken one after the other, for less memory")
    share: float = Field(0.25, ge=0, lt=1, description="share of the time budget; 0: none, --stage all leaves it out")
    learning_rate: float = Field(3e-4, gt=0)
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    decay_from: float = Field(0.5, ge=0, le=1)
    clip: float = Field(1.0, gt=0, description="gradient norm")
    average: Literal["exponential", "power"] = "exponential"
    ema_images: float = Field(20_000, ge=0)
    keep: Literal["last", "best"] = Field("last", description="weights of the end, or of the lowest validation score")
