"""`wrangan align` cuts faces out of photographs, framed as in FFHQ; `wrangan paste` puts them back."""

from pathlib import Path
from typing import Annotated

import typer

from wrangan_cli.commands.shell import AsJson, Null, Results, inputs, progress
from wrangan_cli.engine.base.errors import FileError, WranganError


def align(
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photographs or folders; without any, read paths from stdin.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the aligned faces.")] = Path("photos"),
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of an aligned face in px.", show_default="the side of its frame, 256 to 1024"
        ),
    ] = None,
    max_faces: Annotated[
        int | None,
        typer.Option(help="Maximum number of faces per photograph, largest first.", show_default="all"),
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(help="Ignore faces detected with less confidence than this (0 to 1).")
    ] = 0.9,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Re-align photographs that already have aligned faces.")
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Cut the faces out of photographs, framed as in FFHQ; write one PNG per face.

    photo.jpg gives photo.png (the largest face), photo-2.png and so on, each with a file
    photo.align.json that `wrangan paste` needs. Photographs without a face are reported, and
    the exit code is 1.
    """
    from wrangan_cli.engine.data.photo_files import find_images
    from wrangan_cli.engine.faces.align_photos import PhotoAligner

    results = Results(as_json, null)
    aligner = PhotoAligner(out, size, max_faces, min_confidence, overwrite)
    found: dict[Path, None] = {}
    for path in inputs(photos):
        try:
            found.update(dict.fromkeys(find_images([path])))
        except (FileError, OSError) as error:
            results.failed(error, path)
    refused = aligner.reserve(found)
    with progress("align", len(found)) as bar:
        for photo in found:
            try:
                if photo in refused:
                    raise refused[photo]
                faces = aligner.align(photo)
                if not faces:
                    raise FileError(photo, "no face found")
            except (WranganError, OSError) as error:
                results.failed(error, photo)
            else:
                for face in faces:
                    results.wrote(face.image, **face.record)
            bar.advance(bar.task_ids[0])
    results.finish()


def paste(
    edited: Annotated[Path, typer.Argument(help="The aligned face after editing, of any size.")],
    photo: Annotated[Path, typer.Option(help="The photograph that the face was cut out of.")],
    transform: Annotated[Path, typer.Option(help="The .align.json that `wrangan align` wrote.")],
    out: Annotated[Path, typer.Option(help="The result: .png, .jpg or .webp.")],
    feather: Annotated[
        float, typer.Option(help="Width of the soft border, as a fraction of the frame's side.")
    ] = 0.1,
    keep_detail: Annotated[
        bool,
        typer.Option(
            "--keep-detail", help="Add only the change, so that the photograph keeps its fine detail."
        ),
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Put an edited aligned face back into its photograph, with a soft border."""
    from wrangan_cli.engine.faces import align_photos

    align_photos.paste(edited, transform, photo, out, feather, keep_detail)
    Results(as_json, null).wrote(out, photo=str(photo), edited=str(edited), transform=str(transform))
