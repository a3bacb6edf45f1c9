"""Pairs of w and image in their folder, and `wrangan generate --pairs`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import TINY
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.tensorfile import write_tensors
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models import pairs as engine
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.pairs import means_sha256, open_pairs, render_pairs

run = CliRunner()


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SHARD", 4)


def image_of(model: Model, w: torch.Tensor, side: int) -> torch.Tensor:
    with torch.no_grad():
        image = model.generator.synthesis(w[None].to(model.device), side=side)
    return to_uint8(image)[0].float() / 127.5 - 1


def test_pairs_are_w_and_its_image(tiny_model: Model, tmp_path: Path) -> None:
    seen: list[int] = []
    pairs = render_pairs(tiny_model, tmp_path, 10, side=8, on_pairs=seen.append)
    assert (len(pairs), pairs.side, len(pairs.shards)) == (10, 8, 3)
    assert list(dict.fromkeys(seen)) == list(range(11))
    assert pairs.w.shape == (10, TINY.style_dim)
    images = pairs.images(range(10))
    assert images.shape == (10, 3, 8, 8)
    for index in range(10):
        torch.testing.assert_close(images[index], image_of(tiny_model, pairs.w[index], 8), rtol=0, atol=0.01)
    assert pairs.w.unique(dim=0).shape == pairs.w.shape


def test_images_come_in_the_order_that_is_asked_for(tiny_model: Model, tmp_path: Path) -> None:
    pairs = render_pairs(tiny_model, tmp_path, 10, side=8)
    order = np.array([9, 0, 5, 4, 0])
    torch.testing.assert_close(pairs.images(order), pairs.images(range(10))[order], rtol=0, atol=0)
    assert pairs.images(range(0)).shape == (0, 3, 8, 8)
    for beyond in ([10], [-1]):
        with pytest.raises(IndexError):
            pairs.images(np.array(beyond))


def test_an_interrupted_drawing_goes_on(tiny_model: Model, tmp_path: Path) -> None:
    whole = render_pairs(tiny_model, tmp_path / "whole", 10, side=8)

    def stop(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_pairs(tiny_model, tmp_path / "broken", 10, side=8, on_pairs=stop)
    assert len(open_pairs(tmp_path / "broken", tiny_model.generator)) == 4
    seen: list[int] = []
    again = render_pairs(tiny_model, tmp_path / "broken", 10, side=8, on_pairs=seen.append)
    assert list(dict.fromkeys(seen)) == [4, 5, 6, 7, 8, 9, 10]
    assert torch.equal(again.w, whole.w)
    assert torch.equal(again.images(range(10)), whole.images(range(10)))


def test_a_larger_number_adds(tiny_model: Model, tmp_path: Path) -> None:
    few = render_pairs(tiny_model, tmp_path, 6, side=8)
    images = few.images(range(6))
    untouched = few.shards[0].stat().st_mtime_ns
    more = render_pairs(tiny_model, tmp_path, 9, side=8)
    assert len(more) == 9
    # Drawn in batches of other sizes: on some processors a product of matrices then differs in the last bits.
    torch.testing.assert_close(more.w[:6], few.w, rtol=1e-5, atol=1e-5)
    assert torch.equal(more.images(range(6)), images)
    assert more.shards[0].stat().st_mtime_ns == untouched
    assert len(render_pairs(tiny_model, tmp_path, 2, side=8)) == 9


def test_another_seed_draws_others(tiny_model: Model, tmp_path: Path) -> None:
    one = render_pairs(tiny_model, tmp_path / "0", 3, side=8)
    other = render_pairs(tiny_model, tmp_path / "1", 3, side=8, seed=1)
    assert not torch.isclose(one.w, other.w).all(dim=1).any()


def test_sides_above_the_models_are_the_models(tiny_model: Model, tmp_path: Path) -> None:
    assert render_pairs(tiny_model, tmp_path, 1, side=256).side == tiny_model.resolution


@pytest.mark.parametrize("changes", [{"side": 16}, {"seed": 1}])
def test_a_folder_holds_pairs_of_one_kind(tiny_model: Model, tmp_path: Path, changes: dict[str, int]) -> None:
    render_pairs(tiny_model, tmp_path, 2, side=8)
    with pytest.raises(FileError, match="pairs of another"):
        render_pairs(tiny_model, tmp_path, 2, **({"side": 8} | changes))


def test_pairs_of_another_model_are_refused(tiny_model: Model, other_folder: Path, tmp_path: Path) -> None:
    render_pairs(tiny_model, tmp_path, 2, side=8)
    other = load_model(str(other_folder))
    with pytest.raises(FileError, match="another generator"):
        open_pairs(tmp_path, other.generator)
    with pytest.raises(FileError, match="another means_sha256"):
        render_pairs(other, tmp_path, 2, side=8)


def test_pairs_are_of_the_means_alone(tiny_model: Model) -> None:
    digest = means_sha256(tiny_model.generator)
    weight = next(iter(tiny_model.generator.random_weights().values()))
    with torch.no_grad():
        assert weight.std is not None
        weight.std.mul_(2)
        assert means_sha256(tiny_model.generator) == digest
        weight.mean.mul_(1.01)
    assert means_sha256(tiny_model.generator) != digest


def test_means_do_not_depend_on_which_weights_are_random() -> None:
    config = MobileStyleGANConfig({4: 8, 8: 8, 16: 8}, num_latents=6, style_dim=16, mapping_layers=2)
    plain = MobileStyleGANGenerator(config)
    random = MobileStyleGANGenerator(dataclasses.replace(config, randomized_layers=2))
    random.load_state_dict(plain.state_dict(), strict=False)
    assert means_sha256(random) == means_sha256(plain)


def test_folders_that_are_not_whole(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no pairs in it"):
        open_pairs(tmp_path, tiny_model.generator)
    pairs = render_pairs(tiny_model, tmp_path, 10, side=8)
    first = pairs.shards[0].read_bytes()
    pairs.shards[0].unlink()
    with pytest.raises(FileError, match="does not match the number or size"):
        open_pairs(tmp_path, tiny_model.generator)
    pairs.shards[0].write_bytes(first[:100])
    with pytest.raises(FileError, match="not a readable file of pairs"):
        open_pairs(tmp_path, tiny_model.generator)
    pairs.shards[0].write_bytes(first)
    tensors, record = read_tensors_of_pairs(pairs.shards[1])
    write_tensors(pairs.shards[1], {name: tensor[:2] for name, tensor in tensors.items()}, record)
    with pytest.raises(FileError, match="2 pairs, expected 4"):
        open_pairs(tmp_path, tiny_model.generator)
    write_tensors(pairs.shards[1], {"w": tensors["w"][0], "images": tensors["images"]}, record)
    with pytest.raises(FileError, match="do not form pairs"):
        open_pairs(tmp_path, tiny_model.generator)


def read_tensors_of_pairs(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        record = json.loads(stream.metadata()["wrangan"])
        return {name: stream.get_tensor(name) for name in stream.keys()}, record  # noqa: SIM118


@pytest.mark.parametrize("numbers", [(0, 8, 0), (2, 0, 0), (2, 8, -1)])
def test_numbers_are_checked(tiny_model: Model, tmp_path: Path, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError):
        render_pairs(tiny_model, tmp_path, *numbers)


def test_command(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    words = ["generate", "--pairs", str(out), "--model", str(tiny_folder), "--side", "8"]
    result = run.invoke(app, [*words, "--samples", "5", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"path": str(out), "pairs": 5, "side": 8}
    assert len(open_pairs(out, tiny_model.generator)) == 5
    again = run.invoke(app, [*words, "--samples", "5"])
    assert again.stdout == f"{out}\n"
    for more, message in (
        (["--seed", "3"], "another seed"),
        (["--samples", "0"], "expected 1 or more"),
        (["--epsilon", "1"], "mean weights"),
        (["--truncation", "0.5"], "not truncated"),
    ):
        refused = run.invoke(app, [*words, *more])
        assert refused.exit_code in (1, 2)
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
