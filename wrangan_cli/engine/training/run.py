"""The loop around every training: data in order, prefetched; snapshots; resuming."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from wrangan_cli.engine.base.distributed import any_rank, broadcast, is_main, world_size
from wrangan_cli.engine.training.snapshots import newest_state, save_snapshot

Report = dict[str, float]


class RunSettings(Protocol):
    """The settings that the loop itself needs."""

    @property
    def images(self) -> int: ...
    @property
    def snapshot_images(self) -> int: ...
    @property
    def keep_snapshots(self) -> int: ...


class Trainer(Protocol):
    """The state of a training, and one step of it."""

    images: int

    @property
    def settings(self) -> RunSettings: ...

    def step(self, batch: Any) -> Report:
        """Take one step on a batch of the stream; returns losses."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` continues exactly."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


T = TypeVar("T", bound=Trainer)
B = TypeVar("B")

TWICE = 2.0
"""Seconds within which a repeated signal counts as the same: torchrun repeats what the terminal sends."""


def train(
    trainer: T,
    stream: Callable[[int], Iterator[Any]],
    run: Path,
    on_step: Callable[[T, Report], None],
    on_snapshot: Callable[[T], None],
    warn: Callable[[str], None],
) -> None:
    """Train until `settings.images`, resuming from the newest snapshot in the folder `run`.

    stream: from the count of images seen so far to the batches that follow. `on_step` gets
    the losses of every step, `images_per_second`, and `seconds/data`, the time that the step
    waited for its batch; `on_snapshot` is called after each snapshot and at the end. A
    snapshot that cannot be read is skipped, with a message to `warn`. On Ctrl-C and SIGTERM
    the current step is finished and saved before KeyboardInterrupt is raised; a second
    signal stops at once. An error inside a step leaves the last snapshot unchanged.

    Under torchrun all processes make the same steps and callbacks; only the main one reads and
    writes snapshots, and a signal to any of them stops all after the same step.
    """
    settings = trainer.settings
    state = broadcast(newest_state(run, warn) if is_main() else None)
    if state is not None:
        trainer.restore(state)
    following = prefetched(stream(trainer.images))
    due = trainer.images + settings.snapshot_images
    whole = True
    try:
        with _signals_after_the_step() as stopped:
            stop = False
            while trainer.images < settings.images and not stop:
                started = time.perf_counter()
                batch = next(following)
                waited = time.perf_counter() - started
                whole, before = False, trainer.images
                report = trainer.step(batch)
                whole = True
                seen = trainer.images - before
                report["images_per_second"] = seen / (time.perf_counter() - started)
                report["seconds/data"] = waited
                on_step(trainer, report)
                if trainer.images >= due:
                    due = trainer.images + settings.snapshot_images
                    _save(trainer, run)
                    on_snapshot(trainer)
                stop = any_rank(stopped())
            if stop:
                raise KeyboardInterrupt
    finally:
        following.close()
        # In the middle of a step the state is inconsistent: keep the last snapshot.
        if whole:
            _save(trainer, run)
    on_snapshot(trainer)


def prefetched(batches: Iterator[B]) -> Generator[B, None, None]:
    """Endless `batches`; a thread reads the next one while the current one is used."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(next, batches)
        while True:
            batch = coming.result()
            coming = reader.submit(next, batches)
            yield batch


def _save(trainer: Trainer, run: Path) -> None:
    if is_main():
        save_snapshot(run, trainer.images, trainer.state(), trainer.settings.keep_snapshots)


@contextlib.contextmanager
def _signals_after_the_step() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM are only recorded; yields a function that tells whether one came.

    A second one acts at once; under torchrun only if it is not a mere repetition.
    Outside the main thread, where Python delivers no signals, nothing changes.
    """
    noted: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(_number: int, _: object) -> None:
        now = time.monotonic()
        if noted and (world_size() == 1 or now - noted[0] > TWICE):
            raise KeyboardInterrupt
        noted.append(now)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
