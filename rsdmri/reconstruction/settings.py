"""What can be set of each reconstruction method: typed, with ranges, unknown names refused with the nearest one.

These are what a search over settings varies (``benchmarks/tune_reconstruction.py``). ``evaluations`` counts the
network evaluations of one draw of one image; those that also need its gradient (``adps``, ``latent``) take about three
times as long.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field

from rsdmri.config import Level, Section, parse_value, validated
from rsdmri.diffusion.schedule import SIGMA_MAX, SIGMA_MIN
from rsdmri.errors import InputError
from rsdmri.physics import classical

Start = Literal["noise", "sense", "l1-wavelet"]
Lines = Literal["all", "acquired"]
Network = Literal["teacher", "generator"]
TRIAL = 4  # evaluations whose time is taken for that of a whole run's, see `rsdmri.workflows.budget`


class MethodSettings(Section):
    """Settings of one method."""

    @property
    def evaluations(self) -> int:
        """Network evaluations of one draw of one image."""
        return 0

    def trial(self) -> Self:
        """Settings of a run of few evaluations, each as long as those of a whole one."""
        return self


class ZeroFilledSettings(MethodSettings):
    """A^H y has none."""


class SenseSettings(MethodSettings):
    """Of `classical.sense_cg`."""

    factor: float = Field(classical.SENSE_FACTOR, ge=0, description="ridge over sigma_y^2")
    iterations: int = Field(30, ge=1)


class WaveletSettings(MethodSettings):
    """Of `classical.l1_wavelet`."""

    factor: float = Field(classical.L1_FACTOR, ge=0, description="threshold over sigma_y")
    floor: float = Field(classical.L1_FLOOR, ge=0, description="threshold without noise")
    iterations: int = Field(80, ge=1)


class TvSettings(MethodSettings):
    """Of `classical.tv`."""

    factor: float = Field(classical.TV_FACTOR, ge=0, description="weight over sigma_y")
    floor: float = Field(classical.TV_FLOOR, ge=0, description="weight without noise")
    iterations: int = Field(80, ge=1)


class OneStepSettings(MethodSettings):
    """Of `posterior.ambient_one_step`."""

    level: float = Field(0.1, gt=0, le=SIGMA_MAX, description="noise level told to the denoiser, at least sigma_y")
    trust: float = Field(0.1, gt=0, description="error per pixel that the estimate is taken to have")

    @property
    def evaluations(self) -> int:
        """One."""
        return 1


class DrawSettings(MethodSettings):
    """What the methods that draw have in common."""

    start: Start = Field("l1-wavelet", description="image that draws start from; noise: from none")


class AdpsSettings(DrawSettings):
    """Of `adps.adps`."""

    start: Literal["noise"] = "noise"
    steps: int = Field(500, ge=1)
    sampler: Literal["euler", "heun"] = "euler"
    guidance: Literal["norm", "variance"] = Field("norm", description="norm: as published")
    scale: float = Field(1.0, ge=0, description="of the guidance")
    lines: Lines = Field("acquired", description="lines that the denoiser is shown")
    sigma_max: float = Field(SIGMA_MAX, gt=SIGMA_MIN, le=SIGMA_MAX, description="level of the start")

    @property
    def evaluations(self) -> int:
        """One a step; Heun two but for the last."""
        return self.steps if self.sampler == "euler" else 2 * self.steps - 1

    def trial(self) -> Self:
        """Of a few steps."""
        return self.model_copy(update={"steps": min(self.steps, TRIAL)})


class DiffpirSettings(DrawSettings):
    """Of `proximal.diffpir`."""

    steps: int = Field(20, ge=1)
    sigma_max: float = Field(1.0, gt=0, le=SIGMA_MAX, description="level of the start")
    sigma_min: float = Field(0.02, gt=0, description="last level")
    weight: float = Field(1.0, gt=0, description="lambda: weight of the denoised image against the data")
    renewal: float = Field(0.3, ge=0, le=1, description="zeta: share of fresh noise")
    network: Network = "teacher"
    lines: Lines = "all"

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def trial(self) -> Self:
        """Of a few steps."""
        return self.model_copy(update={"steps": min(self.steps, TRIAL)})


class ProximalSettings(DrawSettings):
    """Of `proximal.proximal`."""

    variant: Literal["proximal"] = "proximal"
    levels: tuple[Level, ...] = Field((0.1, 0.05), min_length=1)
    trust: float = Field(0.05, gt=0, description="error per pixel that the denoised image is taken to have")
    jitter: float = Field(0.5, ge=0, description="noise added before each denoising, over the level")
    network: Network = "teacher"
    lines: Lines = "all"

    @property
    def evaluations(self) -> int:
        """One a level."""
        return len(self.levels)


class LatentSettings(DrawSettings):
    """Of `latent.latent`."""

    variant: Literal["latent"] = "latent"
    iterations: int = Field(19, ge=1)
    rate: float = Field(0.1, gt=0, description="first step size of Adam, in units of standard noise")
    error: float = Field(0.05, ge=0, description="error of the generator per k-space sample, beside the noise")
    spread: float = Field(1.0, ge=0, description="of the draws; 0: all are the most probable one")
    trust: float = Field(0.05, gt=0, description="error per pixel that the generated image is taken to have")

    @property
    def evaluations(self) -> int:
        """One an iteration and a last one."""
        return self.iterations + 1

    def trial(self) -> Self:
        """Of a few iterations."""
        return self.model_copy(update={"iterations": min(self.iterations, TRIAL)})


class AmortisedSettings(DrawSettings):
    """Of `amortised.amortised`."""

    variant: Literal["amortised"] = "amortised"
    start: Literal["noise"] = "noise"
    trust: float = Field(0.0, ge=0, description="error per pixel that its image is taken to have; 0: no last step")
    agree: int = Field(0, ge=0, description="iterations of the sparsest change of the mean that the samples ask for")
    bfloat16: bool = Field(False, description="network in bfloat16: a third faster where the processor has it")
    warm: int | None = Field(None, ge=1, description="iterations of L1-wavelet to start from; empty: as in training")
    factor: float = Field(0.1, ge=0, description="threshold of the change over sigma_y")
    floor: float = Field(1e-3, ge=0, description="its threshold without noise")

    @property
    def evaluations(self) -> int:
        """One, beside those of the estimate that all draws share (`PosteriorSampler.evaluations`)."""
        return 1


RSD: dict[str, type[MethodSettings]] = {
    "proximal": ProximalSettings,
    "latent": LatentSettings,
    "amortised": AmortisedSettings,
}
_METHODS: dict[str, type[MethodSettings]] = {
    "adps": AdpsSettings,
    "diffpir": DiffpirSettings,
    "ambient-one-step": OneStepSettings,
    "sense": SenseSettings,
    "l1-wavelet": WaveletSettings,
    "tv": TvSettings,
    "zero-filled": ZeroFilledSettings,
}


def method_settings(method: str, options: Mapping[str, Any] | None = None) -> MethodSettings:
    """Settings of ``method`` with some ``options`` over the defaults; ``variant`` of rsd picks among `RSD`.

    Errors:
        InputError: an unknown method or variant, an option that the method has not (the nearest is offered), a value
            out of range.
    """
    chosen, source = dict(options or {}), f"--set-method of {method}"
    if method == "rsd":
        variant = chosen.get("variant", "proximal")
        if variant not in RSD:
            raise InputError(f"{source}: variant {variant!r}: expected one of {', '.join(RSD)}")
        return validated(RSD[variant], chosen, f"--set-method of rsd, {variant}")
    if method not in _METHODS:
        raise InputError(f"--method {method}: expected one of rsd, {', '.join(_METHODS)}")
    return validated(_METHODS[method], chosen, source)


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options written as ``key=value``, values as in TOML; `InputError` for another form."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set-method {text}: expected key=value, for example --set-method trust=0.1")
        options[key.strip()] = parse_value(value.strip())
    return options
