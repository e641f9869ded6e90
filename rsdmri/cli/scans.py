"""Commands that make, list, look at and convert scans."""

from pathlib import Path
from typing import Annotated

import typer

from rsdmri.cli.app import app
from rsdmri.cli.options import Axes, Contrast, Echo, Frame, Sampling, Seed, Trust, Variable
from rsdmri.errors import InputError


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="folder to write to")],
    scans: Annotated[int, typer.Option(help="number of subjects")] = 10,
    slices: Annotated[int, typer.Option(help="slices per scan")] = 8,
    size: Annotated[int, typer.Option(help="matrix size")] = 128,
    coils: Annotated[int, typer.Option(help="receive coils")] = 8,
    noise: Annotated[float, typer.Option(help="noise per k-space sample over the brightest tissue")] = 0.01,
    contrast: Annotated[Contrast, typer.Option(case_sensitive=False, help="tissue contrast")] = Contrast.mixed,
    seed: Seed = 0,
    echo: Annotated[Echo, typer.Option(help="gradient: with the phase of air nearby and of fat")] = Echo.spin,
    volumes: Annotated[
        Path | None, typer.Option(help="folder of NIfTI volumes, whose anatomy is scanned [packaged heads]")
    ] = None,
    acceleration: Annotated[
        list[float] | None, typer.Option("--acceleration", "-R", help="of a scan; several: each gets one [none]")
    ] = None,
    sampling: Annotated[
        Sampling, typer.Option(help="of undersampled scans; points: of two phase encodings")
    ] = Sampling.lines,
    phase_fov: Annotated[float, typer.Option(help="field of view of the phase encoding over the readout's")] = 1.0,
    margin: Annotated[float, typer.Option(help="least share of the field of view before a head and behind it")] = 0.075,
) -> None:
    """Write simulated multicoil scans. Warped heads in fastMRI-style files, with a manifest."""
    from rsdmri.data.simulate_files import find_volumes, write_simulated
    from rsdmri.progress import progress

    found = [] if volumes is None else find_volumes(volumes)

    with progress("Simulating scans", total=scans) as bar:
        manifest = write_simulated(
            out,
            scans=scans,
            slices=slices,
            size=size,
            coils=coils,
            noise=noise,
            contrast=contrast.value,
            seed=seed,
            echo=echo.value,
            volumes=found,
            accelerations=acceleration or (),
            sampling=sampling.value,
            phase_fov=phase_fov,
            margin=margin,
            progress=lambda *_: bar.advance(),
        )
    typer.echo(f"{scans} scans of {slices} slices: {manifest}")


@app.command()
def index(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="folder of scans, path or URI; searched recursively")],
    out: Annotated[Path, typer.Option("--out", "-o", help="manifest to write")] = Path("manifest.tsv"),
    splits: Annotated[
        str, typer.Option(help="shares of train,val,test by subject; one split for all; or folders, whose names tell")
    ] = "0.8,0.1,0.1",
    subject: Annotated[str, typer.Option(help="pattern for the path; group 1 is the subject [patient_id]")] = "",
    anatomy: Annotated[str, typer.Option(help="anatomy of all scans")] = "",
    licence: Annotated[str, typer.Option(help="licence of all scans")] = "",
    salt: Annotated[str, typer.Option(help="secret of the pseudonyms [random, kept in the journal]")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first broken file")] = False,
    seed: Seed = 0,
    trust: Trust = False,
) -> None:
    """Write the manifest of a folder. Hashes, shapes, splits by subject; broken files are named and left out."""
    from rsdmri.workflows.index import IndexRules
    from rsdmri.workflows.index import index as run

    rules = IndexRules(splits, subject, anatomy, licence, seed, salt, trust)
    broken = run(folder, out, rules, strict=strict, say=typer.echo)
    if broken:
        listed = out.with_suffix(".broken.tsv")
        typer.echo(f"rsdmri: warning: {broken} broken files left out, listed with reasons in {listed}", err=True)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="fastMRI, ISMRMRD, BART, NumPy, MATLAB, CMRxRecon, SKM-TEA or twix file"),
    ],
    out: Annotated[Path, typer.Argument(help="fastMRI .h5, ISMRMRD .mrd or .ismrmrd.h5, BART .cfl")],
    emulate_singlecoil: Annotated[
        bool, typer.Option("--emulate-singlecoil", help="combine the coils into one, as fastMRI's single-coil data")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite OUT")] = False,
    variable: Variable = None,
    axes: Axes = None,
    frame: Frame = None,
) -> None:
    """Convert a scan to another format. Says what that cannot hold."""
    from rsdmri.workflows.convert import convert as run

    reading = {"variable": variable, "axes": axes, "frame": frame}
    run(source, out, emulate_single_coil=emulate_singlecoil, force=force, reading=reading, say=typer.echo)


@app.command()
def inspect(
    scan: Annotated[Path, typer.Argument(help="file of any format, see convert")],
    png: Annotated[Path | None, typer.Option(help="write a thumbnail with the sampling pattern")] = None,
    variable: Variable = None,
    axes: Axes = None,
    frame: Frame = None,
    trust: Trust = False,
) -> None:
    """Describe a scan. Dimensions, coils, geometry, sampling, noise, warnings."""
    from rsdmri.workflows.inspect_scan import inspect_scan

    rows = inspect_scan(scan, png, variable=variable, axes=axes, frame=frame, trust=trust)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


@app.command()
def validate(
    scan: Annotated[Path, typer.Argument(help="fastMRI-style HDF5 file")],
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    trust: Trust = False,
) -> None:
    """Check a scan against the schema. Each field: found, missing, odd or dangerous. Exit code 2 if it is unusable."""
    from rsdmri.workflows.validate import format_report
    from rsdmri.workflows.validate import validate as run

    result = run(scan, trust=trust)
    typer.echo(format_report(result, as_json=json))
    if not result["usable"]:
        raise InputError(result["reason"])
