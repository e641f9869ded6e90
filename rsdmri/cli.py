"""The ``rsdmri`` command: each command parses its options and calls one workflow.

Heavy imports stay inside the commands, so that ``rsdmri --help`` answers at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=f"Generative priors for accelerated MRI, learnt from undersampled k-space alone. {RESEARCH_ONLY}",
)


class StageChoice(StrEnum):
    """Stages of training."""

    all = "all"
    teacher = "teacher"
    prior = "prior"


class Method(StrEnum):
    """Reconstruction methods."""

    rsd = "rsd"
    ambient_one_step = "ambient-one-step"
    sense = "sense"
    l1_wavelet = "l1-wavelet"
    tv = "tv"
    zero_filled = "zero-filled"


class Contrast(StrEnum):
    """Contrasts of simulated scans."""

    mixed = "mixed"
    t1w = "T1w"
    t2w = "T2w"
    pdw = "PDw"
    flair = "FLAIR"


Device = Annotated[str, typer.Option(help="auto, cpu, or another torch device")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
Variable = Annotated[
    str | None, typer.Option(help="array that holds the k-space, for NumPy, MATLAB, HDF5 [the only one]")
]
Axes = Annotated[str | None, typer.Option(help="names of its axes, such as 'y x coil slice' [guessed]")]
Frame = Annotated[int | None, typer.Option(help="time frame, echo or repetition to read [0]")]
Trust = Annotated[bool, typer.Option("--trust", help="read files without the guard of a child process, for known ones")]


def _absolute(data: str) -> str:
    """A path as an absolute one, a URI as it is (``file://``: its path)."""
    from rsdmri.data.remote import is_uri, locate, refuse_secrets

    if is_uri(data):
        refuse_secrets(data, "--data")
    return str(locate(data))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rsdmri {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


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
) -> None:
    """Write simulated multicoil scans. Warped heads in fastMRI-style files, with a manifest."""
    from rsdmri.data.simulate import write_simulated
    from rsdmri.progress import progress

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
def train(
    data: Annotated[
        str | None, typer.Option(help="manifest.tsv or folder of scans, path or URI; simulated scans if left out")
    ] = None,
    acceleration: Annotated[
        float | None, typer.Option(help="R at which fully sampled scans are undersampled [4]")
    ] = None,
    stage: Annotated[StageChoice, typer.Option(help="which stages to train")] = StageChoice.all,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override one setting, key=value; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder [runs/NAME]")] = None,
    budget: Annotated[str | None, typer.Option(help="wall-clock time to fit everything into, such as 30m")] = None,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="seed of everything random [0]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> None:
    """Train a teacher and its one-step prior. The same command again goes on where it stopped."""
    from rsdmri.config import load_config
    from rsdmri.workflows.train import parse_duration
    from rsdmri.workflows.train import train as run
    from rsdmri.workflows.trainer import Interrupted

    overrides = list(set_ or [])
    if acceleration is not None:
        overrides.append(f"acquisition.acceleration={acceleration}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    if data is not None:
        overrides.append(f"data.path='''{_absolute(data)}'''")
    config = load_config(recipe, overrides)
    name = recipe.stem if recipe else f"multicoil-r{config.acquisition.acceleration:g}"
    seconds = None if budget is None else parse_duration(budget)
    target = out or Path("runs") / (name + (f"-seed{config.seed}" if config.seed else ""))
    try:
        run(config, target, stage=stage.value, budget=seconds, device=device, dry_run=dry_run, say=typer.echo)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(0) from None
    if not dry_run:
        typer.echo(f"finished: {target}")


@app.command()
def sample(
    prior: Annotated[Path | None, typer.Option(help="run or prior folder [newest finished run under runs/]")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="number of images")] = 16,
    teacher: Annotated[bool, typer.Option("--teacher", help="sample the teacher's ODE instead of one step")] = False,
    steps: Annotated[int, typer.Option(help="Heun steps of --teacher; 2 steps - 1 evaluations")] = 18,
    contrast: Annotated[str | None, typer.Option(help="T1w, T2w, PDw or FLAIR, for priors that take it")] = None,
    field: Annotated[float | None, typer.Option(help="field strength in tesla, for priors that take it")] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="output folder")] = Path("samples"),
    device: Device = "auto",
) -> None:
    """Draw images from a prior. Writes complex HDF5 and a picture, prints the rate."""
    from rsdmri.workflows.sample import sample as run

    run(
        prior,
        n=n,
        teacher=teacher,
        steps=steps,
        contrast=contrast,
        field=field,
        seed=seed,
        out=out,
        device=device,
        say=typer.echo,
    )


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


@app.command()
def doctor() -> None:
    """Report versions and what is missing. Device, threads, HDF5 build, disk, optional tools."""
    from rsdmri.workflows.doctor import doctor as run

    rows = run()
    width, middle = (max(len(row[k]) for row in rows) for k in (0, 1))
    for name, value, verdict in rows:
        typer.echo(f"{name:<{width}}  {value:<{middle}}  {verdict}")


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="under 3 minutes, with worse pictures")] = False,
    out: Annotated[Path | None, typer.Option(help="run folder [runs/demo, runs/demo-quick]")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Run the whole line on simulated scans. Ends with a report; at most 15 minutes on two cores."""
    from rsdmri.workflows.demo import demo as run
    from rsdmri.workflows.trainer import Interrupted

    try:
        run(out, quick=quick, device=device, seed=seed, say=typer.echo)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(0) from None


def main() -> NoReturn:
    """Entry point: one line on standard error and exit code 2 for bad input."""
    try:
        app()
    except InputError as error:
        sys.stderr.write(f"rsdmri: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("rsdmri: stopped\n")
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
