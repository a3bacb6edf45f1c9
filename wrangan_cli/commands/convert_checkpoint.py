"""`wrangan convert-checkpoint`: convert other projects' StyleGAN2 and encoder files to a model, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wrangan_cli.commands.option_help import choices_label
from wrangan_cli.commands.shell import AsJson, Results, say
from wrangan_cli.engine.base.choices import Perceptual
from wrangan_cli.engine.base.errors import UsageError

if TYPE_CHECKING:
    from wrangan_cli.engine.checkpoints.encoders import Report as EncoderReport


def convert_checkpoint(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A rosinality .pt, an NVIDIA PyTorch .pkl or TensorFlow .pkl, or such a generator in "
            "another wrapper (DataParallel, a bare state dict, a pickled module such as PTI's, safetensors). "
            "With --to rosinality: a model folder or a bundled model's name. "
            "A pSp, e4e, ReStyle or HyperStyle .pt: --out writes its generator and its encoder, "
            "--model adds the encoder to an existing model.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The model folder to write; with --to rosinality, the .pt file.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="Instead of --out: add the file's encoder or hypernetwork to this model."),
    ] = "",
    to: Annotated[
        Literal["wrangan", "rosinality"],
        typer.Option(help="Format to write: a model folder (wrangan), or a rosinality .pt."),
    ] = "wrangan",
    weights: Annotated[
        Literal["ema", "raw"],
        typer.Option(
            help="Which generator to take: its moving average (G_ema, g_ema, Gs), or as trained (G, g)."
        ),
    ] = "ema",
    perceptual: Annotated[
        Perceptual,
        typer.Option(metavar=choices_label(Perceptual), help="Perceptual distance to use with the model."),
    ] = "lpips-vgg",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files at --out, or the model's encoder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a StyleGAN2 checkpoint, a trained encoder, or both; nothing in the file is executed."""
    if (out is None) == (not model):
        raise UsageError("give either --out, or --model to add the file's encoder to a model")
    if model and (to, weights, perceptual) != ("wrangan", "ema", "lpips-vgg"):
        raise UsageError("--to, --weights and --perceptual apply to generators, not to an encoder's file")
    results = Results(as_json)
    if out is None:
        _convert_encoder(Path(source), model, overwrite, results)
    else:
        _convert_model(source, out, to, weights == "raw", perceptual, overwrite, results)
    results.finish()


def _convert_encoder(source: Path, model: str, overwrite: bool, results: Results) -> None:
    from wrangan_cli.engine.checkpoints.encoders import install_published
    from wrangan_cli.engine.library import load_model

    _print_report(install_published(source, load_model(model), overwrite), results)


def _print_report(report: "EncoderReport", results: Results) -> None:
    for line in report.lines():
        say(line)
    results.wrote(report.path, **report.to_json())
    if not report.round_trip:
        results.failed("self-check failed: what was written reads back differently", report.path)


def _convert_model(
    source: str, out: Path, to: str, raw: bool, perceptual: str, overwrite: bool, results: Results
) -> None:
    from wrangan_cli.engine.checkpoints.convert import convert_to_model, export_rosinality
    from wrangan_cli.engine.library import load_model

    if to == "rosinality":
        report = export_rosinality(load_model(source), out, overwrite)
    else:
        report = convert_to_model(Path(source), out, raw, perceptual, overwrite)
    for line in report.lines():
        say(line)
    results.wrote(out, **report.to_json())
    if not report.round_trip:
        results.failed("self-check failed: what was written reads back differently", out)
    if report.encoder is not None:
        _print_report(report.encoder, results)
