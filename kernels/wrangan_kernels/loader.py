"""Load the compiled kernels, and build them on first use.

WRANGAN_KERNELS=auto     (default) on the CPU, build them if necessary; if that fails, one line on stderr says
                         why and what it costs, and the PyTorch reference is used. On a GPU use the
                         reference: no GPU has run the CUDA kernels yet
WRANGAN_KERNELS=off      use the reference, silently
WRANGAN_KERNELS=require  use kernels on both; missing kernels are an error
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from wrangan_kernels import build
from wrangan_kernels.caching import why_not_writable

ENVIRONMENT = "WRANGAN_KERNELS"
MODES = ("auto", "off", "require")
COST = "rendering and inversion run at half the speed or less (two thirds for 64 px)"
"""The cost of having no kernels on the CPU."""


class KernelError(RuntimeError):
    """The kernels are required but missing, or the setting is invalid; one line."""


@dataclass(frozen=True)
class State:
    """The state of the kernels for one device in this process."""

    ready: bool
    reason: str
    """Where they are, or why there are none."""


_states: dict[str, State] = {}
_loaded: dict[str, str] = {}
"""Libraries loaded in this process, by device; they cannot be unloaded."""
_lock = threading.RLock()
_set_aside = 0
_may_build = True


def mode() -> str:
    """The setting; raises KernelError if it is invalid."""
    value = os.environ.get(ENVIRONMENT, "auto").strip().lower() or "auto"
    if value not in MODES:
        raise KernelError(f"{ENVIRONMENT}={value}: expected {', '.join(MODES)}")
    return value


def wanted(device: str) -> bool:
    """Whether the setting enables kernels on `device`: those for CUDA, which no GPU has run yet, only if
    they are required."""
    return mode() == "require" or (mode() == "auto" and device != "cuda")


@torch.compiler.assume_constant_result
def ready(device: str) -> bool:
    """Whether the operators work on `device` (`cpu`, `cuda`); the first call loads or builds them.

    Raises KernelError if they are required but not available.
    """
    state = _states.get(device)
    if state is None:
        with _lock:
            state = _states.get(device) or _prepared(device)
            if _may_build:
                _states[device] = state
    return state.ready and not _set_aside


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Within this block the PyTorch reference is used (in all threads), for comparisons."""
    global _set_aside
    _set_aside += 1
    try:
        yield
    finally:
        _set_aside -= 1


@contextlib.contextmanager
def nothing_built() -> Iterator[None]:
    """Within this block kernels are used if they exist, but not built."""
    global _may_build
    before, _may_build = _may_build, False
    try:
        yield
    finally:
        _may_build = before


def forget() -> None:
    """Make the next use check the setting, the cache and the compiler again."""
    _states.clear()


def describe(device: str) -> str:
    """The state of the kernels in words; builds nothing."""
    if mode() == "off":
        return f"off ({ENVIRONMENT})"
    if not wanted(device):
        return f"off: not yet run on any GPU; {ENVIRONMENT}=require uses them"
    if device in _loaded:
        return f"in use ({_loaded[device]})"
    recipe = build.recipe(device)
    if recipe.library.is_file():
        return f"built ({recipe.library})"
    if reason := build.remembered_failure(recipe):
        return f"none: {reason}"
    if cause := why_not_writable(build.cache_folder()):
        return f"none: {cause}"
    return "not built yet: made on first use, or by `wrangan doctor --build-kernels`"


def make(device: str) -> str:
    """Rebuild, regardless of recorded failures, and load; returns the library, raises BuildError."""
    with _lock:
        recipe = build.recipe(device)
        with build.building(recipe):
            path = build.build(recipe)
        _load(device, str(path))
        _states[device] = State(True, _loaded[device])
        return str(path)


def _prepared(device: str) -> State:
    if not wanted(device):
        return State(False, "off")
    required = mode() == "require"
    try:
        return State(True, _found_or_made(device, not required))
    except build.BuildError as error:
        reason = str(error)
        if required:
            raise KernelError(
                f"{ENVIRONMENT}=require, but there are no {device} kernels: {reason}"
            ) from error
        return State(False, reason)


def _found_or_made(device: str, tell: bool) -> str:
    if device in _loaded:
        return _loaded[device]
    recipe = build.recipe(device)
    # Without the lock: usually the library is complete, or a failure is recorded.
    if recipe.library.is_file():
        with contextlib.suppress(build.BuildError):
            return _load(device, str(recipe.library))
    if not _may_build:
        raise build.BuildError("not built")
    if reason := build.remembered_failure(recipe):
        raise build.BuildError(reason)
    try:
        with build.building(recipe):
            try:
                return _load(device, _made_by_anyone(device, recipe))
            except _KnownError:
                raise
            except build.BuildError as error:
                # Before releasing the lock, so that waiting processes see it.
                build.remember_failure(recipe, str(error))
                raise
    except _KnownError:
        raise
    except build.BuildError as error:
        if tell:
            _say(f"no {device} kernels ({error}): {COST}; reported only once")
        raise


class _KnownError(build.BuildError):
    """Another process has failed, and reported it, while this one waited."""


def _made_by_anyone(device: str, recipe: build.Recipe) -> str:
    if reason := build.remembered_failure(recipe):
        raise _KnownError(reason)
    if recipe.library.is_file():
        with contextlib.suppress(build.BuildError):
            return _load(device, str(recipe.library))
    _say(f"making the {device} kernels: once on this machine, about a minute")
    return str(build.build(recipe))


def _load(device: str, path: str) -> str:
    if device in _loaded:
        return _loaded[device]
    from wrangan_kernels import operators  # noqa: F401  (the schemas, before their implementations)

    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        raise build.BuildError(f"{path} does not load: {str(error).splitlines()[0][:200]}") from error
    if not torch._C._dispatch_has_kernel_for_dispatch_key("wrangan::upfirdn2d", device.upper()):
        raise build.BuildError(f"{path} has no operators")
    if name := _wrong(device):
        raise build.BuildError(f"{path} gives wrong results ({name})")
    _loaded[device] = path
    return path


def _wrong(device: str) -> str | None:
    """An operator that was built but does not work on this machine (verify.py); None if all do."""
    from wrangan_kernels import verify

    try:
        return verify.wrong(device)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"


def _say(line: str) -> None:
    """Log a line, which the commands, or otherwise Python, print on stderr."""
    logging.getLogger("wrangan").warning(line)
