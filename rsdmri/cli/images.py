"""Commands that reconstruct scans and score images, and the one that looks at the machine."""

from pathlib import Path
from typing import Annotated

import typer

from rsdmri.cli.app import app
from rsdmri.cli.options import Axes, Device, Frame, Method, Seed, Trust, Variable


@app.command()
def reconstruct(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="files of any format, see convert")],
    method: Annotated[Method, typer.Option(help="reconstruction method")] = Method.rsd,
    prior: Annotated[Path | None, typer.Option(help="run or prior folder [newest finished run under runs/]")] = None,
    acceleration: Annotated[float | None, typer.Option(help="undersample a fully sampled scan at R, and score")] = None,
    samples: Annotated[int, typer.Option(help="posterior draws of rsd: their mean and spread are written")] = 8,
    maps: Annotated[Path | None, typer.Option(help="coil maps: .npy, .h5 or .cfl [from the scan's centre]")] = None,
    calibration: Annotated[Path | None, typer.Option(help="separate calibration scan for the coil maps")] = None,
    map_sets: Annotated[int, typer.Option(help="2: for objects wider than the field of view")] = 1,
    check: Annotated[bool, typer.Option("--check", help="compare with lines held out of it: twice the time")] = False,
    warn_only: Annotated[bool, typer.Option("--warn-only", help="use the prior on scans unlike its own, too")] = False,
    variable: Variable = None,
    axes: Axes = None,
    frame: Frame = None,
    out: Annotated[Path, typer.Option(help="output folder, or a file such as recon.nii.gz")] = Path("recon"),
    format_: Annotated[
        list[str] | None,
        typer.Option("--format", help="h5, nifti, dicom, parametric-map, png, cfl; several by commas [h5,png]"),
    ] = None,
    dicom_source: Annotated[Path | None, typer.Option(help="DICOM file of the same examination, for its UIDs")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace results that exist")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    trust: Trust = False,
) -> None:
    """Reconstruct scans. Undersampled ones as they are, fully sampled ones at R if asked, and then scored."""
    from rsdmri.workflows.reconstruct_files import reconstruct_files

    rows = reconstruct_files(
        scans,
        out,
        method=method.value,
        prior=prior,
        reading={"variable": variable, "axes": axes, "frame": frame},
        acceleration=acceleration,
        samples=samples,
        seed=seed,
        device=device,
        maps=maps,
        calibration=calibration,
        map_sets=map_sets,
        held_out=0.1 if check else None,
        out_of_domain="warn" if warn_only else "fallback",
        formats=format_,
        dicom_source=dicom_source,
        force=force,
        trust=trust,
        say=typer.echo,
    )
    failed = [row["error"] for row in rows if row.get("error")]
    for line in failed:
        typer.echo(f"rsdmri: {line}", err=True)
    if failed:
        raise typer.Exit(2)


@app.command()
def evaluate(
    recon: Annotated[Path, typer.Argument(help="reconstruction file or folder")],
    target: Annotated[Path, typer.Argument(help="target file or folder")],
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON, such as metrics.json")] = None,
) -> None:
    """Score reconstructions against targets. NMSE, PSNR and SSIM by fastMRI's convention, per volume and mean."""
    from rsdmri.evaluation import evaluate as run
    from rsdmri.evaluation import format_table

    typer.echo(format_table(run(recon, target, out)))


@app.command()
def doctor() -> None:
    """Report versions and what is missing. Device, threads, HDF5 build, disk, optional tools."""
    from rsdmri.workflows.doctor import doctor as run

    rows = run()
    width, middle = (max(len(row[k]) for row in rows) for k in (0, 1))
    for name, value, verdict in rows:
        typer.echo(f"{name:<{width}}  {value:<{middle}}  {verdict}")
