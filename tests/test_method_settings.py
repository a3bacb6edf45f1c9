"""Which settings each method has, and what is refused."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.inversion.method_settings import (
    METHODS,
    SETTINGS,
    ProjectorSettings,
    PtiSettings,
    WranganSettings,
    all_settings,
    applicable,
    check_named,
    inversion_settings,
    methods_having,
)
from wrangan_cli.engine.inversion.settings import InversionSettings

EVERY = {"method", "size", "perceptual", "perceptual_weight", "loss_side", "init", "seed"}
OPTIMISING = {"seconds", "l2_weight", "stop_at", "plateau", "coarse"}


def names(method: str) -> set[str]:
    return set(dataclasses.asdict(inversion_settings(method)))


def test_what_the_methods_have() -> None:
    assert set(METHODS[-4:]) == {"encoder", "e4e", "restyle", "hyperstyle"}
    for method in METHODS[-4:]:
        assert names(method) == EVERY
    for method in METHODS[:-4]:
        assert names(method) > EVERY | OPTIMISING
    assert names("wrangan") - names("weight-tuning") == {"std_power"}
    assert names("weight-tuning") < names("wrangan")
    assert names("sg2-w-plus") - names("pti") == {"steps", "projection_lr"}
    assert all(name.startswith("pti_") for name in names("pti") - names("sg2-w"))
    assert methods_having("steps") == ("wrangan", "weight-tuning", "sg2-w", "sg2-w-plus")
    assert methods_having("protocol") == ("sg2-w", "sg2-w-plus", "pti")


@pytest.mark.parametrize("method", METHODS)
def test_the_class_is_the_methods_and_refuses_what_it_lacks(method: str) -> None:
    assert type(inversion_settings(method)) is SETTINGS[method]
    assert inversion_settings(method).method == method
    lacking = set(all_settings()) - names(method)
    assert lacking
    for name in lacking:
        with pytest.raises(UsageError) as raised:
            inversion_settings(method, **{name: 1})
        assert f"method {method} has no setting {name}: only " in str(raised.value)
        assert ", ".join(methods_having(name)) in str(raised.value)
    assert applicable(method, dict.fromkeys(all_settings())).keys() == names(method)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"method": "magic"}, "method 'magic': expected one of wrangan, weight-tuning"),
        ({"method": ["pti"]}, "expected one of wrangan"),
        ({"step": 1}, "setting 'step' of an inversion: did you mean steps?"),
        ({"stride": 1}, "setting 'stride' of an inversion: expected one of method, size"),
        ({"steps": "many"}, "steps 'many': expected a whole number"),
        ({"steps": 2.5}, "steps 2.5: expected a whole number"),
        ({"steps": True}, "steps True: expected a whole number"),
        ({"seed": None}, "seed None: expected a whole number"),
        ({"alpha": "0.1"}, "alpha '0.1': expected a number"),
        ({"unseen": 1}, "unseen 1: expected True or False"),
        ({"seconds": 0}, "seconds 0: expected a positive number"),
        ({"seconds": -1}, "seconds -1: expected a positive number"),
        ({"seconds": float("nan")}, "seconds nan: expected a positive number"),
        ({"steps": -1}, "steps -1: expected 0 steps or more"),
        ({"loss_side": 0}, "loss_side 0: expected 1 px or more"),
        ({"method": "encoder", "init": "zero"}, "init 'zero': expected one of encoder, mean"),
        ({"method": "sg2-w", "w_noise": -1.0}, "w_noise -1.0: expected a number that is not negative"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], cause: str) -> None:
    with pytest.raises(UsageError) as raised:
        inversion_settings(**values)
    assert cause in str(raised.value)


def test_numbers_of_numpy_are_recorded_as_those_of_python() -> None:
    settings = inversion_settings(steps=np.int64(7), alpha=np.float32(0.5), seconds=None)
    assert json.loads(json.dumps(dataclasses.asdict(settings)))["steps"] == 7
    assert (type(settings.steps), type(settings.alpha)) == (int, float)  # type: ignore[attr-defined]


def test_a_class_is_of_its_own_methods_alone() -> None:
    with pytest.raises(ValueError, match="method 'pti': expected one of wrangan"):
        WranganSettings(method="pti")
    with pytest.raises(ValueError, match="method 'sg2-w'"):
        InversionSettings("sg2-w")  # what all share is no method's
    with pytest.raises(ValueError, match="method 'encoder'"):
        dataclasses.replace(ProjectorSettings("sg2-w-plus"), method="encoder")


def test_the_pivot_has_what_both_have() -> None:
    pti = PtiSettings(seed=3, w_noise=0.2, loss_side=64, seconds=9.0, pti_pivot_lr=0.02, stop_at=0.1, size=32)
    assert pti.pivot == ProjectorSettings(
        "sg2-w", seed=3, w_noise=0.2, loss_side=64, seconds=9.0, size=32,
        steps=450, projection_lr=0.02, init="mean", stop_at=0.0,
    )  # fmt: skip
    assert (pti.loop_steps, pti.total_steps) == (350, 800)


def test_what_a_model_may_name() -> None:
    check_named({"epsilon_lr": 0.01, "steps": 5, "optimizer": "lbfgs"})
    for named in ({"seed": 1}, {"steps": "5"}, {"steps": True}, {"lr": -1.0}, ["steps"]):
        with pytest.raises(ValueError, match=r"expected|steps|lr"):
            check_named(named)
