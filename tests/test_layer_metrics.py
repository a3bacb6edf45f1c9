"""Measures of a model's random layers: share of small σ, influence of each layer."""

import json
from pathlib import Path

import pytest
import torch

from tests.test_evaluate import run
from wrangan_cli.engine.metrics.layer_influence import layer_influence
from wrangan_cli.engine.metrics.samples import epsilon_of_images
from wrangan_cli.engine.models.folder import Model, sample_w


def test_influence_is_the_error_of_one_layers_redraw(tiny_model: Model) -> None:
    got = layer_influence(tiny_model, samples=6, seed=2, batch=4)
    layers = list(tiny_model.generator.random_weights())
    assert list(got) == [*layers, "all"]
    w, epsilon = sample_w(tiny_model.generator, 6, 2), epsilon_of_images(tiny_model, range(6), 2)
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


def test_the_batch_does_not_matter_and_the_seed_does(tiny_model: Model) -> None:
    first, second = (layer_influence(tiny_model, 10, batch=batch) for batch in (10, 3))
    assert first == pytest.approx(second, rel=1e-4)
    other = layer_influence(tiny_model, 10, seed=1)
    assert all(other[name] != pytest.approx(value, rel=1e-3) for name, value in first.items())


def test_epsilon_is_a_function_of_seed_and_index(tiny_model: Model) -> None:
    whole, part = (epsilon_of_images(tiny_model, indices, 5) for indices in (range(40), [7, 3]))
    for name, values in whole.items():
        assert torch.equal(part[name], values[[7, 3]])
        assert values.std().item() == pytest.approx(1, abs=0.05)
        assert abs(values.mean().item()) < 0.05


def test_command(tiny_folder: Path, tiny_model: Model) -> None:
    arguments = ["--metric", "std-share", "--metric", "layer-influence", "--model", tiny_folder]
    result = run(*arguments, "--samples", 5, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    layers = list(tiny_model.generator.random_weights())
    shares = [row for row in rows if row["metric"] == "std-share"]
    assert [row["layer"] for row in shares] == layers
    for row, conv in zip(shares, tiny_model.generator.random_weights().values(), strict=True):
        assert conv.std is not None
        small = sum(abs(value) < 1e-3 for value in conv.std.flatten().tolist())
        assert row["value"] == pytest.approx(small / conv.std.numel())
    expected = layer_influence(tiny_model, 5)
    influences = {row["layer"]: row["value"] for row in rows if row["metric"] == "layer-influence"}
    assert influences == pytest.approx(expected, rel=1e-4)
    plain = run(*arguments, "--samples", 5).stdout.splitlines()
    assert plain[0].startswith(f"std-share  {layers[0]}  ")
    refused = run("--metric", "std-share", "--codes", "x")
    assert (refused.exit_code, "measures a model's layers" in refused.stderr) == (2, True)
