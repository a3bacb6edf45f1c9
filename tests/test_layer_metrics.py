"""Measures of a model's random layers: share of small σ, influence of each layer."""

import json
from pathlib import Path

import pytest
import torch

from tests.test_evaluate import run
from wrangan_cli.engine.metrics.layer_influence import layer_influence
from wrangan_cli.engine.model_folder import Model, sample_w
from wrangan_cli.engine.models.randomized import draw_epsilon, randomized_layers
from wrangan_cli.engine.runtime import random_generator


def test_influence_is_the_error_of_one_layers_redraw(tiny_model: Model) -> None:
    got = layer_influence(tiny_model, samples=6, seed=2, batch=6)
    layers = list(randomized_layers(tiny_model.generator))
    assert list(got) == [*layers, "all"]
    w, rng = sample_w(tiny_model.generator, 6, 2), random_generator(3)
    epsilon = draw_epsilon(tiny_model.generator, 6, rng=rng)
    for name in layers:
        errors = []
        for index in range(6):
            one = {name: epsilon[name][index]}
            with torch.no_grad():
                moved = tiny_model.generator.synthesis(w[index : index + 1], epsilon=one)
                still = tiny_model.generator.synthesis(w[index : index + 1])
            errors.append((moved - still).square().mean().item())
        assert got[name] == pytest.approx(sum(errors) / 6, rel=1e-3)
    assert got["all"] > max(got[name] for name in layers) / 2


def test_the_mean_is_over_images_whatever_the_batch(tiny_model: Model) -> None:
    first, second = (layer_influence(tiny_model, 400, batch=batch)["all"] for batch in (400, 30))
    assert first == pytest.approx(second, rel=0.2)  # other draws, the same mean


def test_command(tiny_folder: Path, tiny_model: Model) -> None:
    arguments = ["--metric", "std-share", "--metric", "layer-influence", "--model", tiny_folder]
    result = run(*arguments, "--samples", 5, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    layers = list(randomized_layers(tiny_model.generator))
    shares = [row for row in rows if row["metric"] == "std-share"]
    assert [row["layer"] for row in shares] == layers
    for row, conv in zip(shares, randomized_layers(tiny_model.generator).values(), strict=True):
        assert conv.std is not None
        small = sum(abs(value) < 1e-3 for value in conv.std.flatten().tolist())
        assert row["value"] == pytest.approx(small / conv.std.numel())
    expected = layer_influence(tiny_model, 5)
    influences = {row["layer"]: row["value"] for row in rows if row["metric"] == "layer-influence"}
    assert influences == pytest.approx(expected, rel=1e-4)
    plain = run(*arguments, "--samples", 5).stdout.splitlines()
    assert plain[0].startswith(f"std-share  {layers[0]}  ")
    refused = run("--metric", "std-share", "--codes", "x")
    assert (refused.exit_code, "looks at a model's layers" in refused.stderr) == (2, True)
