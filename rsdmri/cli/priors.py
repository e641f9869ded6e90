"""Commands that train, measure and sample priors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsdmri.cli.app import app
from rsdmri.cli.options import AveragedStage, Device, Sampler, Seed, StageChoice, absolute
from rsdmri.errors import Interrupted
from rsdmri.runtime import process_rank

if TYPE_CHECKING:
    from rsdmri.config import Config


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
        bool, typer.Option("--equivariance", help="learn lines that no mask acquires from mirrored and turned images")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan and stop; with --out, draw OUT/coverage.png")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="go on with other settings than the run began with; recorded")
    ] = False,
) -> None:
    """Train teacher, one-step prior and posterior network. The same command again goes on where it stopped."""
    from rsdmri.config import load_config
    from rsdmri.workflows.budget import parse_duration
    from rsdmri.workflows.train import train as run

    overrides = [*(["teacher.equivariance=1"] if equivariance else []), *(set_ or [])]
    if acceleration is not None:
        overrides.append(f"acquisition.acceleration={acceleration}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    if data is not None:
        overrides.append(f"data.path='''{absolute(data)}'''")
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
        typer.echo(f"finished: {target}{_next(config, target, stage)}")


def _next(config: "Config", run: Path, stage: StageChoice) -> str:
    """A line on the stage that is left, where it can be trained."""
    able = config.trains_on_kspace and config.preconditioning == "operator"
    last = stage is StageChoice.posterior or (stage is StageChoice.all and config.trains_posterior)
    if last or not able or not (run / "teacher" / "config.json").is_file():
        return ""
    return "\nnext: the same command with --stage posterior trains what reconstructs best"


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

    where, features = absolute(reference), features or ["mr-magnitude-v1"]
    run(prior, where, features=features, samples=samples, seed=seed, out=out, device=device, say=typer.echo)


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="run folder with a finished stage")],
    out: Annotated[Path, typer.Option(help="folder to write the prior to")],
    sigma_rel: Annotated[
        float | None, typer.Option(help="length over the training time, such as 0.08 [best of several on split val]")
    ] = None,
    stage: Annotated[AveragedStage, typer.Option(help="which; all: the last finished one")] = AveragedStage.all,
    data: Annotated[str | None, typer.Option(help="scans to validate on, path or URI [the run's own]")] = None,
    device: Device = "auto",
) -> None:
    """Average a finished run's weights over another length. Writes a prior; nothing is trained again."""
    from rsdmri.workflows.average import average as run_average

    where = None if data is None else absolute(data)
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
