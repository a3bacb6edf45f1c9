"""Invert any number of photographs: in batches of equal side, which are halved when memory runs out."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError, is_out_of_memory
from wrangan_cli.engine.base.peak_memory import peak_memory, reset_peak
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.models.codes import Code

_log = logging.getLogger("wrangan")
BATCH = 8


@dataclass(frozen=True)
class Inverted:
    """The result for one photograph."""

    index: int
    """Its index among the given photographs."""
    code: Code | WranganError | OSError
    """The code, on the CPU, or an error: the file cannot be read, or values stopped being finite."""
    seconds: float = 0.0
    """The seconds of its batch, divided by the number of photographs in it."""
    cost: dict[str, Any] = field(default_factory=dict)
    """`batch` and, if the system reports it, `peak_memory_mib` and `peak_memory_of`."""


@dataclass(frozen=True)
class Progress:
    """The progress of inverting many photographs."""

    done: int
    """Number of steps taken, summed over the photographs."""
    total: int
    """Number of all steps, likewise; an estimate if `settings.seconds` determines those of each batch."""
    per_minute: float | None = None
    """Photographs per minute in the current batch; None before its first step."""


def invert_many(
    inverter: Inverter,
    photos: Iterable[Path | Tensor],
    batch: int = BATCH,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Inverted]:
    """Invert photographs, `batch` at a time, and yield each result as soon as its batch is done.

    photos: files, read by `Inverter.load_photo`, or images (3, S, S) in [-1, 1]; a batch holds
    consecutive photographs of equal side. If a photograph cannot be read or fitted, its result is the error,
    and the others are not affected. Results come in the order of the photographs, except that files that
    cannot be read come before the batch to which they would have belonged.

    When a batch does not fit into memory, it is tried again at half its size, with a warning in
    the log `wrangan`, and later batches keep that size; with a single photograph the error is raised.
    """
    waiting: deque[tuple[int, Path | Tensor]] = deque(enumerate(photos))
    report = on_progress or (lambda _: None)
    device, done = inverter.model.device, 0
    report(Progress(0, len(waiting) * _steps(inverter)))
    while waiting:
        taken, images, unread = _next_batch(inverter, waiting, batch)
        yield from unread
        if not taken:
            continue
        fresh = reset_peak(device)
        started = time.perf_counter()
        try:
            photographs = torch.stack(images)
            planned = inverter.within(photographs)
            steps, count = _steps(planned), len(taken)
            total = done + (len(waiting) + count) * steps
            codes = planned.invert(photographs, _reporter(report, done, total, count, steps, started))
        except (RuntimeError, MemoryError) as error:
            if len(taken) == 1 or not is_out_of_memory(error):
                raise
            codes = None
        if codes is None:
            # Outside of `except`: the error keeps the attempt's tensors alive.
            batch = len(taken) // 2
            waiting.extendleft(reversed(taken))
            _log.warning("out of memory with %d photographs at a time: retrying with %d", len(taken), batch)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        seconds = (time.perf_counter() - started) / count
        cost = {"batch": count, **peak_memory(device, fresh)}
        done += steps * count
        report(Progress(done, total))
        for (index, _), code in zip(taken, codes, strict=True):
            yield Inverted(index, code, seconds, cost)


def _steps(inverter: Inverter) -> int:
    """Steps per photograph; a method without steps counts as one."""
    return max(1, inverter.settings.total_steps)


def _reporter(
    report: Callable[[Progress], None], done: int, total: int, count: int, steps: int, started: float
) -> Callable[[int], None]:
    """The callback after each step of a batch of `count` photographs; `done`: the steps before the batch."""

    def on_step(step: int) -> None:
        rate = step * count / steps / (time.perf_counter() - started)
        report(Progress(done + step * count, total, 60 * rate))

    return on_step


def _next_batch(
    inverter: Inverter, waiting: "deque[tuple[int, Path | Tensor]]", batch: int
) -> tuple[list[tuple[int, Path | Tensor]], list[Tensor], list[Inverted]]:
    """The next photographs of equal side, at most `batch`, their images, and those that cannot be read."""
    taken: list[tuple[int, Path | Tensor]] = []
    images: list[Tensor] = []
    unread: list[Inverted] = []
    for _ in range(min(batch, len(waiting))):
        index, photo = waiting.popleft()
        try:
            image = photo if isinstance(photo, Tensor) else inverter.load_photo(photo)
        except (WranganError, OSError) as error:
            unread.append(Inverted(index, error))
            continue
        if images and image.shape != images[0].shape:
            waiting.appendleft((index, photo))
            break
        images.append(image)
        taken.append((index, photo))
    return taken, images, unread
