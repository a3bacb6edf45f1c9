"""Separability (Table 5): accuracy of hyperplanes, and of the samples moved across them."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.test_evaluate import run
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.editing.svm import separate
from wrangan_cli.engine.metrics.separability import STRENGTH, Separability, judged, separability
from wrangan_cli.engine.models.attributes import AttributeConfig, AttributeNet, save_attributes
from wrangan_cli.engine.models.folder import Model, sample_w

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="package scikit-learn is not installed"
)
SETTINGS = LearnSettings(samples=200, batch=64, share=0.2, seed=5)


def net(names: tuple[str, ...] = ("Smiling", "Young", "Hat")) -> AttributeNet:
    torch.manual_seed(2)
    return AttributeNet(AttributeConfig(names, resolution=16, widths=(8, 8))).eval()


def test_columns_are_named_as_directions_with_their_sign() -> None:
    assert judged(net()) == {"smile": (0, 1.0), "age": (1, -1.0), "Hat": (2, 1.0)}


def test_a_plane_separates_what_a_plane_made() -> None:
    rng = torch.Generator().manual_seed(0)
    w, normal = torch.randn(1000, 12, generator=rng), torch.zeros(12)
    normal[3] = 1
    parted = separate("x", w, 4 * w[:, 3], LearnSettings(samples=1000))
    assert parted.accuracy_test == 1
    assert parted.accuracy_rest is not None
    assert parted.accuracy_rest > 0.9
    assert parted.normal @ normal > 0.95
    # 30 % of the lowest and of the highest tenth.
    assert len(parted.test_low) == len(parted.test_high) == 30
    order = w[:, 3].argsort()
    assert set(parted.test_low.tolist()) <= set(order[:100].tolist())
    assert set(parted.test_high.tolist()) <= set(order[-100:].tolist())
    noise = separate("x", w, torch.randn(1000, generator=rng), LearnSettings(samples=1000))
    assert noise.accuracy_test < 0.75


class Linear(nn.Module):
    """An attribute net's stand-in: logits are projections of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = AttributeConfig(("Smiling", "Young"), resolution=16, widths=(8, 8))
        self.head = nn.Linear(3 * 16 * 16, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) * 5

    index = AttributeNet.index


def test_moved_samples_are_drawn_and_scored_anew(tiny_model: Model) -> None:
    torch.manual_seed(3)
    judge = Linear().requires_grad_(False)
    found = separability(tiny_model, judge, SETTINGS)  # type: ignore[arg-type]
    w = sample_w(tiny_model.generator, 200, seed=5)

    def scores(w: Tensor) -> np.ndarray:
        with torch.no_grad():
            images = tiny_model.generator.synthesis(w).clamp(-1, 1)
            return judge(images)[:, 1].double().numpy()

    plain = -scores(w)
    parted = separate("age", w, torch.from_numpy(plain), SETTINGS)
    step = STRENGTH * np.std(w.numpy() @ parted.normal.numpy(), ddof=1) * parted.normal
    halfway = (1 / (1 + np.exp(-plain[[plain.argmin(), plain.argmax()]]))).mean()
    gained = 1 / (1 + np.exp(scores(w[parted.test_low] + step))) >= halfway
    lost = 1 / (1 + np.exp(scores(w[parted.test_high] - step))) < halfway
    age = found["age"]
    assert isinstance(age, Separability)
    assert age.moved == pytest.approx((gained.sum() + lost.sum()) / (len(gained) + len(lost)))
    assert age.test == parted.accuracy_test
    assert age.held_out == 24


def test_an_attribute_that_no_sample_differs_in_has_a_reason(tiny_model: Model) -> None:
    judge = Linear().requires_grad_(False)
    judge.head.weight[0] = 0
    found = separability(tiny_model, judge, SETTINGS)  # type: ignore[arg-type]
    assert isinstance(found["smile"], WranganError)
    assert isinstance(found["age"], Separability)


def test_a_missing_package_is_named_before_anything_is_drawn(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(tiny_model.generator, "synthesis", None)
    with pytest.raises(WranganError, match=re.escape(install_line("directions"))):
        separability(tiny_model, net(), SETTINGS)


def test_command(tiny_folder: Path) -> None:
    lacking = run("--metric", "separability", "--model", tiny_folder, "--samples", 40)
    assert (lacking.exit_code, "has no attribute net" in lacking.stderr) == (1, True)
    save_attributes(tiny_folder / "attributes.safetensors", net())
    result = run("--metric", "separability", "--model", tiny_folder, "--samples", 100, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["attribute"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert list(rows)[:3] == ["smile test", "smile moved", "smile rest"]
    assert all(0 <= row["value"] <= 1 for row in rows.values())
    assert rows["age test"]["samples"] == 100
    few = run("--metric", "separability", "--model", tiny_folder, "--samples", 5)
    assert (few.exit_code, "samples must be at least 20" in few.stderr) == (1, True)
