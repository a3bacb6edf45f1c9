"""A face where the tests say, in photographs that are smooth."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wrangan_cli.engine.faces import align_photos
from wrangan_cli.engine.faces.detection import Face

# Eyes 40 px apart on a level line, mouth 45 px below: an upright face around (100, 90).
LANDMARKS = np.array([[80.0, 80], [120, 80], [100, 105], [85, 125], [115, 125]])


def smooth_photo(path: Path, width: int = 240, height: int = 200, seed: int = 0) -> Path:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


class FakeDetector:
    """Finds the faces named for a photograph's width; none where it is not named."""

    faces: dict[int, list[np.ndarray]] = {}  # noqa: RUF012
    calls = 0

    def __init__(self, min_confidence: float = 0.9) -> None:
        self.min_confidence = min_confidence

    def detect(self, photo: Image.Image) -> list[Face]:
        type(self).calls += 1
        return [Face(points, 0.99) for points in self.faces.get(photo.width, [])]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> type[FakeDetector]:
    FakeDetector.calls = 0
    FakeDetector.faces = {240: [LANDMARKS], 241: [LANDMARKS, LANDMARKS * 0.5 + 80]}
    monkeypatch.setattr(align_photos, "FaceDetector", FakeDetector)
    return FakeDetector
