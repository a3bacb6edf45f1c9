"""The metric of L-BFGS against dense formulas."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch import Tensor

from tests.fakes import codes_of, images_of, make_inverter
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion.curvature import (
    FACTOR_POWER,
    FLOOR,
    LAYER_POWER,
    W_POWER,
    estimate_metric,
)
from wrangan_cli.engine.inversion.optimizers import LBFGS
from wrangan_cli.engine.models.folder import Model

BATCH, PROBES = 2, 3
W, LAYER, OTHER = (4,), (3, 5, 2, 2), (2, 3, 1, 1)


class Linear:
    """Images (B, 3, 4, 4) that are linear in w and two layers, with another matrix for each image."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.unknowns = [torch.randn(BATCH, *shape, dtype=torch.float64) for shape in (W, LAYER, OTHER)]
        self.matrices = []
        for unknown in self.unknowns:
            count = unknown[0].numel()
            matrix = torch.randn(BATCH, 48, count, dtype=torch.float64)
            self.matrices.append(matrix * torch.logspace(-1, 1, count, dtype=torch.float64))
            unknown.requires_grad_(True)

    def draw(self) -> Tensor:
        parts = [m @ x.flatten(1)[:, :, None] for m, x in zip(self.matrices, self.unknowns, strict=True)]
        return torch.stack(parts).sum(dim=0).reshape(BATCH, 3, 4, 4)


def powered(moment: Tensor, power: float) -> np.ndarray:
    matrix = moment.numpy()
    matrix = matrix / (np.trace(matrix) / len(matrix)) + FLOOR * np.eye(len(matrix))
    return np.real(fractional_matrix_power(matrix, power))


def dense(problem: Linear, image: int) -> list[np.ndarray]:
    """T of each unknown as a matrix, from Jᵀv of the same random images."""
    rng = random_generator(0)
    probes = torch.stack([torch.randn(3, 4, 4, generator=rng) for _ in range(PROBES)]).double().flatten(1)
    gradients = [probes @ matrix[image] for matrix in problem.matrices]
    means = [gradient.square().mean().item() for gradient in gradients]
    layers = [g.square().sum().item() for g in gradients[1:]]
    overall = sum(layers) / PROBES / sum(g.shape[1] for g in gradients[1:])
    made = [np.eye(W[0]) * (means[0] / overall + 1e-6) ** W_POWER]
    for shape, gradient, mean in zip((LAYER, OTHER), gradients[1:], means[1:], strict=True):
        g = gradient.reshape(PROBES, shape[0], shape[1], -1)
        moments = [
            torch.einsum("poit,pqit->oq", g, g) / PROBES,
            torch.einsum("poit,pojt->ij", g, g) / PROBES,
            torch.einsum("poit,poiu->tu", g, g) / PROBES,
        ]
        rows, columns, taps = (powered(moment, FACTOR_POWER) for moment in moments)
        made.append(np.kron(np.kron(rows, columns), taps) * (mean / overall + 1e-6) ** LAYER_POWER)
    return made


def test_the_metric_is_a_kronecker_product_of_powers_of_moments() -> None:
    problem = Linear()
    metric = estimate_metric(problem.draw, problem.unknowns, PROBES)
    z = [torch.randn_like(unknown) for unknown in problem.unknowns]
    got = metric(z)
    for image in range(BATCH):
        for matrix, given, found in zip(dense(problem, image), z, got, strict=True):
            expected = torch.from_numpy(matrix) @ given[image].flatten()
            torch.testing.assert_close(found[image].flatten(), expected, atol=1e-9, rtol=1e-8)
    metric.keep(torch.tensor([1]))
    for kept, found in zip(metric([x[1:] for x in z]), got, strict=True):
        torch.testing.assert_close(kept, found[1:])


def test_steps_are_those_of_plain_lbfgs_in_the_units_of_the_metric() -> None:
    problem = Linear()
    torch.manual_seed(1)
    photograph = torch.randn(BATCH, 3, 4, 4, dtype=torch.float64)
    start = [unknown.detach().clone() for unknown in problem.unknowns]
    matrices = [[torch.from_numpy(m) for m in dense(problem, image)] for image in range(BATCH)]

    def moved(z: Tensor) -> list[Tensor]:
        parts = z.split([x[0].numel() for x in start], dim=1)
        return [
            x + torch.stack([matrices[b][i] @ part[b] for b in range(BATCH)]).reshape(x.shape)
            for i, (x, part) in enumerate(zip(start, parts, strict=True))
        ]

    def loss() -> Tensor:
        return (problem.draw() - photograph).square().mean(dim=(1, 2, 3))

    metric = estimate_metric(problem.draw, problem.unknowns, PROBES)
    optimizer = LBFGS([{"params": problem.unknowns, "lr": 1.0}], 4, metric)
    ends = []
    for _ in range(7):
        optimizer.zero_grad()
        values = loss()
        values.sum().backward()
        optimizer.step(values, (1.0, 1.0))
        ends.append(values.detach())
    optimizer.settle()
    found = [unknown.detach().clone() for unknown in problem.unknowns]

    z = torch.zeros(BATCH, sum(x[0].numel() for x in start), dtype=torch.float64, requires_grad=True)
    plain = LBFGS([{"params": [z], "lr": 1.0}], 4)
    for number in range(7):
        plain.zero_grad()
        problem.unknowns = moved(z)
        values = loss()
        torch.testing.assert_close(values.detach(), ends[number], atol=1e-9, rtol=1e-7)
        values.sum().backward()
        plain.step(values, 1.0)
    plain.settle()
    for mine, expected in zip(found, moved(z.detach()), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning"])
def test_it_gets_further_than_without(tiny_model: Model, method: str) -> None:
    few = {"method": method, "optimizer": "lbfgs", "steps": 15, "epsilon_lr": 1e-2}
    ends = [
        sum(
            code.info["distortion"]["after"]["mse"]
            for code in codes_of(make_inverter(tiny_model, **few, probes=n).invert(images_of()))
        )
        for n in (0, 4)
    ]
    assert ends[1] < ends[0]


@pytest.mark.parametrize("probes", [0, 2])
def test_a_rate_of_0_keeps_its_variables_where_they_are(tiny_model: Model, probes: int) -> None:
    few = {"optimizer": "lbfgs", "steps": 4, "probes": probes, "epsilon_init": 0.0}
    (code,) = codes_of(make_inverter(tiny_model, **few, lr=0.0, epsilon_lr=0.01).invert(images_of(1)))
    torch.testing.assert_close(code.w, tiny_model.w_mean, rtol=0, atol=0)
    assert any(epsilon.any() for epsilon in code.epsilon.values())
    (code,) = codes_of(make_inverter(tiny_model, **few, lr=0.01, epsilon_lr=0.0).invert(images_of(1)))
    assert not torch.equal(code.w, tiny_model.w_mean)
    assert not any(epsilon.any() for epsilon in code.epsilon.values())
    (code,) = codes_of(make_inverter(tiny_model, **few, lr=0.0, epsilon_lr=0.0).invert(images_of(1)))
    torch.testing.assert_close(code.w, tiny_model.w_mean, rtol=0, atol=0)


def test_an_image_that_is_not_finite_leaves_the_others_their_metric(tiny_model: Model) -> None:
    inverter = make_inverter(tiny_model, optimizer="lbfgs", steps=4)
    images = images_of(3)
    expected = codes_of(inverter.invert(images))
    broken = tiny_model.w_mean.repeat(3, 1)
    broken[1] = float("nan")
    object.__setattr__(inverter, "encoder", lambda given: broken[: len(given)])
    results = inverter.invert(images)
    assert isinstance(results[1], WranganError)
    for index in (0, 2):
        code = results[index]
        assert not isinstance(code, WranganError)
        torch.testing.assert_close(code.w, expected[index].w)
