"""`wrangan interpolate`: images on the way from one code to the next."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.code_inputs import CodeModels, code_files
from wrangan_cli.commands.shell import AsJson, Null, Results, inputs, one_image, progress_with_rate
from wrangan_cli.engine.base.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor


def interpolate(
    codes: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Two or more codes (.st), or folders of them, in order; "
            "without any, or with -, read paths from stdin."
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Number of images from one code to the next, both included.")
    ] = 8,
    out: Annotated[
        Path,
        typer.Option(
            help="An image (a strip, with a row from each code to the next), .gif, .mp4, or a folder "
            "for step-0.png, step-1.png …"
        ),
    ] = Path("between.png"),
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Follow a spline through all codes instead of straight lines.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Continue from the last code to the first.")] = False,
    fps: Annotated[float, typer.Option(help="Images per second in .gif and .mp4.")] = 8.0,
    side: Annotated[
        int | None,
        typer.Option(help="Reduce images by area averaging to this side in px.", show_default="the model's"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a bundled model, or a model folder; default: the model that the first code names."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Render the images between codes, with w and the offsets of the weights interpolated in equal steps."""
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.data.image_writing import check_written_size, checked_pillow
    from wrangan_cli.engine.data.images import check_side
    from wrangan_cli.engine.editing import animation
    from wrangan_cli.engine.editing.interpolation import check_codes, check_steps, count_images, render_way
    from wrangan_cli.engine.models.codes import load_code

    check_steps(steps)
    check_side(side)
    moving = out.suffix.lower() in animation.SUFFIXES
    one_file = False if moving else one_image(out)
    if moving:
        animation.check_fps(fps)
    if moving and out.suffix.lower() == ".mp4":
        animation.check_mp4()  # before the slow part
    files = list(code_files(inputs(codes)))
    for path in files:
        if isinstance(path, FileError):
            raise path
    paths = [path for path in files if isinstance(path, Path)]
    check_codes(len(paths))
    start, loaded = CodeModels(model, resolve_device(device)).load(paths[0])
    points = [start, *(load_code(path, loaded) for path in paths[1:])]
    results = Results(as_json, null)
    count = count_images(len(points), steps, loop)
    record = {"codes": [str(path) for path in paths], "steps": steps, "images": count}
    cell = min(side or loaded.resolution, loaded.resolution)
    if moving:
        check_written_size(out, (cell, cell), animation.LARGEST_SIDES)
    elif one_file:
        rows = len(points) - (not loop)
        check_written_size(out, (steps * cell, rows * cell))
    elif out.exists() and not out.is_dir():
        raise FileError(out, "a file, not a folder")
    with progress_with_rate("rendering", count) as advance:
        images = render_way(loaded, points, steps, smooth, loop, side, advance)
        if moving:
            animation.save_animation(out, (checked_pillow(out, image) for image in images), fps)
        elif one_file:
            _save_strip(out, images, cell, rows, steps, loop)
        else:
            _save_each(results, out, images, count, record)
    if moving or one_file:
        results.wrote(out, **record)
    results.finish()


def _save_strip(out: Path, images: "Iterator[Tensor]", cell: int, rows: int, steps: int, loop: bool) -> None:
    """One row from each code to the next: an inner code's image ends one row and begins another."""
    from wrangan_cli.engine.data.image_writing import checked_pillow, save_pillow
    from wrangan_cli.engine.data.sheets import Layout

    layout = Layout(rows, steps, (cell, cell), gap=0)
    sheet = layout.blank()
    for index, image in enumerate(images):
        row, column = divmod(index, steps - 1)
        places = [(row, column)] if row < rows else []
        if column == 0:
            places.append((row - 1, steps - 1))
        for place in places:
            if place[0] >= 0 or loop:
                layout.paste(sheet, place[0] % rows, place[1], checked_pillow(out, image))
    save_pillow(out, sheet, edited=True)


def _save_each(
    results: Results, folder: Path, images: "Iterator[Tensor]", count: int, record: dict[str, object]
) -> None:
    from wrangan_cli.engine.data.image_writing import save_image

    digits = len(str(count - 1))
    for index, image in enumerate(images):
        path = folder / f"step-{index:0{digits}d}.png"
        save_image(path, image, edited=True)
        results.wrote(path, **record, index=index)
