"""The study by which settings of an inversion are chosen: columns, files, what is not done twice."""

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.architectures import MOBILE, a_model
from tests.benchmarks import schedules, study
from tests.benchmarks.schedules import parsed, photographs_file
from tests.benchmarks.study import DIRECTIONS, CachedEncoder, Study
from tests.conftest import write_photo
from tests.fakes import codes_of, fake_perceptual, make_inverter
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.inversion import inverter
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.metrics.corruption import moved_images
from wrangan_cli.engine.models.codes import Code, render
from wrangan_cli.engine.models.folder import Model

LARGE = dataclasses.replace(MOBILE, channels={4: 16, 8: 12, 16: 8, 32: 8}, num_latents=8)
"""64 px."""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    for module in (study, inverter):
        monkeypatch.setattr(module, "load_perceptual", lambda *_: fake_perceptual())
    return a_model(LARGE, tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two sides, one of them larger than the model's."""
    for index, side in enumerate((40, 90, 40)):
        write_photo(tmp_path / "photos" / f"{'abc'[index]}.png", side=side, seed=index)
    return tmp_path / "photos"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def run(monkeypatch: pytest.MonkeyPatch, model: Model, photos: Path, out: Path, *words: str) -> None:
    asked = ["x", "--model", str(model.path), "--photos", str(photos), "--out", str(out), *words]
    monkeypatch.setattr(sys, "argv", asked)
    schedules.main()


def test_words() -> None:
    found = parsed(
        "method=weight-tuning,steps=12,lr=0.5,epsilon_warmup=0.5,model=runs/s/model,optimizer=adam"
    )
    assert found.model == "runs/s/model"
    settings = found.settings
    assert (settings.method, settings.steps, settings.lr) == ("weight-tuning", 12, 0.5)
    assert isinstance(settings.steps, int)
    assert (settings.optimizer, settings.epsilon_warmup, settings.seed) == ("adam", 0.5, 0)
    assert parsed("seed=4").settings.seed == 4
    assert parsed("steps=1").model is None
    for word, message in (
        ("steps", "expected NAME=VALUE"),
        ("method=odd,steps=1", "method 'odd'"),
        ("step=1", "no setting 'step'"),
        ("steps=1.5", "'1.5' is not a valid value of steps"),
        ("steps=-1", "steps"),
    ):
        with pytest.raises(UsageError, match=message):
            parsed(word)


def test_columns_and_files(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    words = ["init=mean,steps=3,epsilon_init=0.3", "method=weight-tuning,init=mean,steps=2"]
    run(monkeypatch, model, photos, out, "--corruption", "0", "--batch", "2", *words)
    summaries, single = rows_of(out), rows_of(photographs_file(out))
    assert [row["settings"] for row in summaries] == words
    assert [(row["settings"], row["photo"]) for row in single] == [
        (word, f"{stem}.png") for word in words for stem in "abc"
    ]
    assert not any("corruption" in name for name in summaries[0])
    for row in summaries:
        assert (row["photographs"], row["asked"], row["failed"]) == ("3", "3", "0")
        own = [one for one in single if one["settings"] == row["settings"]]
        for name in ("mse", "ms-ssim", "fake", "std of offsets", "drift", "drift fake", "seconds"):
            assert float(row[name]) == pytest.approx(np.mean([float(one[name]) for one in own]))
    # By hand: each photograph at its own side.
    inverter = make_inverter(model, steps=3, epsilon_init=0.3)
    for row in single[:3]:
        photo = inverter.load_photo(photos / row["photo"])
        assert photo.shape[-1] == {"a.png": 40, "b.png": 64, "c.png": 40}[row["photo"]]
        (code,) = codes_of(inverter.invert(photo[None]))
        error = (render(model, [code], photo.shape[-1])[0].clamp(-1, 1) - photo).square().mean().item()
        assert float(row["mse"]) == pytest.approx(error, rel=1e-3)
        offsets = torch.cat([value.float().flatten() for value in code.epsilon.values()])
        assert float(row["std of offsets"]) == pytest.approx(offsets.std().item(), rel=1e-3)
        assert 0 < float(row["drift"]) < 4


def test_drift(model: Model, photos: Path) -> None:
    """The first images of the corruption protocol, against those of a code without offsets."""
    w = model.w_mean + 0.1
    epsilon = {n: 2 * torch.randn(s.shape) for n, s in model.generator.random_weights().items()}
    code = Code(w, epsilon=epsilon)
    found = Study(model, photos, 3, 2, samples=0).drift(model, code)
    tuned = torch.cat(list(moved_images(model, [code], range(DIRECTIONS)))).clamp(-1, 1)
    plain = torch.cat(list(moved_images(model, [Code(w)], range(DIRECTIONS)))).clamp(-1, 1)
    assert found["drift"] == pytest.approx((tuned - plain).square().mean().item(), rel=1e-5)
    with torch.no_grad():
        assert found["drift fake"] == pytest.approx(fake_perceptual()(tuned, plain).mean().item(), rel=1e-4)
    assert found["drift"] > 1e-4
    assert set(Study(model, photos, 3, 2, samples=0).drift(model, Code(w)).values()) == {0.0}


def test_what_stands_there_is_not_done_again(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    invert_each = Inverter.invert_each

    def counted(self: Inverter, images: list[Tensor]) -> Any:
        if len(fitted) == broken_at:
            raise KeyboardInterrupt
        fitted.append(len(images))
        return invert_each(self, images)

    monkeypatch.setattr(Inverter, "invert_each", counted)
    out = tmp_path / "out.csv"
    words = ["--corruption", "0", "--drift", "0", "--batch", "2", "init=mean,steps=1"]
    broken_at = 1  # the second batch of the first row
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, model, photos, out, *words)
    assert not out.exists()
    assert [row["photo"] for row in rows_of(photographs_file(out))] == ["a.png", "b.png"]
    broken_at = -1
    run(monkeypatch, model, photos, out, *words)
    assert fitted == [2, 1]
    (row,) = rows_of(out)
    assert row["photographs"] == "3"
    assert "drift" not in row
    other = f"init=mean,steps=2,model={model.path}"
    run(monkeypatch, model, photos, out, *words, other)
    assert fitted == [2, 1, 2, 1]
    assert [row["settings"] for row in rows_of(out)] == [words[-1], other]


def test_an_encoder_sees_each_photograph_once() -> None:
    seen: list[int] = []

    def encoder(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.mean(dim=(2, 3))

    images = torch.rand(3, 3, 4, 4)
    once = CachedEncoder(encoder)
    assert torch.equal(once(images[:2]), images[:2].mean(dim=(2, 3)))
    assert torch.equal(once(images.flip(0)), images.flip(0).mean(dim=(2, 3)))
    assert torch.equal(once(images), images.mean(dim=(2, 3)))
    assert seen == [2, 1]


def test_bad_input_is_one_line(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, model, tmp_path / "nowhere", tmp_path / "out.csv", "--corruption", "0", "steps=1")
    assert "nowhere: no such file" in capsys.readouterr().err.splitlines()[-1]
