"""A clip with sound, and `wrangan video invert` of the tiny model in a few steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("imageio_ffmpeg", reason="no imageio-ffmpeg")

from tests.clips import (
    SquareDetector,
    steady,
    with_tone,
    write_clip,
)
from tests.conftest import TINY
from wrangan_cli.app import app
from wrangan_cli.engine.editing.directions import Direction, save_directions
from wrangan_cli.engine.library import load_model

COUNT = 8
QUICK = ("--perceptual-weight", 0, "--init", "mean", "--steps", 4, "--key-frames", 3, "--frame-steps", 2)


def wrangan(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return with_tone(write_clip(tmp_path / "silent.mp4", steady(COUNT)), tmp_path / "clip.mp4")


@pytest.fixture
def invert(tmp_path: Path, tiny_folder: Path, detector: type[SquareDetector]) -> Callable[..., Result]:  # noqa: ARG001
    model = load_model(str(tiny_folder))
    vector = torch.nn.functional.normalize(torch.randn(TINY.style_dim), dim=0)
    save_directions(tiny_folder / "directions.safetensors", model, [Direction("smile", vector, 2.0)])

    def run(*words: object, out: str = "codes") -> Result:
        return wrangan("video", "invert", *words, "--out", tmp_path / out, "--model", tiny_folder, *QUICK)

    return run
