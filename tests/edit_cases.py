"""Codes of the tiny model with directions, `wrangan edit`, and the pictures that it should draw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.code_files import write_codes
from wrangan_cli.app import app
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.editing.directions import Direction, directions_file, save_directions, unit
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model

run = CliRunner()
SIDE = 16


def make_direction(name: str, seed: int, std: float) -> Direction:
    return Direction(name, unit(torch.randn(16, generator=torch.Generator().manual_seed(seed))), std)


SMILE, AGE = make_direction("smile", 1, 0.5), make_direction("age", 2, 0.25)


@pytest.fixture
def codes(tiny_model: Model, tmp_path: Path) -> Path:
    save_directions(directions_file(tiny_model), tiny_model, [SMILE, AGE])
    return write_codes(tmp_path / "codes", tiny_model)


def edit(model: Model, *arguments: object, stdin: str | None = None):  # type: ignore[no-untyped-def]
    return run.invoke(app, ["edit", *map(str, arguments), "--model", str(model.path)], input=stdin)


def picture(model: Model, code: Code, *steps: tuple[Direction, float]) -> np.ndarray:
    """The image of w + Σ strength · std · vector, in 8 bits."""
    w = code.w.numpy() + sum(strength * d.std * d.vector.numpy() for d, strength in steps)
    moved = Code(w=torch.from_numpy(np.asarray(w, dtype=np.float32)), epsilon=code.epsilon)
    image = render(model, [moved])[0].clamp(-1, 1).permute(1, 2, 0).numpy()
    return np.round((image.astype(np.float64) + 1) * 127.5).astype(np.uint8)


def cells(pixels: np.ndarray, columns: int) -> list[list[np.ndarray]]:
    """Of pictures that stand edge to edge."""
    assert pixels.shape[1:] == (columns * SIDE, 3)
    return [np.hsplit(row, columns) for row in np.vsplit(pixels, len(pixels) // SIDE)]


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Up to rounding: pictures of other strengths are much farther."""
    return found.shape == expected.shape and bool(np.abs(found.astype(int) - expected).max() <= 1)


@pytest.fixture
def photos(codes: Path, tiny_model: Model, tmp_path: Path) -> Path:
    """Photographs of a (named by its record) and b (by its stem), not of c."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, red in (("of-a.png", 200), ("b.png", 90)):
        Image.fromarray(np.random.default_rng(red).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(
            folder / name
        )
    code = load_code(codes / "a.st", tiny_model)
    info = {**code.info, "source": "of-a.png", "source_sha256": sha256(folder / "of-a.png")}
    save_code(codes / "a.st", Code(code.w, code.epsilon, info=info))
    return folder
