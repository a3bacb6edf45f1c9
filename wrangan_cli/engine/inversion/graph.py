"""The step of an inversion as a captured CUDA graph: one launch per step, and no work for the host.

A captured step must find its inputs at the addresses at which they were captured, and anything that changes
between steps must be on the GPU. This suits methods whose steps differ only in their learning rates
(wrangan, weight-tuning), if no image stops early (no stop_at): see `why_not_captured`.
"""

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import cause_of
from wrangan_cli.engine.base.runtime import adam
from wrangan_cli.engine.inversion.settings import InversionSettings, TuningSettings

WARM_UP = 4
"""Number of ordinary steps before the capture, in which libraries choose their algorithms and Adam allocates
its moments. They count like all others."""
SAME_STEP = 0.05
"""The first replay is accepted if every tensor differs from the ordinary step's result by at most this
fraction of the step's change. (Where a gradient is nothing but rounding error, Adam turns it into whole
steps, so the two never agree exactly.)"""
_log = logging.getLogger("wrangan")


def why_not_captured(settings: InversionSettings, device: torch.device) -> str | None:
    """Why the steps of such an inversion cannot be replayed; None if they can.

    A step must not depend on the host: neither to find out which images are done (stop_at), nor for its
    length (lbfgs), nor for random numbers (the projector, pti).
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    if not isinstance(settings, TuningSettings):
        return f"method {settings.method} is neither wrangan nor weight-tuning"
    if settings.value("optimizer") != "adam":
        return f"optimizer {settings.optimizer} chooses its step length on the host"
    if settings.stop_at:
        return "stop_at checks on the host, after each step, which photographs are done"
    return None


def capturable_adam(groups: Iterable[dict[str, Any]], device: torch.device) -> torch.optim.Adam:
    """Adam over parameter groups (each with an `lr`), with its learning rates on `device`, so that a
    captured step sees them change."""
    moved = [
        {**group, "lr": torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)}
        for group in groups
    ]
    return adam(moved, capturable=device.type == "cuda")


def changed_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that a step of `optimizer` changes: the parameters and their optimizer state."""
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    remembered = [v for p in parameters for v in optimizer.state[p].values() if isinstance(v, Tensor)]
    return [*parameters, *remembered]


def set_rates(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    """Set the learning rate of each group of `capturable_adam`, without waiting for the GPU."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"].fill_(rate)


class Steps:
    """Repeats one step: the first WARM_UP times as an ordinary step, then as a captured graph.

    step: a function without arguments or result that takes the whole step, from clearing the gradients
    (set_to_none) to optimizer.step(). It must not wait for the GPU, nor read changing numbers from the host.
    state: returns all tensors that the step changes and that outlive it; called after the WARM_UP. Before the
    graph is used, one step is taken both ways from the same state. If capturing fails, or the two results
    differ, a warning in the log says why, and ordinary steps are taken.

    The graph holds its memory until the object is freed: call `close`, or use a `with` block.
    """

    def __init__(
        self,
        step: Callable[[], None],
        state: Callable[[], Sequence[Tensor]],
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._step = step
        self._state = state
        self._capture = capture or captured
        self._replay: Callable[[], None] | None = None
        self._taken = 0
        self._side = torch.cuda.Stream() if capture is None else None
        """PyTorch requires the steps before a capture to run on a side stream."""

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def replays(self) -> bool:
        """Whether the following steps replay the graph."""
        return self._replay is not None

    def __call__(self) -> None:
        """Take one step."""
        self._taken += 1
        if self._taken == WARM_UP + 1:
            self._first_replay()
        elif self._replay is not None:
            self._replay()
        elif self._side is not None and self._taken <= WARM_UP:
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                self._step()
            torch.cuda.current_stream().wait_stream(self._side)
        else:
            self._step()

    def close(self) -> None:
        """Free the graph and its memory; further steps are ordinary ones."""
        self._replay = None
        self._taken = max(self._taken, WARM_UP + 1)

    def _first_replay(self) -> None:
        """Take one ordinary step and, if it can be captured, the same step again as a replay."""
        try:
            replay = self._capture(self._step)
        except (RuntimeError, ValueError) as error:
            cause = cause_of(error)
            _log.warning(
                "the step could not be captured as a CUDA graph (%s): continuing without, slower", cause
            )
            self._step()
            return
        state = self._state()
        before = [tensor.detach().clone() for tensor in state]
        self._step()
        after = [tensor.detach().clone() for tensor in state]
        _put(before, state)
        replay()
        # A NaN counts as a difference.
        same = [
            torch.linalg.vector_norm(new - got) <= SAME_STEP * torch.linalg.vector_norm(new - old)
            for old, new, got in zip(before, after, state, strict=True)
        ]
        if not bool(torch.stack(same).all()):
            _put(after, state)
            _log.warning("the captured CUDA graph does not reproduce the step: continuing without, slower")
            return
        self._replay = replay


@torch.no_grad()
def _put(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        tensor.copy_(value)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """A function that replays `step` on the current CUDA device. Capturing does not execute the step.

    Raises RuntimeError if the step does something that cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # Freeing a tensor during the capture would end it.
    gc.collect()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def gradient_step(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], after: Callable[[], None] | None = None
) -> Callable[[], None]:
    """A step for `Steps`: one of `optimizer` on the sum of `loss()` (B,), then `after`; all in place."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().sum().backward()
        optimizer.step()
        if after is not None:
            after()

    return step
