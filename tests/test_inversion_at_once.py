"""A batch whose images are computed some at a time has the codes of one that is computed together."""

import threading
import time

import pytest
import torch

from tests.fakes import codes_of, in_float64, make_inverter
from tests.test_early_stop import images_of, threshold
from wrangan_cli.engine.base.cores import on_cores
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.models.folder import Model

METHODS = ["wrangan", "wrangan lbfgs", "weight-tuning", "sg2-w-plus", "pti"]


@pytest.mark.parametrize(
    ("method", "stopping", "threads"),
    [*((method, stopping, 1) for method in METHODS for stopping in (False, True)), ("wrangan", True, 2)],
)
def test_some_at_a_time(
    tiny_model: Model, method: str, stopping: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)  # the fixtures set it for every test
    model = in_float64(tiny_model)
    images = images_of(model, 3)
    few = {"method": method.split()[0], "steps": 8, "lr": 1e-2, "noise_weight": 10.0}
    few |= {"pti_pivot_steps": 3, "pti_steps": 5, "pti_locality": 0.1} if method == "pti" else {}
    few |= {"optimizer": "lbfgs"} if "lbfgs" in method else {}
    if stopping:
        few["stop_at"] = threshold(make_inverter(model, **few), images)
    inverter = make_inverter(model, **few)
    together = codes_of(inverter.invert(images))
    parts: list[int] = []
    computed = Fit.data_loss
    monkeypatch.setattr("wrangan_cli.engine.inversion.fit.HELD_PIXELS", 2 * 16 * 16)  # two images
    monkeypatch.setattr(
        Fit, "data_loss", lambda self, image, batch: parts.append(len(image)) or computed(self, image, batch)
    )
    apart = codes_of(inverter.invert(images))
    assert max(parts) == 2
    for one, other in zip(together, apart, strict=True):
        assert one.info["steps"] == other.info["steps"]
        torch.testing.assert_close(one.w, other.w, atol=1e-6, rtol=1e-6)
        for group in ("epsilon", "delta", "noise", "parameters"):
            for name, value in getattr(one, group).items():
                torch.testing.assert_close(value, getattr(other, group)[name], atol=1e-4, rtol=1e-3)


def test_work_on_cores_keeps_its_order_and_its_errors() -> None:
    torch.set_num_threads(3)
    threads: set[str] = set()

    def work(number: int) -> tuple[int, int, bool]:
        threads.add(threading.current_thread().name)
        time.sleep(0.01)
        if number == 99:
            raise ValueError("ninety-nine")
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    assert on_cores(work, range(9)) == [(n, 1, True) for n in range(9)]
    assert len(threads) == 3
    with torch.no_grad():
        assert on_cores(work, [1, 2]) == [(1, 1, False), (2, 1, False)]
    with pytest.raises(ValueError, match="ninety-nine"):
        on_cores(work, [1, 99, 2])
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    assert on_cores(work, [4, 5]) == [(4, 1, True), (5, 1, True)]
