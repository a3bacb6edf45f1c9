"""`--seconds`: as many steps as there is time for. `--plateau`: an image is done when its loss stands still.
`--coarse`: the first steps compare at loss_side."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.fakes import codes_of, make_inverter
from tests.test_early_stop import images_of
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.inversion import budget, wrangan
from wrangan_cli.engine.inversion.batch import WINDOW, Batch
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.folder import Model

runner = CliRunner()


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "count", "expected"), [(60, 1, 102), (60, 3, 342), (1, 1, 1), (1e6, 1, 2000)]
)
def test_steps_are_what_the_time_allows(
    monkeypatch: pytest.MonkeyPatch, seconds: float, count: int, expected: int
) -> None:
    clock = Clock(monkeypatch)

    def invert(settings: InversionSettings, on_step: Any) -> None:
        assert settings.steps == budget.TRIAL
        clock.now += 1.0  # start and end
        for step in range(budget.TRIAL):
            clock.now += 3.0 if step == 0 else 0.5  # the first is slow
            on_step(step + 1)

    settings = budget.with_steps_for_time(inversion_settings(seconds=seconds), invert, count)
    # Spent: 1 + 3 + 3 · 0.5 = 5.5 s, of which 4 · 0.5 are steps; beside them the run itself takes 3.5 s.
    assert settings.steps == expected


def test_pti_keeps_the_proportion_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def invert(settings: InversionSettings, on_step: Any) -> None:
        assert (settings.pti_pivot_steps, settings.pti_steps) == (budget.TRIAL, budget.TRIAL)
        for step in range(2 * budget.TRIAL):
            clock.now += 1.0 if step < budget.TRIAL else 2.0
            on_step(step + 1)

    settings = budget.with_steps_for_time(inversion_settings(method="pti", seconds=500), invert, 1)
    # 450 · 1 + 350 · 2 = 1150 s for all; 488 s are left.
    assert settings.pti_pivot_steps == pytest.approx(450 * 488 / 1150, abs=2)
    assert settings.pti_steps == pytest.approx(350 * 488 / 1150, abs=2)


def test_the_code_is_that_of_so_many_steps(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(tiny_model, 1)
    monkeypatch.setattr(budget, "allocate_steps", lambda *_: [7])
    (timed,) = codes_of(make_inverter(tiny_model, seconds=5.0, lr=0.01).invert(images))
    monkeypatch.undo()
    (counted,) = codes_of(make_inverter(tiny_model, steps=7, lr=0.01).invert(images))
    assert timed.info["steps"] == 7
    assert torch.equal(timed.w, counted.w)
    assert timed.info["settings"]["seconds"] == 5.0


def test_steps_do_not_count_where_seconds_do() -> None:
    assert {"steps", "seconds"} & set(inversion_settings(seconds=3).relevant) == {"seconds"}
    assert {"steps", "seconds"} <= set(inversion_settings().relevant)
    with pytest.raises(UsageError, match="seconds 0"):
        inversion_settings(seconds=0)


def test_an_image_on_a_plateau_leaves() -> None:
    batch = Batch(Variables(torch.zeros(3, 2)), torch.zeros(3, 1), None, torch.arange(3), [0] * 3)
    masks = []
    for step in range(2 * WINDOW + 1):
        # Falls by 1 % a step; falls by .01 % a step; stands still, but is worse than before just now.
        late = 1.1 if step >= 2 * WINDOW - 1 else 1.0
        losses = torch.tensor([0.99**step, 1 - 1e-4 * step, late])
        masks.append(batch.still_improving(losses, 0.05, None))
    assert masks[: 2 * WINDOW - 1] == [None] * (2 * WINDOW - 1)
    assert [m.tolist() for m in masks[2 * WINDOW - 1 :] if m is not None] == [[True, False, True]] * 2


def test_the_inversion_ends_on_the_plateau(tiny_model: Model) -> None:
    images = images_of(tiny_model, 2)
    whole = codes_of(make_inverter(tiny_model, steps=120, lr=1e-2).invert(images))
    early = codes_of(make_inverter(tiny_model, steps=120, lr=1e-2, plateau=0.2).invert(images))
    for one, other in zip(whole, early, strict=True):
        assert 2 * WINDOW - 1 <= other.info["steps"] < one.info["steps"] == 120
    never = make_inverter(tiny_model, steps=60, lr=1e-2, plateau=0.2, epsilon_warmup=1.0)
    assert [code.info["steps"] for code in codes_of(never.invert(images))] == [60, 60]


def test_the_first_steps_are_coarse(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    rendered = wrangan.synthesize

    def noted(*args: Any, **given: Any) -> Any:
        if torch.is_grad_enabled():
            sides.append(given["side"])
        return rendered(*args, **given)

    monkeypatch.setattr(wrangan, "synthesize", noted)
    make_inverter(tiny_model, steps=8, coarse=0.5, loss_side=8).invert(images_of(tiny_model, 1))
    assert sides == [8] * 4 + [16] * 4


def test_the_command_says_what_it_reached(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    given = ["invert", photos, "--model", tiny_folder, "--out", tmp_path / "c", "--init", "mean"]
    given += ["--perceptual-weight", "0", "--seconds", "0.5", "--batch", "1"]
    result = runner.invoke(app, [str(word) for word in given])
    assert result.exit_code == 0
    codes = sorted((tmp_path / "c").iterdir())
    told = [line for line in result.stderr.splitlines() if " steps in " in line]
    assert len(told) == len(codes)
    for line, code in zip(sorted(told), codes, strict=True):
        assert re.search(rf"{code.stem}\.\w+: \d+ steps in \d+ s: mse \d\.\d{{4}}$", line)
    again = runner.invoke(app, [str(word) for word in given])
    assert again.exit_code == 0
    assert "steps in" not in again.stderr  # done already
