"""Captured steps: what is replayed is the step, on the CPU with a stand-in for the graph."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.fakes import codes_of, fake_perceptual
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.inversion import graph
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import METHODS, applicable, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.folder import Model

SETTINGS = inversion_settings(steps=9, init="mean", lr=0.02, epsilon_lr=0.05, warmup=0.3, decay=0.5)


def inverted(model: Model, settings: InversionSettings, images: Tensor, cuda_graph: bool) -> Tensor:
    """ε or δ after the steps, of all layers in one row."""
    inverter = Inverter(model, settings, None, fake_perceptual().to(model.device), cuda_graph=cuda_graph)
    codes = codes_of(inverter.invert(images))
    return torch.cat([v.float().flatten() for c in codes for v in [*c.epsilon.values(), *c.delta.values()]])


Capture = Callable[[Callable[[], None]], Callable[[], None]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Capture | None], list[graph.Steps]]:
    """Lets the loop capture by another function; what it makes is listed."""

    def set_up(capture: Capture | None) -> list[graph.Steps]:
        made: list[graph.Steps] = []

        class Watched(graph.Steps):
            def __init__(self, step: Callable[[], None], state: Callable[[], Sequence[Tensor]]) -> None:
                super().__init__(step, state, capture)
                self.replayed = False
                made.append(self)

            def close(self) -> None:
                self.replayed = self.replays
                super().close()

        monkeypatch.setattr(graph, "Steps", Watched)
        return made

    return set_up


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning"])
def test_the_steps_are_those_of_the_loop(
    tiny_model: Model, stand_in: Callable[[Capture | None], list[graph.Steps]], method: str
) -> None:
    given = applicable(method, dataclasses.asdict(SETTINGS))
    settings = inversion_settings(**{**given, "method": method})
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = inverted(tiny_model, settings, images, False)
    made = stand_in(lambda step: step)
    torch.testing.assert_close(inverted(tiny_model, settings, images, True), expected, rtol=2e-3, atol=2e-4)
    assert [steps.replayed for steps in made] == [True]


@pytest.mark.parametrize("wrong", ["nothing", "twice", "nan"])
def test_a_graph_that_takes_another_step_is_not_used(
    tiny_model: Model,
    stand_in: Callable[[Capture | None], list[graph.Steps]],
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    def capture(step: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            if wrong == "twice":
                step()
                step()
            elif wrong == "nan":
                step()
                made[-1]._state()[0].data.fill_(float("nan"))

        return replay

    images = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = inverted(tiny_model, SETTINGS, images, False)
    made = stand_in(capture)
    with caplog.at_level(logging.WARNING, "wrangan"):
        got = inverted(tiny_model, SETTINGS, images, True)
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-4)
    assert [steps.replayed for steps in made] == [False]
    assert [record.getMessage() for record in caplog.records] == [
        "the captured CUDA graph does not reproduce the step: continuing without, slower"
    ]


def test_what_is_captured_is_replayed_and_nothing_else() -> None:
    told: list[str] = []

    def capture(_: Callable[[], None]) -> Callable[[], None]:
        assert told == ["step"] * graph.WARM_UP
        return lambda: told.append("replay")

    steps = graph.Steps(lambda: told.append("step"), lambda: [torch.zeros(1)], capture)
    for _ in range(graph.WARM_UP):
        steps()
        assert not steps.replays
    steps()
    steps()
    assert steps.replays
    steps.close()
    steps()
    # The first step after the warm-up is taken both ways.
    assert told == ["step"] * (graph.WARM_UP + 1) + ["replay", "replay", "step"]


def test_a_failed_capture_is_one_line_and_the_steps_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")

    taken: list[int] = []
    steps = graph.Steps(lambda: taken.append(1), lambda: [], capture)
    with caplog.at_level(logging.WARNING, "wrangan"):
        for _ in range(10):
            steps()
    assert len(taken) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "the step could not be captured as a CUDA graph (operation not permitted when stream is capturing): "
        "continuing without, slower"
    ]


def test_which_inversions_can_be_captured(tiny_model: Model) -> None:
    gpu, settings = torch.device("cuda"), inversion_settings(steps=500)
    why = graph.why_not_captured
    assert why(settings, gpu) is None
    assert why(settings, torch.device("cpu")) == "the device is cpu"
    assert "stop_at" in (why(dataclasses.replace(settings, stop_at=0.1), gpu) or "")
    assert "lbfgs" in (why(dataclasses.replace(settings, optimizer="lbfgs"), gpu) or "")
    possible = {m for m in METHODS if why(inversion_settings(m), gpu) is None}
    assert possible == {"wrangan", "weight-tuning"}
    with pytest.raises(UsageError, match="cannot use a CUDA graph: the device is cpu"):
        Inverter.load(tiny_model, SETTINGS, cuda_graph=True)


@pytest.mark.gpu
def test_captured_on_a_gpu(
    tiny_model: Model, stand_in: Callable[[Capture | None], list[graph.Steps]]
) -> None:
    model = copy.deepcopy(tiny_model)
    model = dataclasses.replace(model, generator=model.generator.cuda(), w_mean=model.w_mean.cuda())
    images = (torch.rand(3, 3, 16, 16) * 2 - 1).cuda()
    eager = inverted(model, SETTINGS, images, False)
    made = stand_in(None)
    got = inverted(model, SETTINGS, images, True)
    assert [steps.replayed for steps in made] == [True]
    torch.testing.assert_close(got, eager, rtol=2e-3, atol=2e-4)


@pytest.mark.gpu
def test_a_captured_step_that_waits_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(4, device="cuda")

    def step() -> None:
        x.add_(1)
        x.sum().item()

    with graph.Steps(step, lambda: [x]) as steps, caplog.at_level(logging.WARNING, "wrangan"):
        for _ in range(7):
            steps()
        assert not steps.replays
    assert len(caplog.records) == 1
    assert x.tolist() == [7.0] * 4
