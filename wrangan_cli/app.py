"""The Typer app: registers the commands, nothing else."""

import os
from typing import Annotated

import typer

from wrangan_cli import __version__
from wrangan_cli.commands import (
    convert_checkpoint,
    directions,
    edit,
    evaluate,
    generate,
    interpolate,
    invert,
    report,
    train,
    video,
)
from wrangan_cli.commands.align import align, paste
from wrangan_cli.commands.doctor import doctor
from wrangan_cli.commands.fetch import fetch
from wrangan_cli.commands.latents import export_latents, import_latents
from wrangan_cli.commands.option_help import flow_help
from wrangan_cli.commands.shell import Shell
from wrangan_cli.commands.studio import studio
from wrangan_cli.engine.base.freed_memory import keep_freed_memory

app = typer.Typer(
    cls=Shell,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Invert photographs into a randomised StyleGAN2 (WRanGAN), edit, interpolate, measure.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wrangan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """Options of all commands."""


app.command("invert")(invert.invert)
app.command("generate")(generate.generate)
app.add_typer(train.app, name="train")
app.command("convert-checkpoint")(convert_checkpoint.convert_checkpoint)
app.command("edit")(edit.edit)
app.command("interpolate")(interpolate.interpolate)
app.command("import-latents")(import_latents)
app.command("export-latents")(export_latents)
app.add_typer(directions.app, name="directions")
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("align")(align)
app.command("paste")(paste)
app.add_typer(video.app, name="video")
app.command("studio")(studio)
app.command("fetch")(fetch)
app.command("doctor")(doctor)
flow_help(app)


def wait_briefly() -> None:
    """Make OpenMP's threads spin for microseconds, not milliseconds, while they wait for each other.

    Otherwise they take CPU time from each other and from other programs. Call this before PyTorch is
    imported; variables that the user has set are kept.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "10000"


def main() -> None:
    """Entry point of the console script."""
    keep_freed_memory()
    wait_briefly()
    app()
