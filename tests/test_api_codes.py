"""Codes in Python: random ones, changed ones, and gradients through `render`."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import wrangan
from tests.architectures import a_model, every
from tests.code_files import LATENTS, make_code
from tests.conftest import random_generator_network
from wrangan_cli.api import models
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.engine.models.generator import GeneratorConfig

W_LENGTH = 16


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    models._LOADED.clear()


# Random codes


@pytest.mark.parametrize(("truncation", "epsilon"), [(1.0, 0.0), (0.6, 0.0), (0.6, 1.0)])
def test_random_codes_are_those_that_generate_draws(
    truncation: float, epsilon: float, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "drawn"
    words = ["--seeds", "3,8", "--truncation", str(truncation), "--epsilon", str(epsilon), "--device", "cpu"]
    result = CliRunner().invoke(app, ["generate", *words, "--model", str(tiny_folder), "--out", str(out)])
    assert result.exit_code == 0
    model = wrangan.load_model(tiny_folder, "cpu")
    codes = wrangan.random_codes(model, (3, 8), truncation=truncation, epsilon=epsilon)
    for seed, code in zip((3, 8), codes, strict=True):
        drawn = np.asarray(Image.open(out / f"seed-{seed}.png"))
        np.testing.assert_array_equal(np.asarray(wrangan.render(code)), drawn)
        assert code.info["seed"] == seed
        assert bool(code.epsilon) == bool(epsilon)
    assert not torch.equal(codes[0].w, codes[1].w)


def test_random_codes_are_codes(tiny_model: Model, tmp_path: Path) -> None:
    (code,) = wrangan.random_codes(tiny_model, np.arange(5, 6))
    wrangan.save_code(code, tmp_path / "new" / "a.st")
    back = wrangan.load_code(tmp_path / "new" / "a.st", tiny_model)
    assert torch.equal(back.w, code.w)
    assert back.info["seed"] == 5
    assert len(wrangan.random_codes(tiny_model)) == 1
    assert wrangan.random_codes(tiny_model, []) == []


@pytest.mark.parametrize(
    ("seeds", "options", "cause"),
    [
        (3, {}, "seeds 3: expected a list of numbers"),
        ("0-15", {}, "seeds '0-15': expected a list of numbers"),
        ([0, -1], {}, "seed -1: expected a whole number from 0"),
        ([2**64], {}, "expected a whole number from 0"),
        ([0.5], {}, "seed 0.5: expected a whole number"),
        ([0], {"truncation": -1.0}, "truncation -1: expected 0"),
        ([0], {"epsilon": float("nan")}, "epsilon nan: not a finite number"),
    ],
)
def test_no_random_codes(seeds: Any, options: dict[str, float], cause: str, tiny_model: Model) -> None:
    with pytest.raises(UsageError) as raised:
        wrangan.random_codes(tiny_model, seeds, **options)
    assert cause in str(raised.value)


def test_no_random_weights_no_epsilon(plain_config: StyleGAN2Config, tmp_path: Path) -> None:
    plain = wrangan.load_model(save_model(tmp_path / "plain", random_generator_network(plain_config)), "cpu")
    with pytest.raises(UsageError, match="no random weights"):
        wrangan.random_codes(plain, [0], epsilon=1.0)


# Codes of one's own


def of(model: Model) -> dict[str, str]:
    return {"model": model.name, "model_sha256": model.sha256}


def test_a_code_is_replaced_and_not_changed(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    w = code.w.clone()
    moved = dataclasses.replace(code, w=code.w + 1)
    plain = dataclasses.replace(code, epsilon={})
    assert torch.equal(code.w, w)
    assert torch.equal(moved.w, w + 1)
    assert code.epsilon
    assert not plain.epsilon
    expected = tiny_model.generator.synthesis(w[None])[0].clamp(-1, 1)
    torch.testing.assert_close(wrangan.render(plain, tiny_model, output="tensor"), expected)
    for name in ("w", "info", "nonsense"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=rf"dataclasses.replace\(code, {name}=…\)"):
            setattr(code, name, torch.zeros(W_LENGTH))
    assert torch.equal(code.w, w)


def test_addition_in_place_changes_w_and_does_not_also_raise(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    w = code.w.clone()
    code.w += 1
    assert torch.equal(code.w, w + 1)


def test_offsets_are_not_shared_with_the_dict_given(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    given = dict(code.epsilon)
    own = dataclasses.replace(code, epsilon=given)
    given.clear()
    assert own.epsilon.keys() == code.epsilon.keys()


def test_codes_are_equal_to_themselves_alone(tiny_model: Model) -> None:
    code, same = make_code(tiny_model), make_code(tiny_model)
    assert code == code
    assert code != same
    assert len({code, same, code}) == 2
    for copied in (copy.deepcopy(code), pickle.loads(pickle.dumps(code))):
        assert torch.equal(copied.w, code.w)
        with pytest.raises(dataclasses.FrozenInstanceError):
            copied.w = torch.zeros(W_LENGTH)


def test_directions_and_models_can_be_compared(tiny_model: Model) -> None:
    one, other = (wrangan.Direction("d", torch.ones(4) / 2, 1.0) for _ in range(2))
    assert one != other
    assert {one: 1.0, other: 2.0}[one] == 1.0
    assert tiny_model in {tiny_model}


@pytest.mark.parametrize(
    "convert",
    [lambda w: w.double(), lambda w: w.numpy(), lambda w: w.double().numpy(), lambda w: w],
    ids=["float64", "numpy", "numpy float64", "float32"],
)
def test_w_of_any_floating_point_is_that_of_float32(
    convert: Callable[[Tensor], Any], tiny_model: Model, tmp_path: Path
) -> None:
    w, epsilon = torch.randn(LATENTS, W_LENGTH), make_code(tiny_model).epsilon
    expected = wrangan.render(wrangan.Code(w, epsilon, info=of(tiny_model)), tiny_model, output="tensor")
    offsets = {name: convert(value) for name, value in epsilon.items()}
    code = wrangan.Code(convert(w), offsets, info=of(tiny_model))
    assert code.w.dtype == torch.float32
    assert {value.dtype for value in code.epsilon.values()} == {torch.float32}
    torch.testing.assert_close(wrangan.render(code, tiny_model, output="tensor"), expected)
    wrangan.save_code(code, tmp_path / "a.st")
    assert torch.equal(wrangan.load_code(tmp_path / "a.st", tiny_model).w, w)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((torch.zeros(1, W_LENGTH),), "w has shape (1, 16): expected (style_dim,) in W or (rows"),
        ((torch.zeros(1, W_LENGTH),), "pass w[0]"),
        ((torch.zeros(1, LATENTS, W_LENGTH),), "w has shape (1, 6, 16)"),
        ((torch.zeros(()),), "w has shape ()"),
        ((torch.zeros(W_LENGTH, dtype=torch.int64),), "w: Tensor of int64: expected a tensor or an array of"),
        ((np.zeros(W_LENGTH, np.int64),), "w: ndarray of int64: expected a tensor or an array of floating"),
        (([0.0] * W_LENGTH,), "w: list: expected a tensor"),
        ((torch.zeros(W_LENGTH), torch.zeros(3)), "epsilon: Tensor: expected a dict of tensors by name"),
        ((torch.zeros(W_LENGTH), {"conv1": 1.0}), "epsilon.conv1: float: expected a tensor"),
    ],
)
def test_what_is_no_code(arguments: tuple[Any, ...], cause: str) -> None:
    with pytest.raises(UsageError) as raised:
        wrangan.Code(*arguments)
    assert cause in str(raised.value)


def test_values_that_are_not_finite_are_not_rendered(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    name = next(iter(code.epsilon))
    broken = {**code.epsilon, name: torch.full_like(code.epsilon[name], torch.inf)}
    for wrong, cause in (
        (dataclasses.replace(code, w=code.w * torch.nan), "code: w has values that are not finite"),
        (dataclasses.replace(code, epsilon=broken), f"code: epsilon.{name} has values that are not finite"),
    ):
        with pytest.raises(WranganError) as raised:
            wrangan.render(wrong, tiny_model)
        assert cause in str(raised.value)
    with pytest.raises(FileError, match=r"code: w has shape \(5, 16\).*: expected \(16,\) or \(6, 16\)"):
        wrangan.render(dataclasses.replace(code, w=torch.zeros(5, W_LENGTH)), tiny_model)


def test_a_code_that_names_no_model_needs_one(tiny_model: Model, tmp_path: Path) -> None:
    w = torch.randn(W_LENGTH)
    bare, named = wrangan.Code(w), wrangan.Code(w, info=of(tiny_model))
    assert wrangan.render(bare, tiny_model).tobytes() == wrangan.render(named, tiny_model).tobytes()
    with pytest.raises(
        UsageError, match=r"does not name its model: give model=, or .*'model_sha256': model.sha256"
    ):
        wrangan.render(bare)
    wrangan.save_code(bare, tmp_path / "a.st")
    out = str(tmp_path / "a.png")
    words = ["edit", str(tmp_path / "a.st"), "--direction", "smile", "--strength", "1", "--out", out]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "a.st: does not name its model: give --model" in result.stderr


# Gradients


def parts(code: wrangan.Code) -> list[Tensor]:
    return [code.w, *code.epsilon.values()]


def moved_by(code: wrangan.Code, step: float, way: list[Tensor]) -> wrangan.Code:
    w, *offsets = (value.detach() + step * one for value, one in zip(parts(code), way, strict=True))
    return dataclasses.replace(code, w=w, epsilon=dict(zip(code.epsilon, offsets, strict=True)))


def learnable(code: wrangan.Code) -> wrangan.Code:
    epsilon = {name: value.clone().requires_grad_() for name, value in code.epsilon.items()}
    return dataclasses.replace(code, w=code.w.clone().requires_grad_(), epsilon=epsilon)


@every
@pytest.mark.parametrize("w_plus", [False, True])
def test_gradients_are_those_of_finite_differences(
    config: GeneratorConfig, w_plus: bool, tmp_path: Path
) -> None:
    model = a_model(config, tmp_path)
    (code,) = wrangan.random_codes(model, [3], epsilon=0.3)
    if w_plus:
        code = dataclasses.replace(code, w=code.w + 0.1 * torch.randn(config.num_latents, W_LENGTH))
    weights = torch.randn(3, 16, 16)

    def loss(of: wrangan.Code) -> Tensor:
        image = wrangan.render(of, model, output="tensor", clip=False)
        return (image * weights).double().mean()

    free = learnable(code)
    loss(free).backward()  # type: ignore[no-untyped-call]
    for number, value in enumerate(parts(free)):  # each tensor by itself, along its gradient
        assert value.grad is not None
        way = [torch.zeros_like(other) for other in parts(code)]
        way[number] = value.grad / value.grad.norm()
        step = 1e-3
        difference = (loss(moved_by(code, step, way)) - loss(moved_by(code, -step, way))) / (2 * step)
        assert difference.item() == pytest.approx(value.grad.norm().item(), rel=0.05)  # ReLU has kinks


def test_there_is_a_graph_only_where_one_is_wanted(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    free = dataclasses.replace(code, w=code.w.clone().requires_grad_())
    plain = wrangan.render(code, tiny_model, output="tensor")
    assert not plain.requires_grad
    drawn = wrangan.render([code, free], tiny_model, output="tensor")
    assert drawn.requires_grad
    torch.testing.assert_close(drawn[0].detach(), plain)
    with torch.no_grad():
        assert not wrangan.render(free, tiny_model, output="tensor").requires_grad
    image = wrangan.render(free, tiny_model)
    assert image.tobytes() == wrangan.render(code, tiny_model).tobytes()
    direction = wrangan.Direction("d", torch.full((W_LENGTH,), 0.25), 1.0)
    assert wrangan.edit(free, direction, 1, model=tiny_model, output="tensor").requires_grad
    assert wrangan.interpolate([free, code], 3, model=tiny_model, output="tensor").requires_grad
    assert len(wrangan.interpolate([free, code], 3, model=tiny_model)) == 3


def test_only_clipped_values_lose_their_gradient(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    whole = wrangan.render(code, tiny_model, output="tensor", clip=False)
    clipped = wrangan.render(code, tiny_model, output="tensor")
    assert whole.abs().max() > 1
    assert torch.equal(whole.clamp(-1, 1), clipped)
    with pytest.raises(UsageError, match="images are always clipped"):
        wrangan.render(code, tiny_model, clip=False)


def test_a_loss_of_ones_own_is_minimised(tiny_model: Model) -> None:
    target = wrangan.render(make_code(tiny_model, 7, epsilon=False), tiny_model, output="tensor", clip=False)
    start = make_code(tiny_model, 7)
    w = (start.w + 0.3).requires_grad_()
    epsilon = {name: value.clone().requires_grad_() for name, value in start.epsilon.items()}
    optimizer = torch.optim.Adam([w, *epsilon.values()], lr=0.03)
    losses = []
    for _ in range(60):
        code = dataclasses.replace(start, w=w, epsilon=epsilon)
        loss = (wrangan.render(code, tiny_model, output="tensor", clip=False) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
