"""A library that gives wrong numbers is not used."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from wrangan_kernels import build, loader, verify

pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    loader.forget()


def test_what_was_loaded_is_right() -> None:
    assert verify.wrong("cpu") is None
    with torch.no_grad():
        assert verify.wrong("cpu") is None


def test_the_formulas_are_not_the_operators() -> None:
    """Every operator is asked, and float32 differs from float64 in the last bits: at 0 each is noticed."""
    cases = list(verify._cases("cpu"))
    assert {name for name, *_ in cases} == {
        "upfirdn2d",
        "add_upsampled",
        "fir_act",
        "fir_act_backward",
        "conv3x3",
        "random_weight",
        "random_weight_backward",
        "styled_conv",
        "styled_conv_backward",
        "to_rgb",
        "to_rgb_backward",
        "separable_conv",
        "separable_conv_backward",
        "haar_up_backward",
        "pooled_pointwise_backward",
    }
    for name, found, expected in cases:
        assert found.dtype == torch.float32, name
        assert not torch.equal(found.detach().double(), expected), name


@pytest.mark.parametrize("spoil", [lambda x: x * 1.001, lambda x: x * float("nan"), lambda x: x[:, :, 1:]])
def test_wrong_numbers_are_named(monkeypatch: pytest.MonkeyPatch, spoil: object) -> None:
    right = verify._cases

    def cases(device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, found, expected in right(device):
            yield name, spoil(found) if name == "fir_act_backward" else found, expected  # type: ignore[operator]

    monkeypatch.setattr(verify, "_cases", cases)
    assert verify.wrong("cpu") == "fir_act_backward"


def test_such_a_library_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", 0.0)
    monkeypatch.setattr(loader, "_loaded", {})
    remembered: list[str] = []
    monkeypatch.setattr(build, "remember_failure", lambda _, reason: remembered.append(reason))
    monkeypatch.setattr(build, "remembered_failure", lambda _: None)
    library = build.recipe("cpu").library
    monkeypatch.setattr(build, "build", lambda _: library)
    loader.forget()
    monkeypatch.setenv(loader.ENVIRONMENT, "auto")
    assert not loader.ready("cpu")
    (line,) = [record.getMessage() for record in caplog.records if "wrong" in record.getMessage()]
    assert "gives wrong results (upfirdn2d)" in line
    assert "\n" not in line
    assert remembered
