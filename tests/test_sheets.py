"""Sheets of pictures with titles."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wrangan_cli.engine.data.sheets import Layout


def ink(part: np.ndarray) -> bool:
    return bool((part < 128).any())


def filled(layout: Layout) -> np.ndarray:
    sheet = layout.blank()
    for row in range(layout.rows):
        for column in range(layout.columns):
            layout.paste(sheet, row, column, Image.new("RGB", layout.cell, (255, 10 * row, 10 * column)))
    assert sheet.size == layout.size
    return np.asarray(sheet)


def test_without_titles_the_cells_stand_edge_to_edge() -> None:
    pixels = filled(Layout(2, 3, (8, 6), gap=0))
    assert pixels.shape == (12, 24, 3)
    expected = np.zeros((12, 24, 3), dtype=np.uint8)
    expected[..., 0] = 255
    expected[..., 1] = np.repeat([0, 10], 6)[:, None]
    expected[..., 2] = np.repeat([0, 10, 20], 8)
    assert np.array_equal(pixels, expected)


def test_gaps_are_white() -> None:
    pixels = filled(Layout(2, 2, (8, 6), gap=3))
    assert pixels.shape == (15, 19, 3)
    assert (pixels[6:9] == 255).all()
    assert (pixels[:, 8:11] == 255).all()
    assert pixels[9, 11].tolist() == [255, 10, 10]


def test_titles_stand_above_every_row() -> None:
    layout = Layout(2, 2, (40, 20), cell_titles=[["a", "b"], ["c", ""]], gap=2, font_size=12)
    pixels = filled(layout)
    assert pixels.shape == (2 * 18 + 2 * 20 + 2, 82, 3)
    for row, top in ((0, 0), (1, 40)):
        assert ink(pixels[top : top + 18, :40])
        assert pixels[top + 18, 0].tolist() == [255, 10 * row, 0]
        assert pixels[top + 37, 81].tolist() == [255, 10 * row, 10]
    assert ink(pixels[:18, 42:])
    assert (pixels[40:58, 42:] == 255).all()


def test_room_is_kept_for_titles_to_come() -> None:
    wide = "a title that is wider than its picture"
    layout = Layout(1, 2, (16, 16), cell_titles=[["a", "b"]], room_for=["a", "b", wide])
    assert layout.size == replace(layout, cell_titles=[[wide, "b"]]).size
    assert layout.size[0] > Layout(1, 2, (16, 16), cell_titles=[["a", "b"]]).size[0]


@pytest.mark.parametrize("title", ["two\nlines", "a\udcffb", "\x00", "tab\t"])
def test_titles_of_any_name_are_drawn(title: str) -> None:
    assert ink(filled(Layout(1, 1, (16, 16), row_titles=[title], column_titles=[title]))[:18])
