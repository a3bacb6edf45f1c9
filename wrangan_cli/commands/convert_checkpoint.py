"""`wrangan convert-checkpoint`: other projects' StyleGAN2 files to a model folder, and back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wrangan_cli.commands.shell import Results, say


def convert_checkpoint(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A rosinality .pt, an NVIDIA PyTorch .pkl or TensorFlow .pkl; "
            "with --to rosinality a model folder or a bundled model's name.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The model folder to write; with --to rosinality the .pt file.")],
    to: Annotated[
        Literal["wrangan", "rosinality"],
        typer.Option(help="A model folder of this suite, or rosinality's .pt."),
    ] = "wrangan",
    weights: Annotated[
        Literal["ema", "raw"],
        typer.Option(help="The generator's moving average (G_ema, g_ema, Gs), or as trained (G, g)."),
    ] = "ema",
    perceptual: Annotated[
        str, typer.Option(help="Perceptual distance that the model will be used with.")
    ] = "lpips-vgg",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Convert a StyleGAN2 checkpoint; nothing in the file is executed."""
    from wrangan_cli.engine.checkpoints.convert import convert_to_model, export_rosinality

    results = Results(as_json)
    if to == "rosinality":
        report = export_rosinality(source, out, overwrite)
    else:
        report = convert_to_model(Path(source), out, weights == "raw", perceptual, overwrite)
    for line in report.lines():
        say(line)
    results.wrote(out, **report.to_json())
    if not report.round_trip:
        results.failed("self-check failed: what was written does not read back equal", out)
    results.finish()
