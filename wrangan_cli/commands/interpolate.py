"""`wrangan interpolate`: the way from one code to another."""

from pathlib import Path
from typing import Annotated

import typer

from wrangan_cli.commands.code_inputs import CodeModels
from wrangan_cli.commands.shell import AsJson, Null, Results, one_image
from wrangan_cli.engine.errors import FileError


def interpolate(
    first: Annotated[Path, typer.Argument(help="Code (.st) of the first image.")],
    second: Annotated[Path, typer.Argument(help="Code (.st) of the last image.")],
    steps: Annotated[int, typer.Option(help="Images in all, both ends included.")] = 8,
    out: Annotated[
        Path, typer.Option(help="An image (a strip), .gif, .mp4, or a folder for step-0.png, step-1.png …")
    ] = Path("between.png"),
    fps: Annotated[float, typer.Option(help="Images a second in .gif and .mp4.")] = 8.0,
    model: Annotated[
        str | None,
        typer.Option(help="Bundled model's name or a model folder; default: the one the code names."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Draw the images between two codes: w and the weights' offsets change at an even pace."""
    from wrangan_cli.engine.codes import load_code
    from wrangan_cli.engine.editing.animation import SUFFIXES, check_fps, save_animation
    from wrangan_cli.engine.editing.interpolation import check_steps, draw_way
    from wrangan_cli.engine.images import image_grid, save_image
    from wrangan_cli.engine.runtime import resolve_device

    check_steps(steps)
    moving = out.suffix.lower() in SUFFIXES
    one_file = False if moving else one_image(out)
    if moving:
        check_fps(fps)
    models = CodeModels(model, resolve_device(device))
    start, loaded = models.load(first)
    end = load_code(second, loaded)
    images = draw_way(loaded, start, end, steps)
    results = Results(as_json, null)
    record = {"codes": [str(first), str(second)], "steps": steps}
    if moving:
        save_animation(out, images, fps)
        results.wrote(out, **record)
    elif one_file:
        save_image(out, image_grid(images, columns=steps))
        results.wrote(out, **record)
    else:
        if out.exists() and not out.is_dir():
            raise FileError(out, "a file, not a folder")
        digits = len(str(steps - 1))
        for index, image in enumerate(images):
            path = out / f"step-{index:0{digits}d}.png"
            save_image(path, image)
            results.wrote(path, **record, index=index)
    results.finish()
