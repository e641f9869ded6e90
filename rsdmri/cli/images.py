"""Commands that reconstruct scans and score images, and the one that looks at the machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from rsdmri.cli.app import app
from rsdmri.cli.options import (
    Axes,
    CenterFraction,
    Device,
    Family,
    Formats,
    Frame,
    MaskFamily,
    Method,
    PriorPath,
    Seed,
    SetMethod,
    Trust,
    Variable,
)
from rsdmri.errors import Interrupted


@app.command()
def reconstruct(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="files of any format, see convert")],
    method: Annotated[Method, typer.Option(help="reconstruction method")] = Method.rsd,
    prior: PriorPath = None,
    acceleration: Annotated[float | None, typer.Option(help="undersample a fully sampled scan at R, and score")] = None,
    mask: Family = MaskFamily.random,
    center_fraction: CenterFraction = None,
    samples: Annotated[int, typer.Option(help="draws of rsd, adps, diffpir: mean and spread are written")] = 8,
    set_method: SetMethod = None,
    maps: Annotated[Path | None, typer.Option(help="coil maps: .npy, .h5 or .cfl [from the scan's centre]")] = None,
    calibration: Annotated[Path | None, typer.Option(help="separate calibration scan for the coil maps")] = None,
    map_sets: Annotated[int, typer.Option(help="2: for objects wider than the field of view")] = 1,
    check: Annotated[bool, typer.Option("--check", help="held-out lines, undetermined places; twice the time")] = False,
    warn_only: Annotated[bool, typer.Option("--warn-only", help="use the prior on scans unlike its own, too")] = False,
    variable: Variable = None,
    axes: Axes = None,
    frame: Frame = None,
    out: Annotated[Path, typer.Option(help="output folder, or a file such as recon.nii.gz")] = Path("recon"),
    format_: Formats = None,
    dicom_source: Annotated[Path | None, typer.Option(help="DICOM file of the same examination, for its UIDs")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace results that exist")] = False,
    budget: Annotated[str | None, typer.Option(help="wall-clock time of the command, such as 60s: fewer draws")] = None,
    device: Device = "auto",
    seed: Seed = 0,
    trust: Trust = False,
) -> None:
    """Reconstruct scans. Undersampled ones as they are, fully sampled ones at R if asked, and then scored.

    The same command goes on where it was stopped.
    """
    started = time.monotonic()
    from rsdmri.reconstruction.settings import parse_options
    from rsdmri.workflows.budget import TimeLimit, parse_duration
    from rsdmri.workflows.reconstruct_files import reconstruct_files

    sampling: dict[str, Any] = {"acceleration": acceleration, "mask": mask.value, "center_fraction": center_fraction}
    coils: dict[str, Any] = {"maps": maps, "calibration": calibration, "map_sets": map_sets}
    with _stopped_with_130():
        rows = reconstruct_files(
            scans,
            out,
            method=method.value,
            prior=prior,
            reading={"variable": variable, "axes": axes, "frame": frame},
            **sampling,
            samples=samples,
            seed=seed,
            device=device,
            **coils,
            held_out=0.1 if check else None,
            out_of_domain="warn" if warn_only else "fallback",
            formats=format_,
            dicom_source=dicom_source,
            force=force,
            trust=trust,
            settings=parse_options(set_method or []),
            budget=None if budget is None else TimeLimit(parse_duration(budget), started),
            say=typer.echo,
        )
    _exit_with_2([row["error"] for row in rows if row.get("error")])


def _exit_with_2(failures: list[str]) -> None:
    for line in failures:
        typer.echo(f"rsdmri: {line}", err=True)
    if failures:
        raise typer.Exit(2)


@contextmanager
def _stopped_with_130() -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        typer.echo(f"rsdmri: {stop}", err=True)
        raise typer.Exit(130) from None


@app.command()
def calibrate(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="fully sampled, not trained on; 9 or more")],
    acceleration: Annotated[float, typer.Option(help="R that the prior will be used at")],
    prior: PriorPath = None,
    mask: Family = MaskFamily.random,
    center_fraction: CenterFraction = None,
    method: Annotated[Method, typer.Option(help="method with draws")] = Method.rsd,
    samples: Annotated[int, typer.Option(help="draws of each reconstruction, as there will be")] = 8,
    set_method: SetMethod = None,
    level: Annotated[float, typer.Option(help="share of the object inside the bands")] = 0.9,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Widen a prior's bands until they cover 90 %. Writes calibration.json beside it, used from then on."""
    from rsdmri.reconstruction.settings import parse_options
    from rsdmri.workflows.calibrate import calibrate_prior

    failures: list[str] = []
    calibrate_prior(
        prior,
        scans,
        acceleration=acceleration,
        mask=mask.value,
        center_fraction=center_fraction,
        method=method.value,
        samples=samples,
        options=parse_options(set_method or []),
        level=level,
        seed=seed,
        device=device,
        skip=failures.append,
        say=typer.echo,
    )
    _exit_with_2(failures)


@app.command()
def evaluate(
    recon: Annotated[list[Path], typer.Argument(metavar="RECON... [TARGET]", help="files or folders, one a method")],
    target: Annotated[Path | None, typer.Option(help="target file or folder [the last of two]")] = None,
    acquisition: Annotated[str | None, typer.Option(help="only volumes of this acquisition, such as AXT2")] = None,
    acceleration: Annotated[float | None, typer.Option(help="only volumes of this acceleration")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of figures and metrics.json, or a .json file")] = None,
) -> None:
    """Score reconstructions against targets. By fastMRI's convention; several methods are compared."""
    from rsdmri.workflows.evaluate import evaluate_methods, split_arguments

    methods, targets = split_arguments(recon, target)
    evaluate_methods(methods, targets, out, acquisition=acquisition, acceleration=acceleration, say=typer.echo)


@app.command()
def doctor() -> None:
    """Report versions and what is missing. Device, threads, HDF5 build, disk, optional tools."""
    from rsdmri.workflows.doctor import doctor as run

    rows = run()
    width, middle = (max(len(row[k]) for row in rows) for k in (0, 1))
    for name, value, verdict in rows:
        typer.echo(f"{name:<{width}}  {value:<{middle}}  {verdict}")
