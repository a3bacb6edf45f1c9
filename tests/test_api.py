"""The Python interface: its names, codes and models in memory, through the engine that the commands use."""

import dataclasses
import gc
import importlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import wrangan
import wrangan_cli
from tests.api_cases import _nothing_kept
from tests.code_files import make_code
from tests.conftest import TINY, random_generator_network
from wrangan_cli import api
from wrangan_cli.api import models
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.editing.directions import Direction, save_directions, unit
from wrangan_cli.engine.library import load_model as read
from wrangan_cli.engine.models import codes as engine_codes
from wrangan_cli.engine.models import folder as model_folder
from wrangan_cli.engine.models.folder import Model, save_model

__all__ = ["_nothing_kept"]  # a fixture


def test_importing_loads_nothing_heavy() -> None:
    lines = (
        "import sys, wrangan, wrangan_cli",
        "assert {'invert', 'edit', '__version__'} <= set(dir(wrangan)) & set(dir(wrangan_cli))",
        "heavy = {'torch', 'numpy', 'PIL'} & set(sys.modules)",
        "assert not heavy, heavy",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("module", [wrangan, wrangan_cli])
def test_both_names_have_the_whole_interface(module: Any) -> None:
    assert set(module.__all__) == {*api.__all__, "__version__"}
    star: dict[str, Any] = {}
    exec(f"from {module.__name__} import *", star)
    for name in api.__all__:
        assert star[name] is getattr(module, name) is getattr(api, name)
        assert getattr(api, name).__doc__
    assert module.__version__ == wrangan_cli.__version__
    with pytest.raises(AttributeError, match="no attribute 'inverse'"):
        _ = module.inverse
    assert (Path(module.__file__).parent / "py.typed").is_file()


def test_submodules_are_imported_as_ever() -> None:
    assert importlib.import_module("wrangan_cli.api").invert is wrangan.invert
    assert not hasattr(wrangan_cli, "no_such_module")


# Codes


def test_codes_there_and_back(tiny_model: Model, other_folder: Path, tmp_path: Path) -> None:
    code = make_code(tiny_model, w_plus=True)
    wrangan.save_code(code, str(tmp_path / "a.st"))
    back = wrangan.load_code(str(tmp_path / "a.st"), tiny_model)
    torch.testing.assert_close(back.w, code.w, rtol=0, atol=0)
    assert repr(back) == "Code(tiny, unknown, w (6, 16), 3 offsets)"
    with pytest.raises(FileError, match="made for another model"):
        wrangan.load_code(tmp_path / "a.st", wrangan.load_model(other_folder))


def test_render_gives_images_and_tensors(tiny_model: Model, tmp_path: Path) -> None:
    codes = [make_code(tiny_model, seed) for seed in range(3)]
    wrangan.save_code(codes[2], tmp_path / "c.st")
    expected = engine_codes.render(tiny_model, codes)
    assert expected.abs().max() > 1  # so that clipping shows
    seen: list[tuple[int, int]] = []
    tensor = wrangan.render(
        [*codes[:2], tmp_path / "c.st"], tiny_model, output="tensor", progress=lambda *at: seen.append(at)
    )
    torch.testing.assert_close(tensor, expected.clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert seen == [(0, 3), (3, 3)]
    single = wrangan.render(codes[0], tiny_model, output="tensor")
    torch.testing.assert_close(single, tensor[0], atol=1e-5, rtol=1e-5)
    images = wrangan.render(codes, tiny_model)
    assert [image.tobytes() for image in images] == [to_pillow(image).tobytes() for image in tensor]
    assert isinstance(wrangan.render(codes[0], tiny_model), Image.Image)
    with pytest.raises(UsageError, match="output 'png'"):
        wrangan.render(codes, tiny_model, output="png")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="no codes given"):
        wrangan.render([], tiny_model)
    with pytest.raises(UsageError, match="Tensor: expected a code"):
        wrangan.render(tensor, tiny_model)  # type: ignore[call-overload]


def test_images_are_reduced_by_area(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, resolution=32, channels={**TINY.channels, 32: 8})
    model = wrangan.load_model(save_model(tmp_path / "m", random_generator_network(config)), "cpu")
    code = wrangan.Code(torch.randn(16), info={"model_sha256": model.sha256})
    whole = engine_codes.render(model, [code])[0]
    small = wrangan.render(code, side=16, output="tensor")
    torch.testing.assert_close(small, whole.reshape(3, 16, 2, 16, 2).mean(dim=(2, 4)).clamp(-1, 1))
    assert wrangan.edit(code, Direction("d", unit(torch.ones(16)), 1.0), 0, side=16).size == (16, 16)
    for call in (wrangan.render, lambda code, side: wrangan.interpolate([code, code], side=side)):
        with pytest.raises(UsageError, match="side 8"):
            call(code, side=8)  # type: ignore[operator]


def learned(model: Model) -> dict[str, Direction]:
    """Two directions, one of some rows, in the model's folder."""
    made = [
        Direction("smile", unit(torch.randn(16)), 2.0, range=(-2.0, 2.0)),
        Direction("age", unit(torch.randn(16)), 0.5, layers=(1, 2)),
    ]
    save_directions(model.path / "directions.safetensors", model, made)
    return {direction.name: direction for direction in made}


def test_edit_moves_w_by_standard_deviations(tiny_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    known, code = learned(tiny_model), make_code(tiny_model)
    found = wrangan.directions(tiny_model)
    assert {name: each.range for name, each in found.items()} == {"smile": (-2.0, 2.0), "age": (-3.0, 3.0)}
    smiling = wrangan.edit(code, "smile", 1.5, model=tiny_model, output="code")
    expected = code.w + 1.5 * 2.0 * known["smile"].vector
    torch.testing.assert_close(smiling.w, expected)
    assert smiling.epsilon == code.epsilon
    both = wrangan.edit(code, {"smile": 1.5, "age": -3}, model=tiny_model, output="code")
    rows = expected.expand(6, -1).clone()
    rows[1:3] -= 3 * 0.5 * known["age"].vector
    torch.testing.assert_close(both.w, rows)
    again = wrangan.edit(code, found["smile"], 1.5, model=tiny_model, output="tensor")
    torch.testing.assert_close(again, wrangan.render(smiling, tiny_model, output="tensor"))
    image = wrangan.edit([code], "smile", 1.5, model=tiny_model)[0]
    assert image.tobytes() == to_pillow(again).tobytes()
    assert not caplog.messages
    wrangan.edit(code, "smile", 3, model=tiny_model)
    assert caplog.messages == ["smile+3 is outside the sensible range -2…2"]
    assert caplog.records[0].levelno == logging.WARNING
    assert "tensor" not in repr(found["smile"])


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        (("nose", 1), "direction 'nose' is not in tiny; there are: smile, age"),
        (("smile",), "no strength: give one"),
        (({"smile": 1}, 2), "several directions: give a dict"),
        (({},), "no direction: the dict of strengths is empty"),
        (("smile", float("nan")), "strength nan of smile"),
        ((Direction("d", unit(torch.ones(8)), 1.0), 1), "d has shape (8,), expected (16,)"),
    ],
)
def test_edits_that_cannot_be(asked: tuple[Any, ...], cause: str, tiny_model: Model) -> None:
    learned(tiny_model)
    with pytest.raises(WranganError) as raised:
        wrangan.edit(make_code(tiny_model), *asked, model=tiny_model)
    assert cause in str(raised.value)


def test_interpolate_goes_at_an_even_pace(tiny_model: Model) -> None:
    first, last = make_code(tiny_model, 0), make_code(tiny_model, 1)
    way = wrangan.interpolate([first, last], 5, model=tiny_model, output="code")
    for step, code in enumerate(way):
        torch.testing.assert_close(code.w, torch.lerp(first.w, last.w, step / 4))
        for name, value in code.epsilon.items():
            torch.testing.assert_close(value, torch.lerp(first.epsilon[name], last.epsilon[name], step / 4))
    seen: list[tuple[int, int]] = []
    tensor = wrangan.interpolate(
        [first, last], 5, model=tiny_model, output="tensor", progress=lambda *at: seen.append(at)
    )
    torch.testing.assert_close(tensor, wrangan.render(way, tiny_model, output="tensor"))
    assert seen[-1] == (5, 5)
    images = wrangan.interpolate([first, last, first], 3, loop=True, smooth=True, model=tiny_model)
    assert len(images) == 6
    for wrong in ([first], [first, last]):
        with pytest.raises(UsageError):
            wrangan.interpolate(wrong, 2 if len(wrong) < 2 else 1, model=tiny_model)


# Models


def test_codes_find_the_model_that_is_in_memory(tiny_folder: Path) -> None:
    model = wrangan.load_model(str(tiny_folder), device="cpu")
    assert repr(model) == "Model(tiny, stylegan2, 16 px, cpu)"
    code = make_code(model)
    assert models.model_of(None, [code]) is model
    del model
    gc.collect()
    with pytest.raises(UsageError, match="model 'tiny', which is not bundled: load it, or give model="):
        wrangan.render(code)
    assert wrangan.render(code, tiny_folder).size == (16, 16)


def test_codes_of_another_model(tiny_model: Model, other_folder: Path) -> None:
    other = read(str(other_folder))
    with pytest.raises(FileError, match="code 2: made for another model"):
        wrangan.render([make_code(tiny_model), make_code(other)], tiny_model)
    with pytest.raises(UsageError, match="model 'nothing'"):
        wrangan.load_model("nothing")
    with pytest.raises(UsageError, match="device 'abacus'"):
        wrangan.load_model(other_folder, device="abacus")


def test_bundled_models_are_loaded_once(
    tiny_model: Model, other_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = {"tiny": tiny_model.path, "ffhq": other_folder}
    monkeypatch.setattr(model_folder, "bundled_models", lambda: bundled)
    found = models.model_of(None, [make_code(tiny_model)])
    assert found.sha256 == tiny_model.sha256
    assert models.model_of("tiny") is found
    assert models.model_of(None).path == other_folder
    assert models.model_of(tiny_model) is tiny_model
