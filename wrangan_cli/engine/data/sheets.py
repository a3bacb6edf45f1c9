"""Sheets of pictures in rows and columns, with plain titles."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


@dataclass(frozen=True)
class Layout:
    """The positions of the cells of a sheet and of their titles; empty space is white."""

    rows: int
    columns: int
    cell: tuple[int, int]
    """Width and height in px of all pictures."""
    row_titles: Sequence[str] = ()
    """At the left of the rows."""
    column_titles: Sequence[str] = ()
    """Above the first row."""
    cell_titles: Sequence[Sequence[str]] = ()
    """In place of `column_titles`: one title above each picture."""
    room_for: Sequence[str] = ()
    """Further titles that must fit above a cell, so that all frames of an animation have the same size."""
    gap: int = 2
    """Between the cells, in px."""
    font_size: int = 12
    """Of the titles, in px."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet in px."""
        left, above, cell = self._margins
        width = left + self.columns * (cell + self.gap) - self.gap
        bands = self.rows if self.cell_titles else 1
        return width, bands * above + self.rows * (self.cell[1] + self.gap) - self.gap

    def blank(self) -> Image.Image:
        """The sheet with its titles and without pictures: 8-bit RGB."""
        canvas = Image.new("RGB", self.size, "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(self.font_size)
        left, above, cell = self._margins
        heads = self.cell_titles or ([self.column_titles] if self.column_titles else [])
        for row, titles in enumerate(heads):
            y = self._top(row) - above / 2
            for column, title in enumerate(titles):
                x = left + column * (cell + self.gap) + cell / 2
                draw.text((x, y), _plain(title), "black", font, anchor="mm")
        for row, title in enumerate(self.row_titles[: self.rows]):
            y = self._top(row) + self.cell[1] / 2
            draw.text((left - self.gap - 4, y), _plain(title), "black", font, anchor="rm")
        return canvas

    def paste(self, sheet: Image.Image, row: int, column: int, picture: Image.Image) -> None:
        """Put a picture of the size `cell` into its place, both counted from 0."""
        left, _, cell = self._margins
        x = left + column * (cell + self.gap) + (cell - self.cell[0]) // 2
        sheet.paste(picture, (x, self._top(row)))

    def _top(self, row: int) -> int:
        _, above, _ = self._margins
        bands = row + 1 if self.cell_titles else 1
        return bands * above + row * (self.cell[1] + self.gap)

    @functools.cached_property
    def _margins(self) -> tuple[int, int, int]:
        """Width of the row titles, height of a band of titles, width of a column."""
        font = ImageFont.load_default(self.font_size)

        def length(title: str) -> int:
            return math.ceil(font.getlength(_plain(title)))

        left = max((length(title) + 2 * self.gap + 4 for title in self.row_titles), default=0)
        above = [*self.column_titles, *(title for row in self.cell_titles for title in row), *self.room_for]
        # A column is as wide as its title needs.
        cell = max([self.cell[0], *(length(title) + 4 for title in set(above))])
        return left, self.font_size + 6 if above else 0, cell


def _plain(title: str) -> str:
    """The title as one printable line: file names may hold line ends, and bytes that are not text."""
    return "".join(c if c.isprintable() else "?" for c in title)
