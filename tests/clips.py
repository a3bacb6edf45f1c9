"""Small clips with a red square for a face, and a detector that finds it."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.face_cases import LANDMARKS
from wrangan_cli.engine.data.ffmpeg import ffmpeg, film, probe, read_frames
from wrangan_cli.engine.faces.detection import Face

SIZE = (96, 80)
FPS = 25


def picture(centre: tuple[float, float] | None, seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth blue and green picture with a red square of 12 px."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    small[..., 0] = 0
    made = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    if centre is not None:
        left, top = round(centre[0]) - 6, round(centre[1]) - 6
        made.paste((255, 0, 0), (left, top, left + 12, top + 12))
    return made


def steady(count: int) -> list[Image.Image]:
    """Frames whose face moves by 1 px a frame to the right."""
    return [picture((40 + number, 36)) for number in range(count)]


def write_clip(path: Path, pictures: Iterable[Image.Image], fps: float = FPS) -> Path:
    with film(path, fps, "smpte170m", crf=4) as write:
        for made in pictures:
            write(np.asarray(made))
    return path


def with_tone(silent: Path, out: Path, codec: str = "aac") -> Path:
    """The clip with a sine tone of its length."""
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100"]
    command = [ffmpeg(), "-y", "-v", "error", "-i", str(silent), *tone, "-shortest", "-c:v", "copy"]
    subprocess.run([*command, "-c:a", codec, "-strict", "-2", str(out)], check=True)
    return out


def sound_packets(path: Path) -> str:
    """A hash of the sound as it is encoded."""
    command = [ffmpeg(), "-v", "error", "-i", str(path), "-map", "0:a:0", "-c", "copy", "-f", "md5", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def frames_of(path: Path) -> NDArray[np.uint8]:
    """(N, H, W, 3)."""
    return np.stack([pixels for _, pixels in read_frames(path, probe(path))])


class SquareDetector:
    """Five landmarks around the red square; `calls` counts the pictures."""

    calls = 0

    def __init__(self, *_: object) -> None:
        pass

    def detect(self, photo: Image.Image) -> list[Face]:
        type(self).calls += 1
        pixels = np.asarray(photo).astype(int)
        y, x = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1:].max(axis=2) < 120))
        if len(x) < 20:
            return []
        centre = np.array([x.mean() + 0.5, y.mean() + 0.5])
        return [Face((LANDMARKS - LANDMARKS.mean(axis=0)) * 0.2 + centre, 0.999)]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> type[SquareDetector]:
    made = type("Fresh", (SquareDetector,), {"calls": 0})
    monkeypatch.setattr("wrangan_cli.engine.faces.detection.FaceDetector", made)
    return made
