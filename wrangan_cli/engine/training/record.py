"""What a training leaves for people to read: settings, losses, sample grids."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.distributed import is_main
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.files import replaced_atomically, try_lock
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import image_grid
from wrangan_cli.engine.training.run import Report

LOCK = ".lock"
"""Lock file in the folder of a run; it stays there, and has no effect when no process holds it."""


class RunRecord:
    """Writes `settings.json`, `stats.jsonl`, TensorBoard scalars and `grid-*.png` of one run.

    Losses are averaged over `every` steps before they are written. Only the main process
    writes. While the record is open, another training in the same folder raises
    FileError. Use it in a `with` block.
    """

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __init__(self, run: Path, settings: dict[str, Any], every: int = 50) -> None:
        self._writes = is_main()
        self.run, self.every = run, every
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        if not self._writes:
            return
        lock = try_lock(run / LOCK)
        if lock is None:
            raise FileError(
                run, "another training is writing there: wait until it ends, or choose another --out"
            )
        self._lock = lock
        with replaced_atomically(run / "settings.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
        self._stats = open(run / "stats.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - open for the run
        self._board = _summary_writer(run)

    def step(self, images: int, report: Report) -> None:
        """Record one step's losses at `images` seen."""
        for name, value in report.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        if self._steps % self.every or not self._writes:
            return
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._sums, self._counts = {}, {}
        self.note(images, means)

    def note(self, images: int, values: Report) -> None:
        """Write `values` as a separate line."""
        if not self._writes:
            return
        print(json.dumps({"images": images, "time": time.time(), **values}), file=self._stats, flush=True)
        for name, value in values.items():
            self._board.add_scalar(name, value, images)

    def grid(self, images: int, samples: Tensor, columns: int) -> None:
        """Save samples (B, 3, R, R) in [-1, 1] as `grid-<images>.png`."""
        if not self._writes:
            return
        picture = image_grid(samples, columns=columns)
        path = self.run / f"grid-{images:010d}.png"
        save_image(path, picture)
        self._board.add_image("samples", (picture.clamp(-1, 1) + 1) / 2, images)

    def close(self) -> None:
        """Flush and close the files."""
        if self._writes:
            self._writes = False
            self._stats.close()
            self._board.close()
            self._lock.release()


def _summary_writer(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise WranganError(f"TensorBoard is missing: {install_line('train')}") from error
    return SummaryWriter(str(run))


@torch.no_grad()
def fixed_samples(trainer: Any, count: int = 64, seed: int = 1) -> Tensor:
    """Images of the averaged generator at latents that stay the same during a run."""
    ema = trainer.ema
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, ema.config.style_dim, generator=rng).to(trainer.device)
    return torch.cat([ema.synthesis(ema.mapping(part)) for part in z.split(16)]).cpu()
