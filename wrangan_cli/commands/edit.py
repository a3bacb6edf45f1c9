"""`wrangan edit`: move codes along directions, and render them."""

from pathlib import Path
from typing import Annotated

import typer

from wrangan_cli.commands.code_inputs import CodeModels, code_files
from wrangan_cli.commands.edit_ranges import Plan, edit_ranges
from wrangan_cli.commands.per_code import Targets, for_each_code
from wrangan_cli.commands.requested_edits import RequestedEdits
from wrangan_cli.commands.shell import AsJson, Null, Results, inputs, one_image
from wrangan_cli.engine.base.errors import FileError, UsageError

STEPS = 7
"""Number of strengths in a range."""


def edit(
    codes: Annotated[
        list[Path] | None,
        typer.Argument(help="Codes (.st) or folders of them; without any, or with -, read paths from stdin."),
    ] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="Name of a direction; repeatable, with one --strength each.")
    ] = None,
    strength: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER|LOW:HIGH",
            help="How far to move, in standard deviations of w along the direction; or a range, such "
            "as -3:3, rendered step by step, one row per range.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="An image file (for one code; with a range, for any number of codes), or a folder for "
            "<code>-<direction><±strength>.png; with a range also a .gif or .mp4 file."
        ),
    ] = Path("edited"),
    steps: Annotated[
        int | None,
        typer.Option(help="With a range: number of strengths, both ends included.", show_default=str(STEPS)),
    ] = None,
    originals: Annotated[
        Path | None,
        typer.Option(
            help="With a range: the photograph of the code, or a folder with those of all codes, to show "
            "beside the edits."
        ),
    ] = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels", help="With a range: write strengths and names above the images."
        ),
    ] = True,
    fps: Annotated[float, typer.Option(help="Images per second in .gif and .mp4.")] = 8.0,
    side: Annotated[
        int | None,
        typer.Option(help="Reduce images by area averaging to this side in px.", show_default="the model's"),
    ] = None,
    save_code: Annotated[
        bool, typer.Option("--save-code", help="Also write the edited code (.st) beside the image.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a bundled model, or a model folder; default: the model that the code names."
        ),
    ] = None,
    directions: Annotated[
        Path | None, typer.Option(help="File of directions; default: those of the model.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Edit the images of codes: smile, age … Only the code and the model are needed, not the photograph."""
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.data.image_writing import save_image
    from wrangan_cli.engine.data.images import check_side
    from wrangan_cli.engine.editing.animation import SUFFIXES
    from wrangan_cli.engine.editing.directions import Move, edit_code
    from wrangan_cli.engine.editing.sweeps import Span, check_edits, parse_strength
    from wrangan_cli.engine.models.codes import SUFFIX, render
    from wrangan_cli.engine.models.codes import save_code as write_code

    names, strengths = direction or [], [parse_strength(text) for text in strength or []]
    check_edits(names, strengths)
    check_side(side)
    results = Results(as_json, null)
    requested = RequestedEdits(names, strengths, directions, one_model=model is not None)
    if any(isinstance(value, Span) for value in strengths):
        if save_code:
            raise UsageError("--save-code writes the code of a single edit: give a strength, not a range")
        plan = Plan(out, STEPS if steps is None else steps, labels, originals, side, fps)
        plan.check()
        models = CodeModels(model, resolve_device(device))
        edit_ranges(results, code_files(inputs(codes)), models, requested, plan)
        return
    for option, value in (("--steps", steps), ("--originals", originals)):
        if value is not None:
            raise UsageError(f"{option} needs a range of strengths, such as --strength -3:3")
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise UsageError(f"{out}: an animation needs a range of strengths, such as --strength -3:3")
    one_file = one_image(out)
    files = code_files(inputs(codes))
    if one_file:
        listed = list(files)
        if len(listed) > 1:
            raise UsageError(f"{out} is one image, but there are {len(listed)} codes: give a folder as --out")
        files = iter(listed)
    models = CodeModels(model, resolve_device(device))
    targets = Targets()

    def edit_one(path: Path) -> None:
        code, loaded = models.load(path)
        moves = [edit for edit in requested.of(loaded) if isinstance(edit, Move)]
        target = out if one_file else out / f"{path.stem}-{requested.label(moves)}.png"
        targets.check(target, path)
        code_file = target.with_suffix(SUFFIX)
        if save_code:
            _refuse_unedited(code_file)
        edited = edit_code(code, moves, loaded.generator.config.num_latents)
        save_image(target, render(loaded, [edited], side)[0], edited=True)
        if save_code:
            write_code(code_file, edited)
        targets.wrote(target, path)
        made = {"code": str(path), "edits": [[move.direction.name, move.strength] for move in moves]}
        results.wrote(target, **made)
        if save_code:
            results.wrote(code_file, **made)

    for_each_code(files, results, edit_one)
    results.finish()


def _refuse_unedited(path: Path) -> None:
    """FileError if this would overwrite a code that is not an edited one."""
    from wrangan_cli.engine.models.codes import read_info

    if path.exists() and not read_info(path).get("edits"):
        raise FileError(path, "not overwritten: this code was not made by `edit --save-code`")
