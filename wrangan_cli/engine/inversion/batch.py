"""The images of a batch that still take steps; those that are done leave it."""

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
    """The images that still take steps, and the results of those that are done."""

    variables: Variables
    images: Tensor
    target: Target
    rows: Tensor
    """Their indices in the whole batch, on the CPU: (b,)."""
    steps: list[int]
    """Steps taken by every image of the whole batch."""
    progress: float = 0.0
    """Fraction of the steps done, 0…1."""
    losses: list[Tensor] = field(default_factory=list)
    """Those of the last steps, (b,) each, if a plateau is to be detected."""
    done: list[tuple[Tensor, Variables]] = field(default_factory=list)
    """Indices and variables of the images that left together."""

    def part(self, rows: slice) -> "Batch":
        """Some of the images, as views: their gradients add to those of the whole batch, which must
        already exist."""
        variables = self.variables.select(rows)
        for whole, some in zip(self.variables.free, variables.free, strict=True):
            assert whole.grad is not None
            some.requires_grad_(True).grad = whole.grad[rows]
        target = None if self.target is None else [features[rows] for features in self.target]
        return Batch(variables, self.images[rows], target, self.rows[rows], [], self.progress)

    def remove(self, done: Tensor, step: int, optimizer: Optimizer) -> None:
        """Remove the images where `done` (b,) is true, after `step` steps; the optimizer keeps the others."""
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

    def falling(self, loss: Tensor, fraction: float, stay: Tensor | None) -> Tensor | None:
        """Which of the images in `stay` (None: all) go on: those whose mean loss (b,) over the last WINDOW
        steps is lower, by more than this fraction, than over the WINDOW before. An image leaves only at a
        step whose loss is no worse than that mean."""
        self.losses = [*self.losses, loss.detach()][-2 * WINDOW :]
        if len(self.losses) < 2 * WINDOW:
            return stay
        before, now = (torch.stack(part).mean(dim=0) for part in (self.losses[:WINDOW], self.losses[WINDOW:]))
        going = ~((now > before * (1 - fraction)) & (loss.detach() <= now))
        return not_all(going if stay is None else going & stay)

    def finished(self) -> Variables:
        """The variables of all images, in order, no longer optimised."""
        for tensor in self.variables.free:
            tensor.requires_grad_(False)
        if not self.done:
            return self.variables
        rows, parts = zip(*self.done, (self.rows, self.variables), strict=True)
        return joined(parts, torch.cat(rows).argsort())


def not_yet(distance: Tensor | None, stop_at: float | None) -> Tensor | None:
    """Which images go on, (B,) of bool; None if all do."""
    if not stop_at or distance is None:
        return None
    stay = ~(distance.detach() <= stop_at)  # an image that is not finite goes on, and is reported at the end
    return not_all(stay)


def not_all(stay: Tensor) -> Tensor | None:
    """`stay`, (B,) of bool, or None if it is true for all."""
    return None if bool(stay.all()) else stay
