"""Codes over ranges of strengths as one picture: a strip of rows, or the frames of an animation."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from wrangan_cli.engine.data.image_writing import checked_pillow
from wrangan_cli.engine.data.sheets import Layout
from wrangan_cli.engine.editing.directions import Move
from wrangan_cli.engine.editing.sweeps import Sweep, sweeps_of, swept
from wrangan_cli.engine.models.codes import Code, render_each
from wrangan_cli.engine.models.folder import Model

PHOTOGRAPH, INVERTED = "photograph", "inverted"
"""Titles of the picture beside the edits: the photograph, or the unedited image of the code."""
_LONGEST_TITLE = 24
"""Maximum number of letters shown of a code's name, to leave room for the pictures."""


@dataclass(frozen=True)
class Subject:
    """A code whose edits are shown."""

    name: str
    code: Code
    photo: Image.Image | None = None
    """Its photograph, square, with the side of the pictures."""


@dataclass(frozen=True)
class Strip:
    """What to render: one row per code and range of strengths."""

    model: Model
    subjects: Sequence[Subject]
    edits: Sequence[Move | Sweep]
    """Single strengths apply to every picture; each range is a separate row."""
    steps: int
    """Number of strengths in a range, both ends included."""
    labels: bool = True
    """Whether to write titles; without them the pictures stand edge to edge."""
    beside: bool = False
    """Whether each row starts with the unedited subject: its photograph, or else the image of its code."""
    side: int | None = None
    """Side in px to which pictures are reduced by area averaging; at most that of the model, the default."""
    rows: list[tuple[Subject, Sweep]] = field(init=False)

    def __post_init__(self) -> None:
        rows = [(subject, sweep) for subject in self.subjects for sweep in sweeps_of(self.edits)]
        if not rows:
            raise ValueError("no codes, or no range of strengths")
        object.__setattr__(self, "rows", rows)

    @property
    def cell(self) -> int:
        """Side of a picture in px."""
        whole = self.model.resolution
        return whole if self.side is None else min(self.side, whole)

    def title(self, row: int) -> str:
        """What distinguishes a row from the others: the code, the direction, or both."""
        subject, sweep = self.rows[row]
        name = subject.name
        if len(name) > _LONGEST_TITLE:
            name = name[: _LONGEST_TITLE - 1] + "…"
        parts = [name] if len(self.subjects) > 1 else []
        return " ".join([*parts, sweep.direction.name] if len(sweeps_of(self.edits)) > 1 else parts)

    @functools.cached_property
    def strengths(self) -> list[list[str]]:
        """The titles of each row's strengths."""
        return [[_number(strength) for strength in sweep.strengths(self.steps)] for _, sweep in self.rows]

    def codes(self, row: int) -> Iterator[Code]:
        """The edited codes of a row."""
        subject, sweep = self.rows[row]
        rows_of_w = self.model.generator.config.num_latents
        return swept(subject.code, self.edits, sweep, self.steps, rows_of_w)

    def beside_title(self, row: int) -> list[str]:
        """The title of the unedited picture, if it is shown."""
        return [PHOTOGRAPH if self.rows[row][0].photo else INVERTED] if self.beside else []


def images_in(strip: Strip) -> int:
    """The number of images rendered for it, as a strip or an animation."""
    inverted = sum(strip.beside and subject.photo is None for subject, _ in strip.rows)
    return inverted + len(strip.rows) * strip.steps


def strip_layout(strip: Strip) -> Layout:
    """One row per code and direction; columns are strengths, after the unedited picture."""
    columns = strip.steps + strip.beside
    count = range(len(strip.rows))
    plain = _layout(strip, len(strip.rows), columns)
    if not strip.labels:
        return plain
    titles = [[*strip.beside_title(row), *strip.strengths[row]] for row in count]
    names = [strip.title(row) for row in count]
    plain = replace(plain, row_titles=names if any(names) else ())
    if all(row == titles[0] for row in titles):
        return replace(plain, column_titles=titles[0])
    return replace(plain, cell_titles=titles)


def render_strip(strip: Strip, out: Path, on_image: Callable[[int], None] | None = None) -> Image.Image:
    """The picture of `strip_layout`, 8-bit RGB.

    out: the file to be written, for error messages. on_image gets the number of images rendered.
    Raises WranganError for an image that is not finite, UsageError for an edit that does not fit.
    """
    layout = strip_layout(strip)

    def wanted() -> Iterator[Code]:
        for row, (subject, _) in enumerate(strip.rows):
            if strip.beside and subject.photo is None:
                yield subject.code
            yield from strip.codes(row)

    pictures = _rendered(strip, wanted(), out, on_image)
    sheet = layout.blank()
    for row, (subject, _) in enumerate(strip.rows):
        for column in range(layout.columns):
            photo = subject.photo if strip.beside and column == 0 else None
            layout.paste(sheet, row, column, photo or next(pictures))
    return sheet


def film_layout(strip: Strip) -> Layout:
    """About as many columns as rows; each cell shows a code and direction, after the unedited picture."""
    each = 1 + strip.beside
    columns = math.ceil(math.sqrt(len(strip.rows)))
    plain = _layout(strip, math.ceil(len(strip.rows) / columns), columns * each)
    if not strip.labels:
        return plain
    room = [title for step in range(strip.steps) for title in _film_titles(strip, step)]
    return _at(replace(plain, room_for=room), strip, 0)


def render_film(
    strip: Strip, out: Path, on_image: Callable[[int], None] | None = None
) -> Iterator[Image.Image]:
    """The frames of `film_layout`, one per strength: 8-bit RGB of one size, a few in memory at a time.

    Arguments and errors are those of `render_strip`.
    """
    layout = film_layout(strip)
    inverted = [subject.code for subject, _ in strip.rows if strip.beside and subject.photo is None]

    def wanted() -> Iterator[Code]:
        yield from inverted
        yield from (
            code for step in zip(*map(strip.codes, range(len(strip.rows))), strict=True) for code in step
        )

    pictures = _rendered(strip, wanted(), out, on_image)
    still = [(subject.photo or next(pictures)) if strip.beside else None for subject, _ in strip.rows]
    for step in range(strip.steps):
        frame = (_at(layout, strip, step) if strip.labels else layout).blank()
        places = iter(range(layout.rows * layout.columns))
        for fixed in still:
            for picture in (fixed, next(pictures)):
                if picture is not None:
                    layout.paste(frame, *divmod(next(places), layout.columns), picture)
        yield frame


def _at(layout: Layout, strip: Strip, step: int) -> Layout:
    titles = _film_titles(strip, step)
    rows = [titles[start : start + layout.columns] for start in range(0, len(titles), layout.columns)]
    return replace(layout, cell_titles=rows)


def _film_titles(strip: Strip, step: int) -> list[str]:
    titles = []
    for row in range(len(strip.rows)):
        titles += strip.beside_title(row)
        titles.append(f"{strip.title(row)} {strip.strengths[row][step]}".strip())
    return titles


def _layout(strip: Strip, rows: int, columns: int) -> Layout:
    side = strip.cell
    gap = max(2, side // 64) if strip.labels else 0
    return Layout(rows, columns, (side, side), gap=gap, font_size=max(12, side // 16))


def _rendered(
    strip: Strip, codes: Iterator[Code], out: Path, on_image: Callable[[int], None] | None
) -> Iterator[Image.Image]:
    for image in render_each(strip.model, codes, strip.side, on_image):
        yield checked_pillow(out, image)


def _number(strength: float) -> str:
    """`+1.5`, `-3`, `0`: two decimals at most."""
    rounded = round(strength, 2)
    return f"{rounded:+g}" if rounded else "0"
