"""The L-BFGS of a batch against dense formulas; images that go back, diverge or leave."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.fakes import codes_of, make_inverter
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.optimizers import FIRST_STEP, LBFGS, Adam, Optimizer, make_optimizer
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.folder import Model

Loss = Callable[[Tensor], Tensor]


def quadratic(batch: int, size: int, spread: float = 1.0) -> Loss:
    """½ xᵀAx − bᵀx for each image, A symmetric with eigenvalues from 10^−spread to 10^spread."""
    rng = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(batch, size, size, generator=rng, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.logspace(-spread, spread, size, dtype=torch.float64)) @ basis.mT
    wanted = torch.randn(batch, size, generator=rng, dtype=torch.float64)
    return lambda x: 0.5 * torch.einsum("bi,bij,bj->b", x, matrix, x) - (wanted * x).sum(dim=1)


def rosenbrock(x: Tensor) -> Tensor:
    """Its minimum, 0, is at (1, 1); the first steps of L-BFGS overshoot."""
    return (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2


def evaluate(loss: Loss, tensor: Tensor, optimizer: Optimizer) -> Tensor:
    optimizer.zero_grad()
    values = loss(tensor)
    values.sum().backward()
    return values


def run(loss: Loss, start: Tensor, steps: int, history: int = 5) -> Tensor:
    x = start.clone().requires_grad_(True)
    optimizer = LBFGS([{"params": [x], "lr": 1.0}], history)
    for _ in range(steps):
        optimizer.step(evaluate(loss, x, optimizer), (1.0, 1.0))
    optimizer.settle()
    return x.detach()


def test_direction_is_that_of_the_dense_update() -> None:
    """H ← (I − ρsyᵀ)H(I − ρysᵀ) + ρssᵀ over the pairs remembered, from H = (s·y / y·y) I."""
    size, history, batch = 7, 4, 3
    identity = torch.eye(size, dtype=torch.float64)
    loss = quadratic(batch, size)
    start = torch.randn(batch, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = start.clone().requires_grad_(True)
    optimizer = LBFGS([{"params": [x], "lr": 1.0}], history)
    point, gradient = start.detach().clone(), torch.zeros_like(start)
    pairs: list[list[tuple[Tensor, Tensor] | None]] = [[] for _ in range(batch)]
    gone_back = 0
    for number in range(12):
        values = evaluate(loss, x, optimizer)
        assert x.grad is not None
        trial, slope = x.detach().clone(), x.grad.clone()
        optimizer.step(values, (1.0, 1.0))
        for image in range(batch):
            now = start.detach()[image] + optimizer.point[image]
            taken = number == 0 or not torch.allclose(now, point[image], rtol=0, atol=1e-12)
            if number > 0:  # what goes back remembers nothing, and one pair less
                pair = (trial[image] - point[image], slope[image] - gradient[image])
                pairs[image].append(pair if taken else None)
            gone_back += not taken
            if taken:
                point[image], gradient[image] = trial[image], slope[image]
            known = [pair for pair in pairs[image][-history:] if pair is not None]
            inverse = identity * FIRST_STEP / gradient[image].norm()
            if known:
                s, y = known[-1]
                inverse = identity * (s @ y) / (y @ y)
            for s, y in known:
                turn = identity - torch.outer(s, y) / (s @ y)
                inverse = turn @ inverse @ turn.mT + torch.outer(s, s) / (s @ y)
            if taken:
                expected = point[image] - inverse @ gradient[image]
                torch.testing.assert_close(x.detach()[image], expected, atol=1e-8, rtol=1e-6)
    assert gone_back > 0
    assert gone_back < 12


def test_finds_minima() -> None:
    found = run(rosenbrock, torch.tensor([[-1.2, 1.0], [0.0, 3.0], [2.0, -2.0]], dtype=torch.float64), 120)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-5, rtol=0)


def test_a_trial_that_is_too_long_is_taken_back() -> None:
    """Only by going back is this start solved: the loss never rises from one taken point to the next."""
    x = torch.tensor([[-1.2, 1.0]], dtype=torch.float64).requires_grad_(True)
    optimizer = LBFGS([{"params": [x], "lr": 1.0}], 5)
    taken: list[float] = []
    tried: list[float] = []
    for _ in range(60):
        values = evaluate(rosenbrock, x, optimizer)
        tried.append(values.item())
        optimizer.step(values, (1.0, 1.0))
        assert optimizer.loss is not None
        taken.append(optimizer.loss.item())
    assert any(after > before for before, after in itertools.pairwise(tried))
    assert all(after <= before for before, after in itertools.pairwise(taken))
    optimizer.settle()
    assert rosenbrock(x.detach()).item() == pytest.approx(taken[-1])


def test_images_do_not_feel_each_other() -> None:
    start = torch.tensor([[-1.2, 1.0], [0.5, 0.4], [3.0, -1.0]], dtype=torch.float64)
    together = run(rosenbrock, start, 25)
    for image in range(3):
        alone = run(rosenbrock, start[image : image + 1], 25)
        torch.testing.assert_close(alone[0], together[image], atol=1e-9, rtol=1e-9)


def test_an_image_that_is_not_finite_does_not_disturb() -> None:
    def loss(x: Tensor) -> Tensor:
        return rosenbrock(x) * torch.tensor([1.0, float("nan")], dtype=torch.float64)

    start = torch.tensor([[-1.2, 1.0], [-1.2, 1.0]], dtype=torch.float64)
    found = run(loss, start, 120)
    torch.testing.assert_close(found[0], torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_rates_scale_the_variables() -> None:
    """With rates in the proportion 1 : 10 the steps are those of the scaled loss at equal rates."""
    loss = quadratic(2, 6)
    start = torch.randn(2, 6, dtype=torch.float64)
    first, second = start[:, :2].clone().requires_grad_(True), start[:, 2:].clone().requires_grad_(True)
    optimizer = LBFGS([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1.0}], 4)
    for _ in range(6):
        optimizer.zero_grad()
        values = loss(torch.cat([first, second], dim=1))
        values.sum().backward()
        optimizer.step(values, (1.0, 1.0))
    optimizer.settle()
    scale = torch.tensor([0.1, 0.1, 1, 1, 1, 1], dtype=torch.float64)
    plain = run(lambda u: loss(u * scale), start / scale, 6, history=4) * scale
    torch.testing.assert_close(torch.cat([first, second], dim=1).detach(), plain, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["adam", "lbfgs"])
def test_goes_on_where_it_was(kind: str) -> None:
    """Rows that stay move as in a batch in which nobody leaves."""

    def make() -> tuple[Variables, Optimizer]:
        torch.manual_seed(0)
        v = Variables(torch.randn(4, 3), epsilon={"a": torch.randn(4, 2, 2, 3, 3)})
        v.free = [t.requires_grad_(True) for t in (v.w, v.epsilon["a"])]
        groups = [{"params": [v.w], "lr": 0.1}, {"params": [v.epsilon["a"]], "lr": 0.3}]
        return v, Adam(groups) if kind == "adam" else LBFGS(groups, 3)

    def loss_of(v: Variables) -> Tensor:
        return v.w.pow(4).sum(dim=1) + v.epsilon["a"].cosh().sum(dim=(1, 2, 3, 4))

    def step(v: Variables, optimizer: Optimizer, kept: Tensor | None = None) -> Variables:
        optimizer.zero_grad()
        loss = loss_of(v)
        loss.sum().backward()
        if kept is not None:
            v = v.select(kept)
            optimizer.keep(v.free, kept)
            loss = loss[kept]
        optimizer.step(loss, (1.0, 1.0))
        return v

    whole, reference = make()
    part, optimizer = make()
    rows = torch.tensor([1, 3])
    for number in range(6):
        step(whole, reference)
        part = step(part, optimizer, rows if number == 3 else None)
    torch.testing.assert_close(part.w, whole.w[rows], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(part.epsilon["a"], whole.epsilon["a"][rows], atol=1e-6, rtol=1e-5)
    assert [id(t) for t in part.free] == [id(part.w), id(part.epsilon["a"])]


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning"])
def test_lbfgs_gets_further_in_as_many_steps(tiny_model: Model, method: str) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    settings = {"method": method, "steps": 40, "lr": 1e-3, "epsilon_lr": 1e-2}
    ends = {}
    for optimizer in ("adam", "lbfgs"):
        codes = codes_of(make_inverter(tiny_model, **settings, optimizer=optimizer).invert(images))
        ends[optimizer] = sum(code.info["distortion"]["after"]["mse"] for code in codes)
        assert all(code.info["settings"]["optimizer"] == optimizer for code in codes)
    assert ends["lbfgs"] < ends["adam"]


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="and decay, which are Adam's"):
        inversion_settings(optimizer="lbfgs", warmup=0.1)
    with pytest.raises(UsageError, match="optimizer 'sgd'"):
        inversion_settings(optimizer="sgd")
    # The projector has a schedule of its own, and keeps Adam.
    with pytest.raises(UsageError, match="method sg2-w has no setting optimizer"):
        inversion_settings("sg2-w", optimizer="lbfgs")
    w = torch.zeros(1, 2)
    assert isinstance(make_optimizer(inversion_settings("sg2-w"), [{"params": [w], "lr": 0.1}], w.sum), Adam)
