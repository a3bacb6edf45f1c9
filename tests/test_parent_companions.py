"""A smaller form of a bundled model: its encoder, attribute net and directions are that one's."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.architectures import network
from tests.fetch_cases import Place, bundle, fitted_tensors, make_place
from tests.openvino_files import NARROW
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.editing.directions import (
    Direction,
    add_directions,
    directions_file,
    load_directions,
    save_directions,
)
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.architectures import build_generator, read_generator_config
from wrangan_cli.engine.models.attributes import (
    AttributeConfig,
    AttributeNet,
    load_attributes,
    save_attributes,
)
from wrangan_cli.engine.models.encoders.files import load_encoder, save_encoder
from wrangan_cli.engine.models.encoders.w import Encoder, EncoderConfig
from wrangan_cli.engine.models.folder import (
    CONFIG,
    DISCRIMINATOR,
    FITTED,
    SHARED_FILES,
    WEIGHTS,
    Model,
    bundled_models,
    carry_companions,
    read_config,
    save_model,
)

SMALL = dataclasses.replace(
    NARROW, channels={4: 16, 8: 16}, head="plain", randomized_layers=("layers.0.conv2",)
)
SHIPPED = ("encoder.safetensors", "attributes.safetensors", "directions.safetensors")
"""Of SHARED_FILES, what a parent of these tests has."""
ENCODER = EncoderConfig(style_dim=NARROW.style_dim, input_side=16, widths=(4,), blocks=(1,))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


@pytest.fixture
def parent(place: Place) -> Path:
    """The bundled folder of `ffhq`, with an encoder, an attribute net and a direction; it is not fetched."""
    folder = bundle(place, "ffhq", NARROW, fitted_tensors(NARROW))
    digest = read_config(folder)["sha256"][WEIGHTS]
    stand_in = Model("ffhq", folder, digest, place.generator, torch.zeros(1), 1.0, "")
    save_encoder(folder, Encoder(ENCODER), stand_in, {})
    save_attributes(folder / "attributes.safetensors", AttributeNet(AttributeConfig(("Smiling",), 16, (8,))))
    save_directions(folder / "directions.safetensors", stand_in, [direction("smile"), direction("age")])
    return folder


def small(place: Place, named: object = "ffhq") -> Path:
    """The bundled folder of `ffhq-small`, cut at 8 px, which names its parent."""
    own = network(SMALL).state_dict()
    fitted: dict[str, Tensor] = {
        k: v for k, v in own.items() if k.startswith("to_img.") or k.endswith(".std")
    }
    statistics = {k: v for k, v in fitted_tensors(NARROW).items() if k.startswith("w_")}
    folder = bundle(place, "ffhq-small", SMALL, fitted | statistics)
    record = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(record | {"companions_of": named}))
    return folder


def direction(name: str, std: float = 1) -> Direction:
    vector = torch.zeros(NARROW.style_dim)
    vector[0] = 1
    return Direction(name=name, vector=vector, std=std)


def test_what_the_larger_form_has_serves_the_smaller(place: Place, parent: Path) -> None:
    folder = small(place)
    model = load_model("ffhq-small")
    assert (model.resolution, model.bundled) == (8, folder)
    assert model.parent is not None
    assert (model.parent.folder, model.parent.sha256) == (parent, read_config(parent)["sha256"][WEIGHTS])
    assert model.sha256 != model.parent.sha256
    for name in SHARED_FILES:
        assert model.companions(name) == ([parent / name] if name in SHIPPED else [])
    encoder = load_encoder(model)
    stored, _ = read_tensors(parent / "encoder.safetensors")
    assert all(torch.equal(encoder.state_dict()[name], tensor.float()) for name, tensor in stored.items())
    assert load_attributes(model).config.names == ("Smiling",)
    assert sorted(load_directions(model)) == ["age", "smile"]
    # One download, and the larger form itself was not joined.
    assert len(place.calls) == 1
    assert [path.name for path in (place.cache / "models").iterdir() if path.is_dir()] == ["ffhq-small"]


@pytest.mark.usefixtures("parent")
def test_its_own_come_first(place: Place) -> None:
    folder = small(place)
    model = load_model("ffhq-small")
    save_directions(folder / "directions.safetensors", model, [direction("age", 2), direction("shipped", 2)])
    add_directions(directions_file(model), model, [direction("age", 3), direction("mine", 3)])
    found = {name: item.std for name, item in load_directions(model).items()}
    assert found == {"smile": 1, "age": 3, "shipped": 2, "mine": 3}
    save_encoder(model.path, Encoder(ENCODER), model, {})
    assert model.companion("encoder.safetensors") == model.path / "encoder.safetensors"
    assert load_encoder(model)


def test_nothing_else_is_lent(place: Place, parent: Path) -> None:
    small(place)
    model = load_model("ffhq-small")
    for name in (DISCRIMINATOR, "hypernet.safetensors", "reference.safetensors"):
        write_tensors(parent / name, {"a": torch.ones(1)}, {"model_sha256": model.parent.sha256})  # type: ignore[union-attr]
        assert model.companion(name) is None
    # What names a third model is refused wherever it lies, and the parent does not borrow back.
    third = dataclasses.replace(model, sha256="3" * 64)
    for path in (parent, model.path):
        save_directions(path / "directions.safetensors", third, [direction("odd")])
        with pytest.raises(FileError, match="made for another model"):
            load_directions(model)
        (path / "directions.safetensors").unlink()
    save_encoder(parent, Encoder(ENCODER), third, {})
    with pytest.raises(FileError, match="was trained for another model, not for ffhq-small"):
        load_encoder(model)
    larger = load_model("ffhq")
    assert larger.parent is None
    save_directions(directions_file(larger), model, [direction("of-the-smaller")])
    with pytest.raises(FileError, match="made for another model"):
        load_directions(larger)


@pytest.mark.usefixtures("parent")
def test_without_the_name_the_check_is_as_strict_as_ever(place: Place, parent: Path) -> None:
    folder = small(place, None)
    model = load_model("ffhq-small")
    assert model.parent is None
    assert model.companion("encoder.safetensors") is None
    (folder / "encoder.safetensors").write_bytes((parent / "encoder.safetensors").read_bytes())
    with pytest.raises(FileError, match="was trained for another model"):
        load_encoder(model)


@pytest.mark.usefixtures("parent")
@pytest.mark.parametrize("named", ["nobody", "", 3, ["ffhq"]])
def test_a_lender_that_is_none(place: Place, named: object) -> None:
    small(place, named)
    with pytest.raises(FileError, match="companions_of: there is no bundled model"):
        load_model("ffhq-small")


def test_what_is_made_of_it_takes_them_along(place: Place, parent: Path, tmp_path: Path) -> None:
    small(place)
    model = load_model("ffhq-small")
    write_tensors(
        parent / "hypernet.safetensors", {"a": torch.ones(1)}, {"model_sha256": model.parent.sha256}
    )  # type: ignore[union-attr]
    out = save_model(tmp_path / "made", model.generator, w_mean=model.w_mean)
    assert sorted(path.name for path in carry_companions(model, out)) == sorted(SHIPPED)
    made = load_model(str(out))
    assert made.parent is None
    assert load_encoder(made)
    assert sorted(load_directions(made)) == ["age", "smile"]


def test_the_script_that_bundles_names_the_lender(
    place: Place, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(place)
    start = load_model("ffhq-small")
    made = save_model(tmp_path / "made", start.generator, w_mean=start.w_mean)
    script = Path(__file__).parents[1] / "examples" / "bundle_fetched.py"
    out = place.bundled / "again"
    monkeypatch.setattr(sys, "argv", [str(script), str(made), str(out), "--companions-of", "ffhq", "--half"])
    runpy.run_path(str(script), run_name="__main__")
    again = load_model("again")
    assert again.parent is not None
    assert again.parent.folder == parent
    own, _ = read_tensors(out / FITTED)
    half = {name for name, tensor in own.items() if tensor.dtype == torch.float16}
    assert set(own) - half == {"w_mean", "w_std"}
    for name, tensor in again.generator.state_dict().items():
        made_as = start.generator.state_dict()[name]
        assert torch.equal(tensor, made_as.half().float() if name in half else made_as), name


def test_the_bundled_forms_of_one_generator_share_its_w() -> None:
    """What lends must have the mapping network of what borrows: both take it from one carrier."""
    bundled = bundled_models()
    small = {name: folder for name, folder in bundled.items() if "companions_of" in read_config(folder)}
    assert list(small) == ["ffhq-256"]
    for folder in small.values():
        record = read_config(folder)
        larger = bundled[record["companions_of"]]
        assert record["fetch"] == read_config(larger)["fetch"]
        assert not any((folder / name).exists() for name in SHARED_FILES)
        shared, own = (read_tensors(path / FITTED)[0] for path in (larger, folder))
        assert not any(key.startswith("style.") for key in (*shared, *own))
        for key in ("w_mean", "w_std"):
            torch.testing.assert_close(shared[key], own[key], rtol=1e-6, atol=0)
        digest = read_config(larger)["sha256"][WEIGHTS]
        for name in SHIPPED:
            assert read_tensors(larger / name)[1].get("model_sha256", digest) == digest
        # What is its own: σ, the last block's weights and the head.
        with torch.device("meta"):
            generator = build_generator(read_generator_config(record))
        last = f"layers.{len(generator.layers) - 1}."  # type: ignore[arg-type]
        wanted = {
            key: tensor.shape
            for key, tensor in generator.state_dict().items()
            if key.endswith(".std")
            or (key.startswith((last, "to_img.")) and not key.endswith(".noise.weight"))
        }
        statistics = {"w_mean": (generator.config.style_dim,), "w_std": ()}
        assert {key: tensor.shape for key, tensor in own.items()} == {**wanted, **statistics}
        assert all((own[key] > 0).all() for key in own if key.endswith(".std"))
        files = [path for part in (folder, larger) for path in part.iterdir()]
        assert sum(path.stat().st_size for path in files) < 20e6
