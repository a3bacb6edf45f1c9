"""Captured steps: what is replayed is the step, on the CPU with a stand-in for the graph."""

import copy
import dataclasses
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.fakes import codes_of, fake_perceptual
from wrangan_cli.engine.inversion import graph
from wrangan_cli.engine.inversion.loop import Inverter
from wrangan_cli.engine.inversion.methods import METHOD_TABLE, Moment
from wrangan_cli.engine.inversion.settings import METHODS, InversionSettings
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.runtime import random_generator

SETTINGS = InversionSettings(steps=9, init="mean", lr=0.02, epsilon_lr=0.05, warmup=0.3, decay=0.5)


def inverted(
    model: Model, settings: InversionSettings, images: Tensor, steps: Callable[..., graph.Steps]
) -> Tensor:
    """ε after `settings.steps` steps of `graph.py`, of all layers in one row."""
    device = model.device
    inverter = Inverter(model, settings, None, fake_perceptual().to(device))
    method = METHOD_TABLE[settings.method]
    variables = method.start(model, inverter.initial_w(images), settings)
    for tensor in variables.free:
        tensor.requires_grad_(True)
    target = inverter._features(images)
    groups = method.groups(variables, settings)
    rates = [group["lr"] for group in groups]
    optimizer = graph.capturable_adam(groups, device)
    moment = Moment(model, settings, inverter.perceptual, random_generator(0), 0.0)
    step = graph.gradient_step(optimizer, lambda: inverter._loss(variables, images, target, moment)[0])
    with steps(step) as take:
        for index in range(settings.steps):
            factor = method.schedule(settings, index / settings.steps)
            graph.set_rates(optimizer, [rate * factor for rate in rates])
            take()
    return torch.cat([epsilon.detach().flatten() for epsilon in variables.epsilon.values()])


def by_the_loop(model: Model, settings: InversionSettings, images: Tensor) -> Tensor:
    codes = codes_of(Inverter(model, settings, None, fake_perceptual().to(model.device)).invert(images))
    layers = [torch.stack([code.epsilon[name] for code in codes]) for name in codes[0].epsilon]
    return torch.cat([layer.flatten() for layer in layers])


def test_the_steps_are_those_of_the_loop(tiny_model: Model) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    got = inverted(tiny_model, SETTINGS, images, lambda step: graph.Steps(step, capture=lambda same: same))
    expected = by_the_loop(tiny_model, SETTINGS, images)
    assert got.abs().max() > 0.01
    torch.testing.assert_close(got.half(), expected, rtol=2e-3, atol=2e-4)


def test_what_is_captured_is_replayed_and_nothing_else() -> None:
    told: list[str] = []

    def capture(_: Callable[[], None]) -> Callable[[], None]:
        assert told == ["step"] * graph.WARM_UP
        return lambda: told.append("replay")

    steps = graph.Steps(lambda: told.append("step"), capture)
    for _ in range(graph.WARM_UP):
        steps()
        assert not steps.replays
    steps()
    steps()
    assert steps.replays
    steps.close()
    steps()
    assert told == ["step"] * graph.WARM_UP + ["replay", "replay", "step"]


def test_a_failed_capture_is_one_line_and_the_steps_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")

    taken: list[int] = []
    steps = graph.Steps(lambda: taken.append(1), capture)
    with caplog.at_level(logging.WARNING, "wrangan"):
        for _ in range(10):
            steps()
    assert len(taken) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "the step could not be captured as a CUDA graph (operation not permitted when stream is capturing): "
        "slower, not different"
    ]


def test_which_inversions_can_be_captured() -> None:
    gpu, settings = torch.device("cuda"), InversionSettings(steps=500)
    assert graph.can_capture(settings, gpu)
    assert not graph.can_capture(settings, torch.device("cpu"))
    assert not graph.can_capture(dataclasses.replace(settings, stop_at=0.1), gpu)
    assert not graph.can_capture(dataclasses.replace(settings, steps=3), gpu)
    possible = {m for m in METHODS if graph.can_capture(dataclasses.replace(settings, method=m), gpu)}
    assert possible == {"wrangan", "weight-tuning"}
    # Those, and only those, have steps that differ in their rates alone.
    for name in possible:
        method = METHOD_TABLE[name]
        assert method.drawn_w is None
        assert method.after_step is None


@pytest.mark.gpu
def test_captured_on_a_gpu(tiny_model: Model) -> None:
    model = copy.deepcopy(tiny_model)
    model = dataclasses.replace(model, generator=model.generator.cuda(), w_mean=model.w_mean.cuda())
    images = (torch.rand(3, 3, 16, 16) * 2 - 1).cuda()
    made: list[graph.Steps] = []

    class Watched(graph.Steps):
        def close(self) -> None:
            made.append(self)
            assert self.replays, "the step was not captured"
            super().close()

    got = inverted(model, SETTINGS, images, Watched)
    assert len(made) == 1
    eager = inverted(model, SETTINGS, images, lambda step: graph.Steps(step, capture=lambda same: same))
    torch.testing.assert_close(got, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_captured_step_that_waits_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(4, device="cuda")

    def step() -> None:
        x.add_(1)
        x.sum().item()

    with graph.Steps(step) as steps, caplog.at_level(logging.WARNING, "wrangan"):
        for _ in range(7):
            steps()
        assert not steps.replays
    assert len(caplog.records) == 1
    assert x.tolist() == [7.0] * 4
