"""The command that varies one setting and measures what it does."""

from pathlib import Path
from typing import Annotated

import typer

from rsdmri.cli.app import app
from rsdmri.cli.options import Device, absolute
from rsdmri.errors import Interrupted


@app.command()
def ablate(
    axis: Annotated[str, typer.Argument(help="alpha, t_max, sigma_init, objective or further-mask")],
    teacher: Annotated[Path | None, typer.Option(help="run folder whose finished teacher is distilled")] = None,
    values: Annotated[
        list[str] | None, typer.Option(help="a value, or several by commas; repeatable [the axis's own]")
    ] = None,
    seeds: Annotated[str, typer.Option(help="seeds of each value")] = "0,1,2",
    budget: Annotated[str | None, typer.Option(help="wall-clock time of each training, such as 10m")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps of each stage [as the run or recipe says]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override one setting, key=value; repeatable")] = None,
    reference: Annotated[
        str | None, typer.Option(help="fully sampled scans of other subjects, to measure distances to")
    ] = None,
    features: Annotated[list[str] | None, typer.Option(help="[mr-magnitude-v1], radiomics, inception=PATH")] = None,
    samples: Annotated[int, typer.Option(help="samples that distances rest on")] = 256,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe, of further-mask alone")] = None,
    data: Annotated[str | None, typer.Option(help="scans, path or URI [those of the run or recipe]")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output folder [ablations/AXIS]")] = None,
    device: Device = "auto",
) -> None:
    """Vary one setting over values and seeds. Ends with a table and a figure; the same command goes on."""
    from rsdmri.workflows.ablate import Measures
    from rsdmri.workflows.ablate import ablate as run
    from rsdmri.workflows.ablation_grid import parse_seeds
    from rsdmri.workflows.budget import parse_duration

    where = None if reference is None else absolute(reference)
    try:
        run(
            axis,
            out or Path("ablations") / axis,
            teacher=teacher,
            recipe=recipe,
            data=None if data is None else absolute(data),
            values=values or (),
            seeds=parse_seeds(seeds),
            steps=steps,
            budget=None if budget is None else parse_duration(budget),
            overrides=set_ or (),
            measures=Measures(where, samples, tuple(features or ("mr-magnitude-v1",))),
            device=device,
            say=typer.echo,
        )
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(0) from None
