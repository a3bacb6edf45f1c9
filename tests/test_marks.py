"""What edited pictures say of themselves."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wrangan_cli import __version__
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.marks import MARK
from wrangan_cli.engine.editing.animation import save_animation

FRAMES = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 200)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("edited", [True, False])
def test_an_edit_says_so_and_nothing_else_does(tmp_path: Path, name: str, edited: bool) -> None:
    path = tmp_path / name
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_image(path, image, edited)
    with Image.open(path) as picture:
        exif = picture.getexif()  # tags as the Exif standard numbers them: Software, ImageDescription
        said = [picture.info.get("Software", exif.get(305)), picture.info.get("Comment", exif.get(270))]
    assert said == (
        [f"wrangan {__version__}", f"edited with wrangan {__version__}"] if edited else [None, None]
    )
    assert (b"wrangan" in path.read_bytes()) == edited


def test_a_gif_says_so_and_still_shows_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    save_animation(path, FRAMES)
    with Image.open(path) as film:
        assert film.info["comment"] == MARK.encode()
        assert film.n_frames == 2
        film.seek(1)
        assert film.convert("RGB").getpixel((8, 8)) == (200, 200, 200)


def test_an_mp4_says_so(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    save_animation(path, FRAMES)
    program = imageio_ffmpeg.get_ffmpeg_exe()
    told = subprocess.run([program, "-hide_banner", "-i", path], capture_output=True, text=True, check=False)
    assert MARK in told.stderr
