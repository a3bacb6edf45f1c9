"""Images that are done leave the batch; the others notice nothing."""

import pytest
import torch

from tests.fakes import codes_of, in_float64, make_inverter
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.variables import Variables, joined
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model

LOSS = "fake (loss)"


def images_of(model: Model, count: int = 4) -> torch.Tensor:
    """Images that are harder from one to the next: the mean image under more and more noise."""
    with torch.no_grad():
        mean = model.generator.synthesis(model.w_mean[None])
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return (mean + noise.to(mean) * torch.linspace(0.3, 1.0, count)[:, None, None, None]).clamp(-1, 1)


def threshold(inverter: Inverter, images: torch.Tensor) -> float:
    """A distance that the first image reaches on the way and the last does not."""
    after = [code.info["distortion"]["after"][LOSS] for code in codes_of(inverter.invert(images))]
    assert after[0] < after[-1]
    return (after[0] + after[-1]) / 2


@pytest.mark.parametrize("method", ["wrangan", "wrangan lbfgs", "weight-tuning", "sg2-w", "sg2-w-plus"])
def test_codes_are_those_of_images_alone(tiny_model: Model, method: str) -> None:
    # lbfgs divides by small differences, and rounding grows with every step.
    tiny_model = in_float64(tiny_model)
    images = images_of(tiny_model)
    total = 15
    few = {"method": method.split()[0], "steps": total, "lr": 1e-2, "noise_weight": 10.0}
    if "lbfgs" in method:
        total = 8  # it has got as far by then
        few |= {"optimizer": "lbfgs", "steps": total}
    stop = threshold(make_inverter(tiny_model, **few), images)
    inverter = make_inverter(tiny_model, **few, stop_at=stop)
    together = codes_of(inverter.invert(images))
    steps = [code.info["steps"] for code in together]
    assert steps[0] < total
    assert steps[-1] == total
    assert steps[0] <= steps[1]
    for index in range(4):
        (alone,) = codes_of(inverter.invert(images[index : index + 1]))
        assert alone.info["steps"] == steps[index]
        torch.testing.assert_close(alone.w, together[index].w, atol=2e-3, rtol=1e-2)
        for name, value in (alone.epsilon | alone.delta).items():
            other = (together[index].epsilon | together[index].delta)[name]
            torch.testing.assert_close(value.float(), other.float(), atol=5e-3, rtol=1e-2)
    # The image that never stops is where it is without a threshold.
    (free,) = codes_of(make_inverter(tiny_model, **few).invert(images[-1:]))
    torch.testing.assert_close(free.w, together[-1].w, atol=2e-3, rtol=1e-2)


def test_stopped_images_are_at_the_threshold(tiny_model: Model) -> None:
    images = images_of(tiny_model)
    few = {"steps": 25, "lr": 1e-2}
    stop = threshold(make_inverter(tiny_model, **few), images)
    for code in codes_of(make_inverter(tiny_model, **few, stop_at=stop).invert(images)):
        reached = code.info["distortion"]["after"][LOSS]
        assert reached <= stop * 1.01 if code.info["steps"] < 25 else reached > stop * 0.9


def test_all_may_stop_at_once_and_at_the_start(tiny_model: Model) -> None:
    said: list[int] = []
    results = make_inverter(tiny_model, stop_at=1e6).invert(images_of(tiny_model), said.append)
    assert [code.info["steps"] for code in codes_of(results)] == [0] * 4
    assert said == []
    for code in codes_of(results):
        assert code.info["distortion"]["after"][LOSS] == pytest.approx(
            code.info["distortion"]["before"][LOSS], rel=1e-2
        )


def test_image_that_diverges_is_named_though_others_stop(tiny_model: Model) -> None:
    images = images_of(tiny_model, 3)
    images[1] = float("nan")
    results = make_inverter(tiny_model, steps=4, stop_at=1e6).invert(images)
    assert isinstance(results[1], WranganError)
    assert isinstance(results[0], Code)
    assert isinstance(results[2], Code)


def test_joined_puts_images_back_in_order() -> None:
    whole = Variables(torch.arange(5.0)[:, None], noise={"0": torch.arange(5.0)[:, None, None]})
    rows = [torch.tensor([3]), torch.tensor([0, 4]), torch.tensor([1, 2])]
    back = joined([whole.select(part) for part in rows], torch.cat(rows).argsort())
    assert torch.equal(back.w, whole.w)
    assert torch.equal(back.noise["0"], whole.noise["0"])


def test_threshold_needs_the_distance() -> None:
    with pytest.raises(UsageError, match="stop_at needs a perceptual distance"):
        inversion_settings(perceptual_weight=0.0, stop_at=0.1)
    with pytest.raises(UsageError, match="stop_at"):
        inversion_settings(stop_at=-1.0)
