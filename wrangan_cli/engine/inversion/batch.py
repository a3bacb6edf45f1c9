"""The images of a batch that are still being optimised; finished ones are removed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wrangan_cli.engine.inversion.optimizers import Optimizer
from wrangan_cli.engine.inversion.variables import Variables, joined

Target = list[Tensor] | None
WINDOW = 20
"""Steps over which losses are averaged to detect a plateau."""


@dataclass
class Batch:
    """The images that are still being optimised, and the results of the finished ones."""

    variables: Variables
    images: Tensor
    target: Target
    rows: Tensor
    """Indices of these images in the original batch, on the CPU: (b,)."""
    steps: list[int]
    """Number of steps of each image of the original batch."""
    progress: float = 0.0
    """Fraction of the steps done, 0…1."""
    losses: list[Tensor] = field(default_factory=list)
    """Losses of the last steps, (b,) each; recorded only to detect a plateau."""
    done: list[tuple[Tensor, Variables]] = field(default_factory=list)
    """Finished images: indices and variables of each group that was removed together."""

    def part(self, rows: slice) -> "Batch":
        """Some of the images, as views whose gradients accumulate in those of the whole batch, which must
        already exist."""
        variables = self.variables.select(rows)
        for whole, some in zip(self.variables.free, variables.free, strict=True):
            assert whole.grad is not None
            some.requires_grad_(True).grad = whole.grad[rows]
        target = None if self.target is None else [features[rows] for features in self.target]
        return Batch(variables, self.images[rows], target, self.rows[rows], [], self.progress)

    def remove(self, done: Tensor, step: int, optimizer: Optimizer) -> None:
        """Remove the images where `done` (b,) is true, also from the optimizer, after `step` steps."""
        leaving, kept = done.nonzero().flatten(), (~done).nonzero().flatten()
        rows = self.rows[leaving.cpu()]
        self.done.append((rows, self.variables.select(leaving)))
        for row in rows.tolist():
            self.steps[row] = step
        left = self.variables.select(kept)
        optimizer.keep(left.free, kept)
        self.variables, self.images, self.rows = left, self.images[kept], self.rows[kept.cpu()]
        self.target = None if self.target is None else [features[kept] for features in self.target]
        self.losses = [loss[kept] for loss in self.losses]

    def still_improving(self, loss: Tensor, fraction: float, active: Tensor | None) -> Tensor | None:
        """Which of the images in `active` (None: all) to continue: those whose mean loss (b,) over the last
        WINDOW steps is lower by more than `fraction` than over the WINDOW steps before. An image stops only
        at a step whose loss is no worse than that mean."""
        self.losses = [*self.losses, loss.detach()][-2 * WINDOW :]
        if len(self.losses) < 2 * WINDOW:
            return active
        before, now = (torch.stack(part).mean(dim=0) for part in (self.losses[:WINDOW], self.losses[WINDOW:]))
        improving = ~((now > before * (1 - fraction)) & (loss.detach() <= now))
        return none_if_all(improving if active is None else improving & active)

    def finished(self) -> Variables:
        """The variables of all images, in order, no longer optimised."""
        for tensor in self.variables.free:
            tensor.requires_grad_(False)
        if not self.done:
            return self.variables
        rows, parts = zip(*self.done, (self.rows, self.variables), strict=True)
        return joined(parts, torch.cat(rows).argsort())


def above_threshold(distance: Tensor | None, stop_at: float | None) -> Tensor | None:
    """Which images are still to be optimised, (B,) of bool; None: all of them."""
    if not stop_at or distance is None:
        return None
    # An image that is not finite continues, and is reported at the end.
    return none_if_all(~(distance.detach() <= stop_at))


def none_if_all(active: Tensor) -> Tensor | None:
    """`active`, (B,) of bool, or None if it is true for all images."""
    return None if bool(active.all()) else active
