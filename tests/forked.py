"""Processes that part after the imports, which take longer than what such a process of a test then does."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def forked(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What work(0) … work(count - 1) give, done at once, each in a copy of this process.

    For a process of its own with one thread, not for that of the tests. The results are passed on as JSON.
    AssertionError where a copy fails; why stands on stderr.
    """
    children = []
    for number in range(count):
        heard, told = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.write(told, json.dumps(work(number)).encode())
                code = 0
            except Exception:  # noqa: BLE001  a copy must not go on as if it were the parent
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(told)
        children.append((child, heard))
    results = []
    for _, heard in children:
        with open(heard, "rb") as stream:
            results.append(stream.read())
    assert [os.waitpid(child, 0)[1] for child, _ in children] == [0] * count
    return [json.loads(result) for result in results]


def ranks(count: int, work: Callable[[int], Any]) -> list[Any]:
    """The same with the environment that torchrun gives its processes, all but MASTER_PORT."""

    def as_rank(rank: int) -> Any:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in told.items()})
        return work(rank)

    return forked(count, as_rank)
