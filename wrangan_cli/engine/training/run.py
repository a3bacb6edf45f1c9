"""The loop around every training: data in order, snapshots, resume."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot, save_snapshot

Report = dict[str, float]


class RunSettings(Protocol):
    """The settings that the loop itself needs."""

    @property
    def images(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def snapshot_images(self) -> int: ...
    @property
    def keep_snapshots(self) -> int: ...


class Trainer(Protocol):
    """What changes in a training, and one step of it."""

    images: int

    @property
    def settings(self) -> RunSettings: ...

    def step(self, batch: Any) -> Report:
        """One step on a batch of the stream; returns losses."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on exactly."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


T = TypeVar("T", bound=Trainer)


def train(
    trainer: T,
    stream: Callable[[int], Iterator[Any]],
    run: Path,
    on_step: Callable[[T, Report], None],
    on_snapshot: Callable[[T], None],
) -> None:
    """Train until `settings.images`, resuming from the newest snapshot in the folder `run`.

    stream: from the count of images seen so far to the batches that follow. `on_step` gets
    the losses of every step (and `images_per_second`); `on_snapshot` is called after each
    snapshot and at the end. On Ctrl-C and SIGTERM the step in hand is finished and saved
    before KeyboardInterrupt is raised; a second signal stops at once. An error inside a
    step leaves the last snapshot as it was.
    """
    settings = trainer.settings
    snapshots = list_snapshots(run)
    if snapshots:
        trainer.restore(load_snapshot(snapshots[-1]))
    following = stream(trainer.images)
    due = trainer.images + settings.snapshot_images
    whole = True
    try:
        with _signals_after_the_step() as stopped:
            while trainer.images < settings.images and not stopped():
                batch = next(following)
                started = time.perf_counter()
                whole = False
                report = trainer.step(batch)
                whole = True
                report["images_per_second"] = settings.batch / (time.perf_counter() - started)
                on_step(trainer, report)
                if trainer.images >= due:
                    due = trainer.images + settings.snapshot_images
                    save_snapshot(run, trainer.images, trainer.state(), settings.keep_snapshots)
                    on_snapshot(trainer)
            if stopped():
                raise KeyboardInterrupt
    finally:
        # In the middle of a step the parts disagree about what was done: keep the last snapshot then.
        if whole:
            save_snapshot(run, trainer.images, trainer.state(), settings.keep_snapshots)
    on_snapshot(trainer)


@contextlib.contextmanager
def _signals_after_the_step() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM are only noted; yields whether one came.

    The second one acts at once. Outside the main thread, where Python gives no signals,
    nothing changes.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
