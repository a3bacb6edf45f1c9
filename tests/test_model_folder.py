"""Models on disk: written, read, and refused when they are broken."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import TINY, random_generator_network
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models import folder as model_folder
from wrangan_cli.engine.models.architectures import build_generator, read_generator_config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import (
    FITTED,
    Model,
    bundled_models,
    find_discriminator,
    load_discriminator,
    read_config,
    save_model,
    w_statistics,
)


def edit_weights(folder: Path, key: str, value: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    save_file(tensors, path, metadata=metadata)


def test_a_saved_model_draws_the_same_images(tiny_folder: Path) -> None:
    model, original = load_model(str(tiny_folder)), random_generator_network()
    w = torch.randn(2, TINY.style_dim)
    with torch.no_grad():
        torch.testing.assert_close(model.generator.synthesis(w), original.synthesis(w), rtol=0, atol=0)
    assert model.name == "tiny"
    assert model.resolution == 16
    assert model.perceptual == "st-lpips-alex"
    assert model.sha256 == sha256(tiny_folder / "model.safetensors")
    assert not model.generator.training
    assert not any(p.requires_grad for p in model.generator.parameters())


def test_half_precision_storage(tmp_path: Path) -> None:
    generator = random_generator_network()
    save_model(tmp_path / "half", generator, dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["generator.conv1.conv.weight"].dtype == torch.float16
    assert not any(name.endswith(".kernel") for name in stored)
    loaded = load_model(str(tmp_path / "half")).generator
    assert loaded.conv1.conv.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.conv1.conv.weight, generator.conv1.conv.weight, atol=0, rtol=2**-11)


def test_statistics_of_w(tiny_model: Model) -> None:
    z = torch.randn(10_000, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        w = tiny_model.generator.mapping(z).double()
    torch.testing.assert_close(tiny_model.w_mean.double(), w.mean(dim=0), atol=1e-5, rtol=1e-4)
    expected = w.var(dim=0, unbiased=False).sum().sqrt().item()
    assert tiny_model.w_std == pytest.approx(expected, rel=1e-4)
    assert w_statistics(tiny_model.generator)[1] == pytest.approx(tiny_model.w_std)


def test_a_given_w_mean_is_kept(tmp_path: Path) -> None:
    save_model(tmp_path / "m", random_generator_network(), w_mean=torch.arange(16.0))
    torch.testing.assert_close(load_model(str(tmp_path / "m")).w_mean, torch.arange(16.0))


def test_the_discriminator_comes_back(tiny_folder: Path) -> None:
    torch.manual_seed(1)
    random_generator_network()
    images = torch.randn(4, 3, 16, 16)
    loaded = load_discriminator(tiny_folder, TINY)
    stored = load_file(tiny_folder / "discriminator.safetensors")
    other = Discriminator(TINY)
    other.load_state_dict(stored, strict=False)
    torch.testing.assert_close(loaded(images), other(images))


def test_a_model_saved_without_a_discriminator_does_not_get_the_old_one(tiny_folder: Path) -> None:
    assert find_discriminator(load_model(str(tiny_folder))) is not None
    save_model(tiny_folder, random_generator_network())
    assert find_discriminator(load_model(str(tiny_folder))) is None


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (None, "lacks the tensor"),
        (torch.zeros(1, 2, 3), "has shape (1, 2, 3), expected"),
        (torch.full((1, 16, 16, 3, 3), float("nan")), "not finite"),
    ],
)
def test_a_broken_tensor_is_named(tiny_folder: Path, value: torch.Tensor | None, cause: str) -> None:
    edit_weights(tiny_folder, "generator.conv1.conv.weight", value)
    with pytest.raises(FileError) as caught:
        load_model(str(tiny_folder))
    message = str(caught.value)
    assert cause in message
    assert "generator.conv1.conv.weight" in message
    assert message.startswith(str(tiny_folder / "model.safetensors"))


@pytest.mark.parametrize("name", ["w_mean", "w_std"])
@pytest.mark.parametrize(
    "value", [None, torch.zeros(3), torch.full((16,), float("nan")), torch.tensor(torch.inf)]
)
def test_bad_statistics_are_named(tiny_folder: Path, name: str, value: torch.Tensor | None) -> None:
    edit_weights(tiny_folder, name, value)
    with pytest.raises(FileError, match=name):
        load_model(str(tiny_folder))


def test_a_superfluous_tensor_is_refused(tiny_folder: Path) -> None:
    path = tiny_folder / "discriminator.safetensors"
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    save_file({**load_file(path), "extra": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(FileError, match="extra"):
        load_discriminator(tiny_folder, TINY)


def test_missing_and_truncated_weights(tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="not a readable safetensors file"):
        load_model(str(tiny_folder))
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        load_model(str(tiny_folder))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not a model's settings"),
        ('{"format": "other"}', "not a model's settings"),
        ('{"format": "wrangan-model"}', "bad generator settings"),
        ('{"format": "wrangan-model", "generator": {"resolution": 17, "channels": {}}}', "power of two"),
        ('{"format": "wrangan-model", "generator": 3}', "bad generator settings"),
    ],
)
def test_bad_settings_are_named(tiny_folder: Path, text: str, cause: str) -> None:
    (tiny_folder / "config.json").write_text(text)
    with pytest.raises(FileError, match=cause) as caught:
        load_model(str(tiny_folder))
    assert caught.value.path == tiny_folder / "config.json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", {"4": -3, "8": 2, "16": 2}),
        ("style_dim", 0),
        ("style_dim", "x"),
        ("mapping_layers", -1),
        ("stddev_group", 0),
        ("fir_taps", []),
        ("fir_taps", "ab"),
        ("fir_taps", [1, -1]),
        ("conv_clamp", "q"),
        ("resolution", 16.5),
    ],
)
def test_settings_that_no_network_can_have(tiny_folder: Path, name: str, value: object) -> None:
    record = json.loads((tiny_folder / "config.json").read_text())
    record["generator"][name] = value
    (tiny_folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(FileError, match="bad generator settings"):
        load_model(str(tiny_folder))


def test_a_superfluous_tensor_of_the_generator_is_named(tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    tensors, record = read_tensors(path)
    write_tensors(path, {**tensors, "generator.extra": torch.zeros(1)}, record)
    with pytest.raises(FileError, match=r"does not belong here: generator\.extra"):
        load_model(str(tiny_folder))


def test_an_unknown_model_lists_the_bundled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"faces-64": Path("a"), "churches-64": Path("b")}
    monkeypatch.setattr(model_folder, "bundled_models", lambda: known)
    with pytest.raises(UsageError, match=r"'nosuch'.*faces-64, churches-64"):
        load_model("nosuch")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"without config\.json"):
        load_model(str(tmp_path))


def test_bundled_models_can_be_read() -> None:
    for name, folder in bundled_models().items():
        config = json.loads((folder / "config.json").read_text())
        assert config["format"] == "wrangan-model"
        if "fetch" not in config:
            assert load_model(name).name == name


def test_what_ships_with_a_fetched_model_fits_it() -> None:
    """Its weights need the network; σ, statistics and companions are here, and fit what the record pins."""
    folder = bundled_models()[DEFAULT_MODEL]
    record = read_config(folder)
    config = read_generator_config(record)
    with torch.device("meta"):
        generator = build_generator(config)
    fitted, _ = read_tensors(folder / FITTED)
    random = {f"{weight.key}.std": weight.shape for weight in generator.random_weights().values()}
    assert {name: tensor.shape for name, tensor in fitted.items()} == {
        **random,
        "w_mean": (config.style_dim,),
        "w_std": (),
    }
    assert all((fitted[name] > 0).all() for name in random)
    for name in ("encoder", "directions"):
        about = read_tensors(folder / f"{name}.safetensors")[1]
        assert about["model_sha256"] == record["sha256"]["model.safetensors"], name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6


def test_a_crash_while_saving_never_mixes_two_models(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any of the renames: the old model, the new one, or a clear refusal."""
    old, rename = load_model(str(tiny_folder)).sha256, os.replace
    new = random_generator_network(seed=9)
    outcomes = []
    for survivors in range(4):
        renamed: list[Path] = []

        def crashing(source: Path, target: Path, allowed: int = survivors, done: list = renamed) -> None:
            if len(done) == allowed:
                raise KeyboardInterrupt
            done.append(target)
            rename(source, target)

        save_model(tiny_folder, random_generator_network(), Discriminator(TINY))
        monkeypatch.setattr(os, "replace", crashing)
        with contextlib.suppress(KeyboardInterrupt):
            save_model(tiny_folder, new, Discriminator(TINY))
        monkeypatch.setattr(os, "replace", rename)
        assert not list(tiny_folder.glob(".*"))
        try:
            load_discriminator(tiny_folder, TINY)
            outcomes.append("old" if load_model(str(tiny_folder)).sha256 == old else "new")
        except FileError as error:
            outcomes.append(error.cause.split(": ", 1)[1])
    refused = "saving was interrupted: save, train or convert the model again"
    assert outcomes == ["old", refused, refused, "new"]


def test_models_of_before_name_no_sha256(tiny_folder: Path) -> None:
    record = json.loads((tiny_folder / "config.json").read_text())
    assert record["sha256"]["model.safetensors"] == sha256(tiny_folder / "model.safetensors")
    del record["sha256"]
    (tiny_folder / "config.json").write_text(json.dumps(record))
    load_model(str(tiny_folder))
    load_discriminator(tiny_folder, TINY)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="not written"):
        save_model(tmp_path / "file" / "m", random_generator_network())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    generator = random_generator_network()
    with torch.no_grad():
        generator.style[1].weight[0, 0] = float("nan")
    with pytest.raises(WranganError, match="not finite"):
        save_model(tmp_path / "m", generator)
    assert not (tmp_path / "m").exists()
