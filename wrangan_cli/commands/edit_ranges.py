"""`wrangan edit` over ranges of strengths: a strip or an animation."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wrangan_cli.commands.code_inputs import CodeModels
from wrangan_cli.commands.per_code import Targets, for_each_code
from wrangan_cli.commands.requested_edits import RequestedEdits
from wrangan_cli.commands.shell import Results, one_image, progress_with_rate, say
from wrangan_cli.engine.base.errors import FileError

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.strips import Strip, Subject


@dataclass(frozen=True)
class Plan:
    """How the ranges are shown."""

    out: Path
    steps: int
    labels: bool
    originals: Path | None
    """Photographs to show beside the edits."""
    side: int | None
    fps: float

    @property
    def moving(self) -> bool:
        """Whether the output is an animation."""
        from wrangan_cli.engine.editing.animation import SUFFIXES

        return self.out.suffix.lower() in SUFFIXES

    @property
    def in_one(self) -> bool:
        """Whether all codes are shown in one file; UsageError for a format that cannot be written."""
        return self.moving or one_image(self.out)

    def check(self) -> None:
        """Raise UsageError for a wrong setting, WranganError for .mp4 without its extra."""
        from wrangan_cli.engine.editing.animation import check_fps, check_mp4
        from wrangan_cli.engine.editing.interpolation import check_steps

        check_steps(self.steps)
        if self.moving:
            check_fps(self.fps)
        if self.in_one and self.out.suffix.lower() == ".mp4":
            check_mp4()


def edit_ranges(
    results: Results,
    files: Iterable[Path | FileError],
    models: CodeModels,
    requested: RequestedEdits,
    plan: Plan,
) -> None:
    """Write one picture of all codes, or a folder with one strip per code."""
    from wrangan_cli.engine.data.photo_files import find_images

    photos = [] if plan.originals is None else find_images([plan.originals])
    shown: list[tuple[Path, Strip]] = []
    in_one, targets = plan.in_one, Targets()

    def show_one(path: Path) -> None:
        strip = _strip(path, models, requested, photos, plan)
        if not in_one:
            target = plan.out / f"{path.stem}-{requested.label(strip.edits)}.png"
            targets.check(target, path)
            _write(results, target, [path], strip, plan.fps)
            targets.wrote(target, path)
        elif shown and strip.model is not shown[0][1].model:
            first, other = shown[0][1].model.name, strip.model.name
            raise FileError(
                path, f"made with the model {other}; one picture shows codes of one model, here {first}"
            )
        else:
            shown.append((path, strip))

    for_each_code(files, results, show_one)
    if shown:
        # The size of the whole picture is unknown until all codes are read.
        whole = replace(shown[0][1], subjects=[strip.subjects[0] for _, strip in shown])
        _write(results, plan.out, [path for path, _ in shown], whole, plan.fps)
    results.finish()


def _strip(
    path: Path, models: CodeModels, requested: RequestedEdits, photos: list[Path], plan: Plan
) -> "Strip":
    """The strip of a single code."""
    from wrangan_cli.engine.editing.strips import Strip, Subject

    code, model = models.load(path)
    subject = Subject(path.stem, code)
    strip = Strip(
        model, [subject], requested.of(model), plan.steps, plan.labels, plan.originals is not None, plan.side
    )
    if plan.originals is None:
        return strip
    return replace(strip, subjects=[_with_photo(path, subject, photos, strip.cell, plan.originals)])


def _with_photo(path: Path, subject: "Subject", photos: list[Path], side: int, where: Path) -> "Subject":
    from wrangan_cli.engine.data.image_reading import open_image
    from wrangan_cli.engine.data.photographs import check_source, photograph_of

    photo = photograph_of(path, subject.code.info, photos)
    if photo is None:
        say(f"wrangan: {path}: no photograph of it in {where}: showing the image of the code instead")
        return subject
    check_source(photo, path, subject.code.info)
    return replace(subject, photo=open_image(photo, side))


def _write(results: Results, target: Path, codes: list[Path], strip: "Strip", fps: float) -> None:
    from wrangan_cli.engine.data.image_writing import check_written_size, save_pillow
    from wrangan_cli.engine.editing import animation
    from wrangan_cli.engine.editing.strips import (
        film_layout,
        images_in,
        render_film,
        render_strip,
        strip_layout,
    )
    from wrangan_cli.engine.editing.sweeps import Sweep

    moving = target.suffix.lower() in animation.SUFFIXES
    if moving:
        check_written_size(target, film_layout(strip).size, animation.LARGEST_SIDES)
    else:
        # First without titles, which themselves would take too long with far too many steps.
        check_written_size(target, strip_layout(replace(strip, labels=False)).size)
        check_written_size(target, strip_layout(strip).size)
    with progress_with_rate("rendering", images_in(strip)) as advance:
        if moving:
            animation.save_animation(target, render_film(strip, target, advance), fps, and_back=True)
        else:
            save_pillow(target, render_strip(strip, target, advance), edited=True)
    edits = [
        [edit.direction.name, [edit.span.first, edit.span.last] if isinstance(edit, Sweep) else edit.strength]
        for edit in strip.edits
    ]
    results.wrote(target, codes=[str(code) for code in codes], edits=edits, steps=strip.steps)
