"""The Typer app: names the commands, nothing else."""

import typer

from wrangan_cli.commands import generate
from wrangan_cli.commands.shell import Shell

app = typer.Typer(
    cls=Shell,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Invert photographs into a randomised StyleGAN2 (WRanGAN), edit, interpolate, measure.",
)
app.command("generate")(generate.generate)


def main() -> None:
    """Entry point of the console script."""
    app()
