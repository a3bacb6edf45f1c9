"""Independent work on the CPU, a core each: better than all cores on one piece after the other."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def on_cores(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """work(item) of all items, in their order; by as many threads as PyTorch has, each with one of its own.

    `work` must not share what it changes. The first error is raised, after all have ended.
    """
    cores = torch.get_num_threads()
    if cores < 2 or len(items) < 2:
        return [work(item) for item in items]
    pool = _pool(cores)
    grad = torch.is_grad_enabled()

    def alone(item: T) -> R:
        with torch.set_grad_enabled(grad):  # which belongs to the thread
            return work(item)

    futures = [pool.submit(alone, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.exception()
        # The workers' setting is also that of threads to come.
        torch.set_num_threads(cores)


@functools.cache
def _pool(cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores, "wrangan-core", initializer=lambda: torch.set_num_threads(1))
