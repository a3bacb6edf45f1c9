"""Drift: what a code's offsets do to the images of other w."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.test_corruption import codes_of
from tests.test_evaluate import run
from wrangan_cli.engine.metrics.corruption import random_direction
from wrangan_cli.engine.metrics.drift import DIRECTIONS, drift
from wrangan_cli.engine.models.codes import Code, save_code
from wrangan_cli.engine.models.folder import Model


def by_hand(model: Model, code: Code, seed: int = 0) -> float:
    """The formula, image by image, from the generator's own synthesis."""
    latents = model.generator.config.num_latents
    epsilon = {name: value.float() for name, value in code.epsilon.items()}
    errors = []
    for index in range(DIRECTIONS):
        w = (code.w.expand(latents, -1) + model.w_std * random_direction(seed, index, model))[None]
        with torch.no_grad():
            tuned = model.generator.synthesis(w, epsilon=epsilon).clamp(-1, 1)
            plain = model.generator.synthesis(w).clamp(-1, 1)
        errors.append((tuned - plain).square().mean().item())
    return sum(errors) / DIRECTIONS


def test_the_formula(tiny_model: Model) -> None:
    for code in codes_of(tiny_model):
        assert drift(tiny_model, code, seed=3) == pytest.approx(by_hand(tiny_model, code, seed=3), rel=1e-4)


def test_a_code_without_offsets_has_none_and_a_larger_epsilon_more(tiny_model: Model) -> None:
    code = codes_of(tiny_model)[0]
    assert drift(tiny_model, dataclasses.replace(code, epsilon={})) == 0
    half = {name: value / 2 for name, value in code.epsilon.items()}
    assert 0 < drift(tiny_model, dataclasses.replace(code, epsilon=half)) < drift(tiny_model, code)


def test_the_command(tiny_model: Model, tiny_folder: Path, tmp_path: Path) -> None:
    codes = codes_of(tiny_model)
    (tmp_path / "codes").mkdir()
    for name, code in zip("abc", codes, strict=True):
        save_code(tmp_path / "codes" / f"{name}.st", code)
    options = ["--metric", "drift", "--codes", tmp_path / "codes", "--model", tiny_folder]
    done = run(*options, "--json", "--csv", tmp_path / "drift.csv")
    assert done.exit_code == 0, done.output
    mean = json.loads(done.stdout.splitlines()[0])
    expected = [by_hand(tiny_model, code) for code in codes]
    assert mean["value"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert (mean["count"], mean["higher_is_better"]) == (3, False)
    assert mean["interval"][0] < mean["value"] < mean["interval"][1]
    with open(tmp_path / "drift.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["code"]).stem for row in rows] == ["a", "b", "c"]
    assert [float(row["drift"]) for row in rows] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--metric", "drift"], "measures codes alone: give --codes"),
        (["--metric", "drift", "--codes", "x", "--photos", "x"], "and no --photos"),
        (["--metric", "drift", "--codes", "x", "--strength", "2"], "applies to --metric lec"),
        (["--metric", "drift", "--metric", "lec", "--codes", "x", "--csv", "x.csv"], "measure one at a time"),
    ],
)
def test_usage(options: list[str], told: str) -> None:
    done = run(*options)
    assert done.exit_code == 2
    assert told in done.stderr
