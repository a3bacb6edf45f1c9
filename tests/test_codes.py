"""Codes: one file an image, drawn again as they were, refused where they do not fit."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import TINY
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import (
    Code,
    as_w_plus,
    holds_code,
    load_code,
    read_info,
    render,
    save_code,
)
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon


def code_for(model: Model, seed: int = 0, **offsets: dict[str, torch.Tensor]) -> Code:
    torch.manual_seed(seed)
    info = {"model": model.name, "model_sha256": model.sha256, "method": "wrangan", "steps": 3}
    return Code(w=torch.randn(TINY.style_dim), info=info, **offsets)


def test_a_saved_code_comes_back(tiny_model: Model, tmp_path: Path) -> None:
    epsilon = draw_epsilon(tiny_model.generator)
    delta = {"conv1": torch.randn(16, 16, 3, 3)}
    code = code_for(tiny_model, epsilon=epsilon, delta=delta)
    save_code(tmp_path / "a.st", code)
    back = load_code(tmp_path / "a.st", tiny_model)
    assert torch.equal(back.w, code.w)
    assert back.w.dtype == torch.float32
    assert set(back.epsilon) == set(epsilon)
    for name, value in epsilon.items():
        assert back.epsilon[name].dtype == torch.float16
        assert torch.equal(back.epsilon[name], value.half())
    assert torch.equal(back.delta["conv1"], delta["conv1"].half())
    assert not back.noise
    assert not back.parameters
    assert {**code.info, "kind": "code"} == back.info
    assert read_info(tmp_path / "a.st")["steps"] == 3


def test_render_draws_each_code_as_if_alone(tiny_model: Model) -> None:
    codes = [
        code_for(tiny_model, 0, epsilon=draw_epsilon(tiny_model.generator)),
        code_for(tiny_model, 1),
        Code(w=torch.randn(TINY.num_latents, TINY.style_dim), delta={"conv1": torch.randn(16, 16, 3, 3)}),
    ]
    together = render(tiny_model, codes)
    assert together.shape == (3, 3, 16, 16)
    for i, code in enumerate(codes):
        torch.testing.assert_close(together[i : i + 1], render(tiny_model, [code]), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        plain = tiny_model.generator.synthesis(codes[1].w[None])
        first = tiny_model.generator.synthesis(codes[0].w[None], epsilon=codes[0].epsilon)
    torch.testing.assert_close(together[1:2], plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[:1], first, atol=1e-5, rtol=1e-4)


def test_noise_and_parameters_come_back_and_are_drawn(tiny_model: Model, tmp_path: Path) -> None:
    noise = {"1": torch.randn(8, 8), "4": torch.randn(16, 16)}
    bias = {"to_rgb1.bias": torch.full((1, 3, 1, 1), 0.5)}
    codes = [
        code_for(tiny_model, 0, parameters=bias, epsilon=draw_epsilon(tiny_model.generator)),
        code_for(tiny_model, 1, noise=noise),
        code_for(tiny_model, 2),
        code_for(tiny_model, 3, noise=noise, parameters=bias),
    ]
    back = []
    for index, code in enumerate(codes):
        save_code(tmp_path / f"{index}.st", code)
        back.append(load_code(tmp_path / f"{index}.st", tiny_model))
    assert torch.equal(back[1].noise["4"], noise["4"].half())
    assert back[3].parameters["to_rgb1.bias"].dtype == torch.float16
    together = render(tiny_model, back)
    generator = tiny_model.generator
    maps = [getattr(generator.noises, f"noise_{i}").clone() for i in range(5)]
    moved = [m + noise[str(i)].half().float() if str(i) in noise else m for i, m in enumerate(maps)]
    with torch.no_grad():
        expected = [
            generator.synthesis(codes[0].w[None], epsilon={k: v.half() for k, v in codes[0].epsilon.items()}),
            generator.synthesis(codes[1].w[None], noise=moved),
            generator.synthesis(codes[2].w[None]),
            generator.synthesis(codes[3].w[None], noise=moved),
        ]
    # The first RGB's bias is up-sampled by filters of gain 1: away from the edge it arrives as it is.
    middle = (..., slice(6, 10), slice(6, 10))
    for index, plain in enumerate(expected):
        shift = 0.5 if index in (0, 3) else 0.0
        torch.testing.assert_close(
            together[index : index + 1][middle], plain[middle] + shift, atol=1e-4, rtol=1e-3
        )


def test_w_as_rows() -> None:
    w = torch.randn(16)
    assert torch.equal(as_w_plus(w, 3), torch.stack([w, w, w]))
    rows = torch.randn(3, 16)
    assert as_w_plus(rows, 3) is rows


def test_a_code_of_another_model_is_refused(tiny_model: Model, other_folder: Path, tmp_path: Path) -> None:
    save_code(tmp_path / "a.st", code_for(tiny_model))
    with pytest.raises(FileError, match=r"made for another model \(tiny.*not for other"):
        load_code(tmp_path / "a.st", load_model(str(other_folder)))
    assert load_code(tmp_path / "a.st").info["model"] == "tiny"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"w": torch.randn(7)}, "w has shape"),
        ({"epsilon": {"convs.1": torch.zeros(2, 2, 3, 3)}}, "epsilon.convs.1 does not fit"),
        ({"epsilon": {"conv1": torch.zeros(16, 16, 3, 3)}}, "epsilon.conv1 does not fit"),
        ({"delta": {"convs.77": torch.zeros(16, 16, 3, 3)}}, "delta.convs.77 does not fit"),
        ({"noise": {"0": torch.zeros(8, 8)}}, "noise.0 does not fit"),
        ({"noise": {"5": torch.zeros(16, 16)}}, "noise.5 does not fit"),
        ({"noise": {"x": torch.zeros(16, 16)}}, "noise.x does not fit"),
        (
            {"parameters": {"conv1.conv.weight": torch.zeros(16, 16, 3, 3)}},
            "parameter.conv1.conv.weight does",
        ),
        ({"parameters": {"style.1.weight": torch.zeros(16, 16)}}, "parameter.style.1.weight does not fit"),
        ({"parameters": {"nosuch": torch.zeros(1)}}, "parameter.nosuch does not fit"),
    ],
)
def test_a_code_that_does_not_fit(tiny_model: Model, tmp_path: Path, change: dict, cause: str) -> None:
    code = code_for(tiny_model)
    fields = {"w": code.w, "info": code.info, **change}
    save_code(tmp_path / "a.st", Code(**fields))
    with pytest.raises(FileError, match=cause):
        load_code(tmp_path / "a.st", tiny_model)


@pytest.mark.parametrize("where", ["w", "epsilon"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_written(
    tiny_model: Model, tmp_path: Path, where: str, value: float
) -> None:
    epsilon = draw_epsilon(tiny_model.generator)
    code = code_for(tiny_model, epsilon=epsilon)
    (code.w if where == "w" else epsilon["convs.1"]).view(-1)[0] = value
    with pytest.raises(WranganError, match="not finite"):
        save_code(tmp_path / "a.st", code)
    assert not (tmp_path / "a.st").exists()


def test_epsilon_beyond_half_precision_is_not_written(tiny_model: Model, tmp_path: Path) -> None:
    code = code_for(tiny_model, epsilon={"convs.1": torch.full((12, 12, 3, 3), 1e6)})
    with pytest.raises(WranganError, match="not finite"):
        save_code(tmp_path / "a.st", code)


def test_a_file_with_nan_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    w = torch.full((16,), float("nan"))
    save_file({"w": w}, tmp_path / "a.st", metadata={"wrangan": '{"kind": "code"}'})
    with pytest.raises(FileError, match="not finite"):
        load_code(tmp_path / "a.st", tiny_model)


def test_broken_files_are_refused(tiny_model: Model, tiny_folder: Path, tmp_path: Path) -> None:
    good, path = tmp_path / "a.st", tmp_path / "b.st"
    save_code(good, code_for(tiny_model, epsilon=draw_epsilon(tiny_model.generator)))
    causes = {
        good.read_bytes()[:-50]: "not a readable safetensors",
        b"": "not a readable safetensors",
        b"hello, this is text": "not a readable safetensors",
        (tiny_folder / "model.safetensors").read_bytes(): "not a code",
    }
    for content, cause in causes.items():
        path.write_bytes(content)
        with pytest.raises(FileError, match=cause) as caught:
            load_code(path, tiny_model)
        assert "\n" not in str(caught.value)
    save_file({"w": torch.zeros(16)}, path)
    with pytest.raises(FileError, match="not one that wrangan wrote"):
        load_code(path, tiny_model)
    with pytest.raises(FileError, match="no such file"):
        load_code(tmp_path / "nosuch.st", tiny_model)


def test_whether_a_file_holds_a_code(tmp_path: Path, tiny_model: Model) -> None:
    code = Code(torch.randn(16), info={"model_sha256": tiny_model.sha256, "method": "imported"})
    save_code(tmp_path / "a.st", code)
    assert holds_code(tmp_path / "a.st", code)
    assert not holds_code(tmp_path / "a.st", dataclasses.replace(code, w=code.w + 1))
    assert not holds_code(tmp_path / "a.st", dataclasses.replace(code, info={**code.info, "method": "pti"}))
    (tmp_path / "b.st").write_bytes(b"no code")
    assert not holds_code(tmp_path / "b.st", code)
    assert not holds_code(tmp_path / "none.st", code)
