"""The ``rsdmri`` command: each command parses its options and calls one workflow.

Heavy imports stay inside the commands, so that ``rsdmri --help`` answers at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.errors import InputError, Interrupted, StoppedElsewhereError
from rsdmri.runtime import process_count, process_rank

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


class Sampler(StrEnum):
    """Samplers of a teacher."""

    heun = "heun"
    euler = "euler"
    dpmpp_2m = "dpmpp-2m"


class Contrast(StrEnum):
    """Contrasts of simulated scans."""

    mixed = "mixed"
    t1w = "T1w"
    t2w = "T2w"
    pdw = "PDw"
    flair = "FLAIR"


Device = Annotated[str, typer.Option(help="auto, cpu, or another torch device")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
Variable = Annotated[str | None, typer.Option(help="array of the k-space, for NumPy, MATLAB, HDF5 [the only one]")]
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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    if process_count() > 1 and context.invoked_subcommand != "train":
        raise InputError(f"torchrun: {context.invoked_subcommand} runs in one process; only train runs in several")


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
    equivariance: Annotated[
        bool, typer.Option("--equivariance", help="learn lines that no mask acquires from shifted and flipped images")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan and stop; with --out, draw OUT/coverage.png")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="go on with other settings than the run began with; recorded")
    ] = False,
) -> None:
    """Train a teacher and its one-step prior. The same command again goes on where it stopped."""
    from rsdmri.config import load_config
    from rsdmri.workflows.train import parse_duration
    from rsdmri.workflows.train import train as run

    overrides = [*(["teacher.equivariance=1"] if equivariance else []), *(set_ or [])]
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
        run(
            config,
            target,
            stage=stage.value,
            budget=seconds,
            device=device,
            dry_run=dry_run,
            draw=out is not None,
            allow_changes=allow_changes,
            say=typer.echo,
        )
    except Interrupted as stop:
        if process_rank() == 0:
            typer.echo(str(stop), err=True)
        raise typer.Exit(0) from None
    if not dry_run and process_rank() == 0:
        typer.echo(f"finished: {target}")


@app.command()
def assess(
    prior: Annotated[Path, typer.Argument(help="run, prior or teacher folder")],
    reference: Annotated[str, typer.Option(help="fully sampled scans of other subjects: manifest or folder")],
    features: Annotated[list[str] | None, typer.Option(help="[mr-magnitude-v1], radiomics, inception=PATH")] = None,
    samples: Annotated[int, typer.Option(min=12, help="number of samples")] = 256,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="output folder")] = Path("assessment"),
    device: Device = "auto",
) -> None:
    """Measure a prior against clean images. Distances of its samples, errors of its denoiser, pictures."""
    from rsdmri.workflows.assess import assess as run

    where, features = _absolute(reference), features or ["mr-magnitude-v1"]
    run(prior, where, features=features, samples=samples, seed=seed, out=out, device=device, say=typer.echo)


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="run folder with a finished stage")],
    out: Annotated[Path, typer.Option(help="folder to write the prior to")],
    sigma_rel: Annotated[
        float | None, typer.Option(help="length over the training time, such as 0.08 [best of several on split val]")
    ] = None,
    stage: Annotated[StageChoice, typer.Option(help="which; all: the last finished one")] = StageChoice.all,
    data: Annotated[str | None, typer.Option(help="scans to validate on, path or URI [the run's own]")] = None,
    device: Device = "auto",
) -> None:
    """Average a finished run's weights over another length. Writes a prior; nothing is trained again."""
    from rsdmri.workflows.average import average as run_average

    where = None if data is None else _absolute(data)
    run_average(run, out, sigma_rel=sigma_rel, stage=stage.value, data=where, device=device, say=typer.echo)


@app.command()
def sample(
    prior: Annotated[Path | None, typer.Option(help="run or prior folder [newest finished run under runs/]")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="number of images")] = 16,
    teacher: Annotated[bool, typer.Option("--teacher", help="sample the teacher's ODE instead of one step")] = False,
    sampler: Annotated[
        Sampler, typer.Option(help="of --teacher; heun evaluates twice a step, the others once")
    ] = Sampler.heun,
    steps: Annotated[int, typer.Option(help="steps of --teacher")] = 18,
    churn: Annotated[float, typer.Option(help="fresh noise of --teacher with heun, in all steps together")] = 0.0,
    states: Annotated[
        bool, typer.Option("--states", help="keep and picture the steps of --teacher for the first 8 images")
    ] = False,
    contrast: Annotated[str | None, typer.Option(help="T1w, T2w, PDw or FLAIR, for priors that take it")] = None,
    field: Annotated[float | None, typer.Option(help="field strength in tesla, for priors that take it")] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="output folder")] = Path("samples"),
    device: Device = "auto",
) -> None:
    """Draw images from a prior. Writes complex HDF5 and a picture, prints the rate."""
    from rsdmri.diffusion.sample import Churn, SamplerSettings
    from rsdmri.workflows.sample import sample as run

    how = SamplerSettings(sampler.value, steps, Churn(churn))
    run(
        prior,
        n=n,
        teacher=teacher,
        sampler=how,
        states=states,
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

    try:
        run(out, quick=quick, device=device, seed=seed, say=typer.echo)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(0) from None


def main() -> NoReturn:
    """Entry point: one line on standard error, exit code 2 for bad input and 75 for a full disk."""
    try:
        app()
    except StoppedElsewhereError:
        sys.exit(2)
    except InputError as error:
        where = "; ".join(getattr(error, "__notes__", ())[:1])  # of several processes: what all meet is said once
        if where or process_rank() == 0:
            sys.stderr.write(f"rsdmri: {' '.join(str(error).split())}{where and f' ({where})'}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("rsdmri: stopped\n")
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
