"""The optimizers of the loop: Adam (paper, Algorithm 1), or one L-BFGS per image of a batch.

Both move each image independently, so no image depends on its batch.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wrangan_cli.engine.base.runtime import adam
from wrangan_cli.engine.inversion.curvature import Metric, Rates, estimate_metric
from wrangan_cli.engine.inversion.learning_rates import Groups
from wrangan_cli.engine.inversion.settings import InversionSettings, TuningSettings

FIRST_STEP = 0.1
"""Length of the first step of L-BFGS, in the scaled variables; the curvature is not known yet."""
SUFFICIENT = 1e-4
"""A step is accepted if it lowers the loss by this fraction of what the slope predicts (Armijo)."""
CURVED = 1e-12
"""A pair (s, y) is stored if s·y exceeds this."""


class Optimizer(Protocol):
    """Moves the free tensors of a batch, in place, along the gradients in their `.grad`."""

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def step(self, loss: Tensor, factors: tuple[float, float]) -> None:
        """Take one step. loss: (B,), at the point of the gradients; factors: of the first group's learning
        rate and of those of the others."""

    def keep(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        """Continue with `tensors`, which hold only these images of the previous tensors."""

    def settle(self) -> None:
        """After the last step: set the tensors to the best point known."""


class Adam:
    """torch's Adam, keeping the moments of the images that stay."""

    def __init__(self, groups: Groups) -> None:
        self.adam = adam(groups)
        self.rates = [group["lr"] for group in self.adam.param_groups]

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    def step(self, loss: Tensor, factors: tuple[float, float]) -> None:  # noqa: ARG002
        for index, (group, full) in enumerate(zip(self.adam.param_groups, self.rates, strict=True)):
            group["lr"] = full * factors[min(index, 1)]
        self.adam.step()

    def keep(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        before = [tensor for group in self.adam.param_groups for tensor in group["params"]]
        swapped = {id(old): new for old, new in zip(before, tensors, strict=True)}
        for old, new in zip(before, tensors, strict=True):
            _take_gradient(old, new, rows)
            state = self.adam.state.pop(old, None)
            if state is not None:
                self.adam.state[new] = {
                    # The step count is one number for all images.
                    name: value[rows] if isinstance(value, Tensor) and value.shape == old.shape else value
                    for name, value in state.items()
                }
        for group in self.adam.param_groups:
            group["params"] = [swapped[id(tensor)] for tensor in group["params"]]

    def settle(self) -> None:
        """Adam's last point is its result."""


class LBFGS:
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.4) for each image, in lockstep.

    Each call of `step` receives one evaluation and moves to the next point to try. If a trial did
    not lower an image's loss enough, that image goes back and tries a shorter step, while the others
    go on. All inner products come from one Gram matrix of (S, Y, g) (Chen et al. 2014, "vector-free"),
    so a step reads the history twice. The history of B images of N numbers takes (2·history + 1)·B·N
    floats.

    It moves z; the tensors are their initial values + T z. `metric` is T; if None, T is proportional to
    the groups' learning rates. The `factors` of `step` are ignored: the line search decides.
    """

    def __init__(self, groups: Groups, history: int, metric: Metric | None = None) -> None:
        if history < 1:
            raise ValueError(f"history {history}: expected 1 or more")
        self.tensors: list[Tensor] = [tensor for group in groups for tensor in group["params"]]
        self.metric: Metric = metric or Rates(groups)
        self.origin = [tensor.detach().clone() for tensor in self.tensors]
        sizes = [tensor[0].numel() for tensor in self.tensors]
        first = self.tensors[0]
        self.sizes, self.history = sizes, history
        batch, rows = first.shape[0], 2 * history + 1
        self.point = first.new_zeros(batch, sum(sizes)).detach()
        """z: (B, N)."""
        self.basis = first.new_zeros(batch, rows, sum(sizes)).detach()
        """S in the first rows, Y in the next, the gradient at `point` in the last: (B, 2m + 1, N)."""
        self.gram = first.new_zeros(batch, rows, rows).detach()
        self.valid = torch.zeros(batch, history, dtype=torch.bool, device=first.device)
        self.count = 0
        """Evaluations since the first; pair number i is in slot i mod m."""
        self.loss: Tensor | None = None
        self.slope = first.new_zeros(batch).detach()
        self.direction = torch.zeros_like(self.point)
        self.length = torch.ones_like(self.slope)

    def zero_grad(self) -> None:
        for tensor in self.tensors:
            tensor.grad = None

    @torch.no_grad()
    def step(self, loss: Tensor, factors: tuple[float, float]) -> None:  # noqa: ARG002
        loss = loss.detach()
        gradient = torch.cat([g.flatten(1) for g in self.metric([_gradient(t) for t in self.tensors])], dim=1)
        m = self.history
        if self.loss is None:
            self.loss = loss.clone()
            self._remember({2 * m: gradient})
            self.direction, self.slope = self._downhill()
        else:
            taken = loss <= self.loss + SUFFICIENT * self.length * self.slope  # false where it is not finite
            moved = torch.where(taken[:, None], self.length[:, None] * self.direction, 0)
            turned = torch.where(taken[:, None], gradient - self.basis[:, 2 * m], 0)
            shorter = self._shorter(loss)
            self.point += moved
            self.loss = torch.where(taken, loss, self.loss)
            slot = self.count % m
            self.count += 1
            kept = torch.where(taken[:, None], gradient, self.basis[:, 2 * m])
            # An image that goes back leaves its slot empty, so that all images share the order of slots.
            self.valid[:, slot] = taken & ((moved * turned).sum(dim=1) > CURVED)
            self._remember({slot: moved, m + slot: turned, 2 * m: kept})
            direction, slope = self._downhill()
            self.direction = torch.where(taken[:, None], direction, self.direction)
            self.slope = torch.where(taken, slope, self.slope)
            self.length = torch.where(taken, 1.0, shorter)
        self._place(self.point + self.length[:, None] * self.direction)

    def keep(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        for old, new in zip(self.tensors, tensors, strict=True):
            _take_gradient(old, new, rows)
        self.tensors = list(tensors)
        self.origin = [start[rows] for start in self.origin]
        self.metric.keep(rows)
        for name in ("point", "basis", "gram", "valid", "slope", "direction", "length"):
            setattr(self, name, getattr(self, name)[rows])
        self.loss = None if self.loss is None else self.loss[rows]

    @torch.no_grad()
    def settle(self) -> None:
        """Return to the last point that lowered the loss; the trial after it has not been evaluated."""
        self._place(self.point)

    def _place(self, z: Tensor) -> None:
        parts = [p.reshape(t.shape) for p, t in zip(z.split(self.sizes, dim=1), self.tensors, strict=True)]
        for tensor, start, part in zip(self.tensors, self.origin, self.metric(parts), strict=True):
            torch.add(start, part, out=tensor.data)

    def _remember(self, rows: dict[int, Tensor]) -> None:
        """Write these rows of the basis, and update their inner products with all rows."""
        for row, values in rows.items():
            self.basis[:, row] = values
        # In this order: twice as fast on the CPU as basis @ new.
        products = torch.stack(list(rows.values()), dim=1) @ self.basis.mT
        for index, row in enumerate(rows):
            self.gram[:, row], self.gram[:, :, row] = products[:, index], products[:, index]

    def _downhill(self) -> tuple[Tensor, Tensor]:
        """−H·g and its slope, by the two-loop recursion on coefficients of the basis."""
        m, gram = self.history, self.gram
        coefficients = torch.zeros_like(gram[:, 0])
        coefficients[:, 2 * m] = 1
        newest_first = [(self.count - 1 - back) % m for back in range(min(self.count, m))]
        size = FIRST_STEP / gram[:, 2 * m, 2 * m].sqrt().clamp_min(1e-30)
        known = torch.zeros_like(self.valid[:, 0])
        alphas: dict[int, Tensor] = {}
        for slot in newest_first:
            valid, curvature = self.valid[:, slot], gram[:, slot, m + slot]
            alpha = (coefficients * gram[:, slot]).sum(dim=1) / curvature
            alphas[slot] = torch.where(valid, alpha, 0)
            coefficients[:, m + slot] -= alphas[slot]
            size = torch.where(valid & ~known, curvature / gram[:, m + slot, m + slot], size)
            known = known | valid
        coefficients = coefficients * size[:, None]
        for slot in reversed(newest_first):
            beta = (coefficients * gram[:, m + slot]).sum(dim=1) / gram[:, slot, m + slot]
            coefficients[:, slot] += alphas[slot] - torch.where(self.valid[:, slot], beta, 0)
        direction = -(coefficients[:, None] @ self.basis)[:, 0]
        return direction, -(coefficients * gram[:, 2 * m]).sum(dim=1)

    def _shorter(self, loss: Tensor) -> Tensor:
        """Step length at the minimum of the parabola through value and slope here and the value there."""
        assert self.loss is not None
        excess = (loss - self.loss - self.slope * self.length).clamp_min(1e-30)
        fitted = -self.slope * self.length.square() / (2 * excess)
        bounded = torch.maximum(torch.minimum(fitted, 0.5 * self.length), 0.1 * self.length)
        return torch.where(bounded.isfinite(), bounded, 0.1 * self.length)


def make_optimizer(settings: InversionSettings, groups: Groups, render: Callable[[], Tensor]) -> Optimizer:
    """The optimizer that `settings` name, over `groups`; Adam for methods without that setting. render:
    returns the images (B, 3, R, R) at the current values of the tensors."""
    if not isinstance(settings, TuningSettings) or settings.value("optimizer") == "adam":
        return Adam(groups)
    if not settings.probes:
        return LBFGS(groups, settings.history)
    tensors = [tensor for group in groups for tensor in group["params"]]
    metric = estimate_metric(render, tensors, settings.probes)
    metric.fix([group["lr"] == 0 for group in groups for _ in group["params"]])
    return LBFGS(groups, settings.history, metric)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _take_gradient(old: Tensor, new: Tensor, rows: Tensor) -> None:
    new.requires_grad_(True)
    if old.grad is not None:
        new.grad = old.grad[rows]
