"""Corruption: moved w with a code's own weights, against real images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.test_evaluate import FEATURES, needs_fidelity, run, small_features
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.metrics.corruption import moved_images, random_direction
from wrangan_cli.engine.metrics.fid import fid
from wrangan_cli.engine.metrics.kid import kid
from wrangan_cli.engine.metrics.registry import CODE_METRICS
from wrangan_cli.engine.metrics.samples import REFERENCE_FILE, Reference, save_reference
from wrangan_cli.engine.models.codes import Code, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon

__all__ = ["small_features"]  # a fixture


def codes_of(model: Model, count: int = 3) -> list[Code]:
    """Codes with an ε each; the last one in W+."""
    torch.manual_seed(4)
    info = {"model": model.name, "model_sha256": model.sha256}
    codes = [
        Code(torch.randn(16), {k: v.half() for k, v in draw_epsilon(model.generator).items()}, info=info)
        for _ in range(count)
    ]
    plus = torch.randn(model.generator.config.num_latents, 16)
    return [*codes[:-1], Code(plus, codes[-1].epsilon, info=info)]


def test_images_are_those_of_the_protocol(tiny_model: Model) -> None:
    codes = codes_of(tiny_model)
    drawn = torch.cat(list(moved_images(tiny_model, codes, range(7), seed=3, batch=2)))
    latents = tiny_model.generator.config.num_latents
    for index in range(7):
        code, direction = codes[index % 3], random_direction(3, index, tiny_model)
        assert direction.norm().item() == pytest.approx(1, rel=1e-5)
        w = (code.w.expand(latents, -1) + tiny_model.w_std * direction)[None]
        epsilon = {name: value.float() for name, value in code.epsilon.items()}
        with torch.no_grad():
            alone = tiny_model.generator.synthesis(w, epsilon=epsilon)
        torch.testing.assert_close(drawn[index], alone[0], rtol=1e-4, atol=1e-4)


def test_directions_do_not_depend_on_codes_and_share(tiny_model: Model) -> None:
    codes = codes_of(tiny_model)
    whole = torch.cat(list(moved_images(tiny_model, codes, range(8))))
    part = torch.cat(list(moved_images(tiny_model, codes, [5, 6, 7])))
    torch.testing.assert_close(part, whole[5:], rtol=1e-4, atol=1e-4)
    directions = torch.stack([random_direction(0, index, tiny_model) for index in range(200)])
    assert directions.mean(dim=0).norm() < 0.15  # 1/√200 = .07 for independent ones
    assert not torch.equal(directions[0], random_direction(1, 0, tiny_model))


def known_features(codes: int, each: int, seed: int = 5) -> Tensor:
    """Features whose row i is of code i mod n; every code's are around a point of their own."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.linspace(0, 1, codes).repeat(each)[:, None]
    return torch.randn(codes * each, FEATURES, generator=rng) * 0.3 + centres


@needs_fidelity
def test_the_mean_over_codes_and_the_pooled_number() -> None:
    real = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(1))
    features = known_features(3, 12)
    of_each = [kid(features[code::3], real).value for code in range(3)]
    found = CODE_METRICS["corruption-kid"].compute(features, real, 3)
    assert found.value == pytest.approx(np.mean(of_each), rel=1e-6)
    assert found.standard_error == pytest.approx(np.std(of_each, ddof=1) / 3**0.5, rel=1e-6)
    assert CODE_METRICS["corruption-pooled-kid"].compute(features, real, 3) == kid(features, real)
    frechet = [fid(features[code::3], real).value for code in range(3)]
    assert CODE_METRICS["corruption-fid"].compute(features, real, 3).value == pytest.approx(np.mean(frechet))
    pooled = CODE_METRICS["corruption-pooled-fid"].compute(features, real, 3).value
    assert pooled == pytest.approx(fid(features, real).value)
    # Of one code both are the same, with the error of the metric itself.
    assert CODE_METRICS["corruption-kid"].compute(features, real, 1) == kid(features, real)
    with pytest.raises(WranganError, match="11 images of 3 codes, expected 4 of each: use 12 samples"):
        CODE_METRICS["corruption-kid"].compute(features[:11], real, 3)


@needs_fidelity
def test_command(tiny_folder: Path, tiny_model: Model, tmp_path: Path, small_features: Tensor) -> None:
    real = torch.randn(30, FEATURES, generator=torch.Generator().manual_seed(1))
    save_reference(tiny_folder / REFERENCE_FILE, Reference(real, "held-out.zip", 16))
    codes = codes_of(tiny_model, 2)
    for index, code in enumerate(codes):
        save_code(tmp_path / "codes" / f"{index}.st", code)
    options = ["--model", tiny_folder, "--codes", tmp_path / "codes", "--samples", 20, "--batch", 3]
    result = run("--metric", "corruption-kid", "--metric", "corruption-pooled-kid", *options, "--json")
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    drawn = torch.cat(list(moved_images(tiny_model, codes, range(20))))
    features = drawn.clamp(-1, 1).flatten(1) @ small_features
    values = [kid(features[code::2], real.half().float()).value for code in range(2)]
    assert first["value"] == pytest.approx(np.mean(values), rel=1e-3)
    assert first["standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2, rel=1e-2)
    assert (first["codes"], first["samples"], second["metric"]) == (2, 20, "corruption-pooled-kid")
    together = kid(features, real.half().float())
    assert second["value"] == pytest.approx(together.value, rel=1e-3)
    assert second["standard_error"] == pytest.approx(together.standard_error, rel=1e-3)
    line = run("--metric", "corruption-kid", *options).stdout
    assert "2 codes, 20 samples, 30 of held-out.zip" in line
    few = run("--metric", "corruption-kid", *options[:-3], 7, "--batch", 3)
    assert (few.exit_code, few.stdout) == (1, "")
    assert "7 images of 2 codes, expected 4 of each" in " ".join(few.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "corruption-kid"], "measures codes alone: give --codes"),
        (["--metric", "corruption-kid", "--codes", "x", "--photos", "x"], "and no --photos"),
        (["--metric", "kid", "--codes", "x"], "leave out --codes"),
        (["--metric", "mse", "--codes", "x"], "give --codes and --photos"),
        (["--metric", "corruption-kid", "--codes", "x", "--epsilon", "1"], "codes contain their ε"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
