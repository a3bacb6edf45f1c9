"""`wrangan edit`: codes moved along directions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.code_inputs import CodeModels, code_files
from wrangan_cli.commands.shell import AsJson, Null, Results, inputs, one_image, say
from wrangan_cli.engine.errors import FileError, UsageError, WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.directions import Direction, Move
    from wrangan_cli.engine.model_folder import Model


def edit(
    codes: Annotated[
        list[Path] | None,
        typer.Argument(help="Codes (.st) or folders of them; none or - reads paths on stdin."),
    ] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="Name of a direction; may be repeated, with a strength for each.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="How far to go, in standard deviations of w along the direction."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="An image file (one code), or a folder for <code>-<direction><±strength>.png."),
    ] = Path("edited"),
    save_code: Annotated[
        bool, typer.Option("--save-code", help="Also write the edited code (.st) beside.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Bundled model's name or a model folder; default: the one the code names."),
    ] = None,
    directions: Annotated[
        Path | None, typer.Option(help="File of directions; default: the model's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Change the images of codes: smile, age … Nothing but code and model is read."""
    from wrangan_cli.engine.codes import SUFFIX, render
    from wrangan_cli.engine.codes import save_code as write_code
    from wrangan_cli.engine.editing.directions import check_requests, edit_code
    from wrangan_cli.engine.images import save_image
    from wrangan_cli.engine.runtime import resolve_device

    names, strengths = direction or [], strength or []
    check_requests(names, strengths)
    one_file = one_image(out)
    files = code_files(inputs(codes))
    if one_file:
        listed = list(files)
        if len(listed) > 1:
            raise UsageError(f"{out} is one image, but there are {len(listed)} codes: give a folder as --out")
        files = iter(listed)
    models = CodeModels(model, resolve_device(device))
    moves = _Moves(names, strengths, directions, one_model=model is not None)
    results = Results(as_json, null)
    written: dict[Path, Path] = {}
    for path in files:
        if isinstance(path, FileError):
            results.failed(path)
            continue
        try:
            code, loaded = models.load(path)
            steps = moves.of(loaded)
            target = out if one_file else out / f"{path.stem}-{moves.label(steps)}.png"
            if target in written:
                raise FileError(path, f"not edited: {target} is already the edit of {written[target]}")
            code_file = target.with_suffix(SUFFIX)
            if save_code:
                _spare_originals(code_file)
            edited = edit_code(code, steps, loaded.generator.config.num_latents)
            save_image(target, render(loaded, [edited])[0])
            if save_code:
                write_code(code_file, edited)
        except (UsageError, BadDirections):
            raise
        except (WranganError, OSError) as error:
            results.failed(error, path)
            continue
        written[target] = path
        made = {"code": str(path), "edits": [[move.direction.name, move.strength] for move in steps]}
        results.wrote(target, **made)
        if save_code:
            results.wrote(code_file, **made)
    results.finish()


class BadDirections(FileError):
    """The file that was given as --directions cannot be used."""


class _Moves:
    """The moves that were asked for, looked up once a model."""

    def __init__(self, names: list[str], strengths: list[float], file: Path | None, one_model: bool) -> None:
        self._one_model = one_model
        self._names, self._strengths, self._file = names, strengths, file
        self._found: dict[str, list[Move]] = {}

    def of(self, model: "Model") -> "list[Move]":
        from wrangan_cli.engine.editing.directions import make_moves

        if model.sha256 not in self._found:
            known = self._known(model)
            where = self._file or model.name
            moves = make_moves(known, self._names, self._strengths, where)
            for move in moves:
                if move.outside_range:
                    low, high = move.direction.range
                    say(f"wrangan: {move.label} is outside the sensible range {low:g}…{high:g}")
            self._found[model.sha256] = moves
        return self._found[model.sha256]

    def _known(self, model: "Model") -> "dict[str, Direction]":
        from wrangan_cli.engine.editing.directions import load_directions

        try:
            return load_directions(model, self._file)
        except FileError as error:
            # Codes of other models may follow, which it suits; a broken file suits none.
            fits_others = error.cause.startswith("made for another model") and not self._one_model
            if self._file is None or error.path != self._file or fits_others:
                raise
            # Of no code: it is said once, and nothing is edited.
            raise BadDirections(error.path, error.cause) from error

    @staticmethod
    def label(moves: "list[Move]") -> str:
        return "-".join(move.label for move in moves)


def _spare_originals(path: Path) -> None:
    """Only an edited code may be replaced by an edited code."""
    from wrangan_cli.engine.codes import read_info

    if path.exists() and not read_info(path).get("edits"):
        raise FileError(path, "not overwritten: it is a code that was not made by `edit --save-code`")
