"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class StageChoice(StrEnum):
    """Stages of training."""

    all = "all"
    teacher = "teacher"
    prior = "prior"
    posterior = "posterior"


class AveragedStage(StrEnum):
    """Stages that keep snapshots of their weights."""

    all = "all"
    teacher = "teacher"
    prior = "prior"


class Method(StrEnum):
    """Reconstruction methods."""

    rsd = "rsd"
    adps = "adps"
    diffpir = "diffpir"
    ambient_one_step = "ambient-one-step"
    sense = "sense"
    l1_wavelet = "l1-wavelet"
    tv = "tv"
    zero_filled = "zero-filled"


class Sampler(StrEnum):
    """Samplers of a teacher."""

    heun = "heun"
    euler = "euler"
    dpmpp_2m = "dpmpp-2m"


class Echo(StrEnum):
    """Echoes of simulated scans."""

    spin = "spin"
    gradient = "gradient"
    mixed = "mixed"


class Sampling(StrEnum):
    """What simulated scans are undersampled by."""

    lines = "lines"
    points = "points"


class MaskFamily(StrEnum):
    """Families of line masks."""

    random = "random"
    equispaced_fraction = "equispaced_fraction"
    variable_density = "variable-density"
    gaussian = "gaussian"
    equispaced = "equispaced"
    magic = "magic"
    magic_fraction = "magic_fraction"


class Contrast(StrEnum):
    """Contrasts of simulated scans."""

    mixed = "mixed"
    t1w = "T1w"
    t2w = "T2w"
    pdw = "PDw"
    flair = "FLAIR"


SetMethod = Annotated[
    list[str] | None, typer.Option("--set-method", metavar="KEY=VALUE", help="setting of the method; repeatable")
]
Family = Annotated[MaskFamily, typer.Option("--mask", help="family of the lines left at --acceleration")]
CenterFraction = Annotated[float | None, typer.Option(help="share of the lines in the fully sampled centre [0.32 / R]")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="h5, nifti, dicom, parametric-map, png, cfl; several by commas [h5,png]"),
]
PriorPath = Annotated[Path | None, typer.Option(help="run or prior folder [newest finished run under runs/]")]
Device = Annotated[str, typer.Option(help="auto, cpu, or another torch device")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
Variable = Annotated[str | None, typer.Option(help="array of the k-space, for NumPy, MATLAB, HDF5 [the only one]")]
Axes = Annotated[str | None, typer.Option(help="names of its axes, such as 'y x coil slice' [guessed]")]
Frame = Annotated[int | None, typer.Option(help="time frame, echo or repetition to read [0]")]
Trust = Annotated[bool, typer.Option("--trust", help="read files without the guard of a child process, for known ones")]


def absolute(data: str) -> str:
    """A path as an absolute one, a URI as it is (``file://``: its path)."""
    from rsdmri.data.remote import is_uri, locate, refuse_secrets

    if is_uri(data):
        refuse_secrets(data, "--data")
    return str(locate(data))
