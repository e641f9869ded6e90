"""The application that commands add themselves to."""

from typing import Annotated

import typer

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.errors import InputError
from rsdmri.runtime import process_count

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=f"Generative priors for accelerated MRI, learnt from undersampled k-space alone. {RESEARCH_ONLY}",
)


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
    if process_count() > 1 and context.invoked_subcommand not in ("train", "reconstruct"):
        raise InputError(
            f"torchrun: {context.invoked_subcommand} runs in one process; only train and reconstruct run in several"
        )
