"""The optimisation loop that all methods share.

A method writes its algorithm as a `for` over the loop, and calls `Loop.minimise` with its loss in the body.
The loop takes care of what the algorithms do not mention: finished images are removed from the batch, a batch
that is too large is computed in parts, and the step may be a captured CUDA graph. All images of a batch are
optimised together but independently: losses are summed over the batch, the optimizer treats each image
separately, and every random sample is the same for every image.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wrangan_cli.engine.base.cores import on_cores
from wrangan_cli.engine.inversion import graph
from wrangan_cli.engine.inversion.batch import Batch, above_threshold, none_if_all
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.learning_rates import LearningRates, settled_from
from wrangan_cli.engine.inversion.optimizers import make_optimizer
from wrangan_cli.engine.inversion.settings import OptimisingSettings, TuningSettings
from wrangan_cli.engine.inversion.variables import Variables

Loss = Callable[[Fit[Any], Batch], tuple[Tensor, Tensor | None]]
"""The loss of a method, and the perceptual distance in it (if there is one), per image: (b,)."""


class Result(NamedTuple):
    """The result of a method for the images of a batch."""

    variables: Variables
    steps: list[int]
    """Number of steps of each image."""


class Loop:
    """Iterates over the steps; yields the progress, the fraction of the steps done, before each.

    variables: what the loss depends on; the tensors in `rates` are changed in place. The loop ends
    early when all images are done (settings.stop_at, settings.plateau).
    """

    def __init__(self, fit: Fit[OptimisingSettings], variables: Variables, rates: LearningRates) -> None:
        self.fit, self.rates = fit, rates
        variables.free = rates.free
        self.total = fit.settings.loop_steps if variables.free else 0
        self.step = 0
        count = len(fit.images)
        self.batch = Batch(variables, fit.images, fit.target, torch.arange(count), [self.total] * count)
        self._replayed: graph.Steps | None = None
        if self.total == 0:
            return
        for tensor in variables.free:
            tensor.requires_grad_(True)
        if not fit.cuda_graph:
            self.optimizer = make_optimizer(fit.settings, rates.groups, lambda: fit.synthesized(variables))

    def __iter__(self) -> Iterator[float]:
        try:
            for step in range(self.total):
                self.step, self.batch.progress = step, step / self.total
                yield self.batch.progress
                if len(self.batch.rows) == 0:
                    return
                self.fit.on_step(step + 1)
                if self._stopped_by_watch(step + 1):
                    break
            if self.total and not self.fit.cuda_graph:
                self.optimizer.settle()
        finally:
            self._close()

    def _stopped_by_watch(self, done: int) -> bool:
        """Whether `watch` stops the optimisation here, after `done` steps of the remaining images."""
        watch, batch = self.fit.watch, self.batch
        if watch is None or watch(lambda side: self.fit.preview(batch.variables, side)):
            return False
        for row in batch.rows.tolist():
            batch.steps[row] = done
        return True

    def minimise(self, loss: Loss) -> None:
        """Remove the finished images, and take one step of the optimizer on `loss`, which must be the same
        function at every step."""
        if self.fit.cuda_graph:
            self._replay(loss)
            return
        settings, batch = self.fit.settings, self.batch
        self.optimizer.zero_grad()
        values, active = self._backward(loss, batch)
        if settings.plateau and batch.progress >= settled_from(settings):
            active = batch.still_improving(values, settings.plateau, active)
        if active is not None:
            batch.remove(~active, self.step, self.optimizer)
            values = values[active]
            if len(batch.rows) == 0:
                return
        self.optimizer.step(values, self.rates.factors(batch.progress))

    def result(self) -> Result:
        """The variables of all images, in order, no longer optimised."""
        return Result(self.batch.finished(), self.batch.steps)

    def _backward(self, loss: Loss, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss of each image (b,), and which images have not reached `stop_at`, if set. Their gradients
        are left in the free variables; images that have reached it get none."""
        count, at_once = len(batch.rows), self.fit.at_once
        if count <= at_once:
            values, distance = loss(self.fit, batch)
            active = above_threshold(distance, self.fit.settings.stop_at)
            remaining = values if active is None else values[active]
            if len(remaining):
                remaining.sum().backward()
            return values, active
        for tensor in batch.variables.free:
            tensor.grad = torch.zeros_like(tensor)
        rng = self.fit.rng
        state = rng.get_state()

        def computed(first: int) -> tuple[Tensor, Tensor]:
            # The same samples for every image, as if all were computed together.
            rng.set_state(state)
            values, active = self._backward(loss, batch.part(slice(first, first + at_once)))
            return values.detach(), torch.ones_like(values, dtype=torch.bool) if active is None else active

        # Not in threads: other methods draw random numbers in a step, or change the network for each image.
        each = on_cores if isinstance(self.fit.settings, TuningSettings) else map
        losses, masks = zip(*each(computed, range(0, count, at_once)), strict=True)
        return torch.cat(losses), none_if_all(torch.cat(masks))

    def _replay(self, loss: Loss) -> None:
        """Take one step of Adam by replaying the captured one."""
        if self._replayed is None:
            self._full = [group["lr"] for group in self.rates.groups]
            self._adam = graph.capturable_adam(self.rates.groups, self.fit.model.device)
            # Steps that depend on the progress are not captured: `why_not_captured`.
            step = graph.gradient_step(self._adam, lambda: loss(self.fit, self.batch)[0])
            self._replayed = graph.Steps(step, lambda: graph.changed_by(self._adam))
        first, later = self.rates.factors(self.batch.progress)
        factors = [first, *[later] * (len(self._full) - 1)]
        graph.set_rates(self._adam, [rate * f for rate, f in zip(self._full, factors, strict=True)])
        try:
            self._replayed()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        """Free the memory of a captured graph."""
        if self._replayed is not None:
            self._replayed.close()
