"""`wrangan video invert|edit|paste`: invert a clip of a face, edit it, paste it back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.code_inputs import CodeModels
from wrangan_cli.commands.panels import CLIP
from wrangan_cli.commands.requested_edits import RequestedEdits
from wrangan_cli.commands.shell import AsJson, Null, Results, progress, say, settings_options
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.video.settings import ClipSettings

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.directions import Move
    from wrangan_cli.engine.video.render import ClipCodes

app = typer.Typer(no_args_is_help=True, help="Invert a clip of a face, edit it, paste it back.")

Codes = Annotated[Path, typer.Argument(help="Folder made by `wrangan video invert`.")]
Directions = Annotated[
    list[str] | None, typer.Option(help="Name of a direction; repeatable, with one --strength each.")
]
Strengths = Annotated[
    list[float] | None, typer.Option(help="How far to move, in standard deviations of w along the direction.")
]
File = Annotated[Path | None, typer.Option(help="File of directions; default: those of the model.")]
ModelOfCodes = Annotated[
    str | None,
    typer.Option(help="Name of a bundled model, or a model folder; default: the model that the codes name."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")]


@app.command()
@settings_options(ClipSettings, panels=CLIP)
def invert(
    settings: ClipSettings,
    clip: Annotated[Path, typer.Argument(help="The clip: .mp4, .mov, .webm …")],
    out: Annotated[
        Path, typer.Option(help="Folder for the codes: a record, one shared ε, and one .st per frame.")
    ] = Path("clip"),
    frames: Annotated[
        str, typer.Option(help="Frames to invert, such as 0-99, numbered from 0.", show_default="all")
    ] = "",
    model: Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")] = DEFAULT_MODEL,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Re-invert a clip that already has codes.")
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Invert the face in a clip: one ε shared by all frames, w and a small ε for each frame.

    The face is followed until it disappears or there is a cut. If that happens before the end, only the
    frames before it are inverted, and the exit code is 1 (use --frames to select others). An interrupted
    run continues where it stopped. Needs the optional part "video" (see `wrangan doctor`).
    """
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.data.ffmpeg import probe
    from wrangan_cli.engine.faces.detection import FaceDetector
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.video.invert import ClipRun, load_clip_inverter, parse_span

    results = Results(as_json, null)
    place = resolve_device(device)
    parse_span(frames)
    probe(clip)  # before the model, which may have to be fetched
    run = ClipRun(clip, out, load_model(model, place), settings, frames, overwrite)
    with _progress() as tell:
        run.find_face(lambda: FaceDetector().detect, tell)
        inverter = load_clip_inverter(run.model, settings)
        shared = run.fit_key_frames(inverter, tell)
        done = list(run.fit_frames(inverter, shared, tell))
    figures = run.finish(done)
    after = [frame.info["distortion"]["after"] for frame in done]
    distortion = {name: sum(each[name] for each in after) / len(after) for name in after[0]}
    reached = ", ".join(f"{name} {value:.4f}" for name, value in distortion.items())
    say(f"wrangan: {len(done)} frames of {run.record.side} px: {reached}; {_flicker_line(figures)}")
    record = {"clip": str(clip), "frames": len(done), "distortion": distortion, "flicker": figures}
    results.wrote(out, **record, ended=run.record.ended or None)
    if run.record.ended:
        results.failed(FileError(clip, f"{run.record.ended}: inverted up to there"), clip)
    results.finish()


@app.command()
def edit(
    codes: Codes,
    direction: Directions = None,
    strength: Strengths = None,
    out: Annotated[Path, typer.Option(help="The clip of the aligned faces: .mp4.")] = Path("edited.mp4"),
    model: ModelOfCodes = None,
    directions: File = None,
    device: Device = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Move all frames of a clip along directions, and write the aligned faces as a clip.

    Without --direction, write the faces as inverted. `wrangan video paste` puts them back into the clip.
    """
    from wrangan_cli.engine.data.ffmpeg import check_film

    check_film(out)
    results = Results(as_json, null)
    clip_codes, moves = _open(codes, direction, strength, directions, model, device)
    with _progress() as tell:
        figures = clip_codes.save_aligned(out, moves, lambda done, total: tell("rendering", done, total))
    say(f"wrangan: {_flicker_line(figures)}")
    results.wrote(out, codes=str(codes), edits=_record(moves), flicker=figures)
    results.finish()


@app.command()
def paste(
    codes: Codes,
    clip: Annotated[Path, typer.Option(help="The clip that was inverted.")],
    direction: Directions = None,
    strength: Strengths = None,
    out: Annotated[Path, typer.Option(help="The result: .mp4 (H.264, with the clip's sound).")] = Path(
        "pasted.mp4"
    ),
    feather: Annotated[
        float, typer.Option(help="Width of the soft border, as a fraction of the frame's side.")
    ] = 0.1,
    keep_detail: Annotated[
        bool,
        typer.Option("--keep-detail", help="Add only the change, so that the clip keeps its fine detail."),
    ] = False,
    model: ModelOfCodes = None,
    directions: File = None,
    device: Device = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Move all frames of a clip along directions, and put the faces back into it.

    The result has the clip's frame rate, size and sound; frames that were not inverted are unchanged.
    """
    from wrangan_cli.engine.data.ffmpeg import check_film

    check_film(out)
    results = Results(as_json, null)
    clip_codes, moves = _open(codes, direction, strength, directions, model, device)
    with _progress() as tell:
        clip_codes.paste(
            clip, out, moves, feather, keep_detail, lambda done, total: tell("pasting", done, total)
        )
    results.wrote(out, clip=str(clip), codes=str(codes), edits=_record(moves))
    results.finish()


def _open(
    codes: Path,
    names: list[str] | None,
    strengths: list[float] | None,
    file: Path | None,
    model: str | None,
    device: str,
) -> "tuple[ClipCodes, list[Move]]":
    """The codes with their model, and the requested moves, possibly none."""
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.editing.directions import Move, check_requests
    from wrangan_cli.engine.video.record import check_finished, frame_file, load_record
    from wrangan_cli.engine.video.render import ClipCodes

    requested = bool(names or strengths)
    if requested:
        check_requests(names or [], strengths or [])
    record = load_record(codes)
    check_finished(codes, record)
    models = CodeModels(model, resolve_device(device))
    _, loaded = models.load(frame_file(codes, record.numbers[0]))
    if not requested:
        return ClipCodes(codes, loaded), []
    edits = RequestedEdits(names or [], [*(strengths or [])], file, one_model=True).of(loaded)
    return ClipCodes(codes, loaded), [edit for edit in edits if isinstance(edit, Move)]


def _record(moves: "list[Move]") -> list[list[object]]:
    return [[move.direction.name, move.strength] for move in moves]


def _flicker_line(figures: dict[str, float]) -> str:
    return (
        f"flicker {figures['flicker']:+.5f} (mean squared change between frames, images in [-1, 1]: "
        f"{figures['output']:.5f}, in the clip {figures['input']:.5f})"
    )


@contextmanager
def _progress() -> "Iterator[Callable[[str, int, int], None]]":
    """A progress bar that takes (what, done, total); 0 for an unknown total."""
    with progress("", None) as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.update(bar.task_ids[0], description=what, completed=done, total=total or None)

        yield tell
