"""The images of a report as files: photographs, reconstructions, edits, interpolations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.editing.directions import Direction, Move, edit_code
from wrangan_cli.engine.inversion.folder import Job
from wrangan_cli.engine.models.codes import render
from wrangan_cli.engine.reports.subject import Subject

LOSSY_SIDE = 256
"""From this resolution on, edits, which are many, are saved as .jpg."""


class Renderings:
    """Renders missing images, and those whose file has been changed since."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.folder = subject.out / "images"
        self._made: dict[Path, str] = {}

    def photo(self, path: Path) -> Path | None:
        """The photograph as the methods see it; None if it cannot be read."""
        target, subject = self.folder / "photo" / f"{path.stem}.png", self.subject
        try:
            key = {"photo": subject.sha(path), "most": subject.model.resolution, "size": subject.size}
            return self._file(target, key, lambda: subject.load_photo(path))
        except (WranganError, OSError):
            return None  # its inversion failed, which was reported then

    def reconstruction(self, method: str, job: Job) -> Path:
        """The image of a code."""

        def make() -> Tensor:
            return render(self.subject.model, [self.subject.code(job)])[0]

        key = {"code": self.subject.sha(job.code), "model": self.subject.model.sha256}
        return self._file(self.folder / method / f"{job.photo.stem}.png", key, make)

    def edit(self, method: str, job: Job, direction: Direction, strength: float) -> Path:
        """The image of a code moved along a direction."""
        move = Move(direction, strength)

        def make() -> Tensor:
            rows = self.subject.model.generator.config.num_latents
            return render(self.subject.model, [edit_code(self.subject.code(job), [move], rows)])[0]

        key = {
            "code": self.subject.sha(job.code),
            "model": self.subject.model.sha256,
            "vector": direction.vector.tolist(),
            "layers": direction.layers,
            "step": strength * direction.std,
        }
        suffix = ".jpg" if self.subject.model.resolution >= LOSSY_SIDE else ".png"
        return self._file(self.folder / method / move.label / f"{job.photo.stem}{suffix}", key, make)

    def figure(self, name: str, key: dict[str, Any], draw: Callable[[], Tensor]) -> Path:
        """A figure (3, H, W) under `figures/`, made again only if the key or the file has changed."""
        return self._file(self.subject.out / "figures" / f"{name}.png", key, draw)

    def plot(self, name: str, key: dict[str, Any], draw: Callable[[Path], None]) -> Path:
        """`figure` for one that `draw` itself writes to the given path."""
        return self._written(self.subject.out / "figures" / f"{name}.png", key, draw)

    def _file(self, path: Path, key: dict[str, Any], make: Callable[[], Tensor]) -> Path:
        return self._written(path, key, lambda target: save_image(target, make().clamp(-1, 1).cpu()))

    def _written(self, path: Path, key: dict[str, Any], write: Callable[[Path], None]) -> Path:
        key = {"file": str(path.relative_to(self.subject.out)), **key}
        known = self.subject.cache.get("drawn", key)
        if known is None or not path.is_file() or sha256(path) != known:
            write(path)
            self.subject.cache.put("drawn", key, sha256(path))
        return path


def stacked(paths: Sequence[Path], resolution: int) -> Tensor:
    """The images in files: (N, 3, R, R) in [-1, 1]."""
    return torch.stack([load_image(path, resolution) for path in paths])
