"""A small report: a model that has all it needs, few steps, and what was written."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.fakes import fake_perceptual
from tests.test_consistency import smile
from tests.test_edit_success import EverySecond, corners
from tests.test_evaluate import FEATURES
from tests.test_separability import net
from wrangan_cli.app import app
from wrangan_cli.engine.editing.directions import directions_file, save_directions
from wrangan_cli.engine.inversion import inverter as inverting
from wrangan_cli.engine.metrics import corruption, edit_success, lpips
from wrangan_cli.engine.metrics.samples import REFERENCE_FILE, Reference, save_reference
from wrangan_cli.engine.models.attributes import save_attributes
from wrangan_cli.engine.models.folder import Model

SET = {
    "steps": 2,
    "init": "mean",
    "pti_steps": 1,
    "pti_pivot_steps": 1,
    "perceptual_weight": 0,
    "metrics": "mse,ms-ssim,st-lpips-alex",
    "separability_samples": 60,
    "influence_samples": 4,
    "consistency": 2,
    "sweep": 2,
    "alphas": "10,0.1",
    "edited": 2,
    "shown": 2,
}
LITTLE = {**dict.fromkeys(("consistency", "separability_samples", "interpolations", "sweep"), 0), "shown": 1}


@pytest.fixture
def subject(
    tiny_folder: Path,
    tiny_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    small_features: Tensor,
) -> Path:
    """A model folder with all that a report can use; fake perceptual distance and Inception."""
    real = torch.randn(30, FEATURES, generator=torch.Generator().manual_seed(1))
    save_reference(tiny_folder / REFERENCE_FILE, Reference(real, "held-out.zip", 16))
    save_directions(directions_file(tiny_model), tiny_model, [smile(), smile(name="age")])
    save_attributes(tiny_folder / "attributes.safetensors", net())
    monkeypatch.setattr(edit_success, "load_descriptors", lambda: corners)
    monkeypatch.setattr(edit_success, "YawScorer", AllFaces)
    monkeypatch.setattr(corruption, "FaceDetector", EverySecond)
    for module in (lpips, inverting):
        monkeypatch.setattr(module, "load_perceptual", lambda *_: fake_perceptual())
    del photos, small_features
    return tiny_folder


def run(out: Path, model: Path, photos: Path, *more: object, methods: str = "all", **changes: object) -> Any:
    values = {**SET, **changes}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    arguments = ["report", photos, "--out", out, "--methods", methods, "--model", model]
    return CliRunner().invoke(app, [*map(str, arguments), "--samples", "15", *sets, *map(str, more)])


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((out / "tables" / f"{name}.json").read_text())["rows"]


class AllFaces:
    """A detector that finds a face in each image, turned a little."""

    side = 256

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 1), 0.1)


class Page(HTMLParser):
    """Every tag is closed that has to be; addresses, texts and the data are kept."""

    EMPTY = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in self.EMPTY:
            self.open.append(tag + "#data" if attributes.get("id") == "data" else tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().removesuffix("#data") == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script#data":
            self.data = json.loads(data)
        self.texts.append(data)
