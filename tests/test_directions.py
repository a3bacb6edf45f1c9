"""Learning directions (SVM, PCA), their file, `wrangan directions`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import TINY
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.editing.directions import (
    Direction,
    Move,
    add_directions,
    directions_file,
    load_directions,
    parse_layers,
    save_directions,
    unit,
)
from wrangan_cli.engine.editing.pca import pca_directions
from wrangan_cli.engine.editing.scoring import rendering_side, score_samples
from wrangan_cli.engine.editing.settings import KNOWN_ATTRIBUTES, LearnSettings
from wrangan_cli.engine.editing.svm import learn_direction
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.attributes import AttributeConfig, AttributeNet, save_attributes
from wrangan_cli.engine.models.folder import Model, sample_w
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.pairs import render_pairs

run = CliRunner()


def planted(
    count: int = 4000, dim: int = 24, noise: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anisotropic w, a hidden unit normal, and noisy scores along it."""
    rng = torch.Generator().manual_seed(3)
    w = torch.randn(count, dim, generator=rng) * torch.linspace(0.5, 1.5, dim) + 2.0
    normal = unit(torch.randn(dim, generator=rng))
    along = (w - w.mean(dim=0)) @ normal
    return w, normal, along + noise * torch.randn(count, generator=rng)


def small_net(names: tuple[str, ...] = ("Smiling", "Young")) -> AttributeNet:
    torch.manual_seed(2)
    return AttributeNet(AttributeConfig(names, resolution=16, widths=(8, 8))).eval()


def direction(name: str = "smile", dim: int = TINY.style_dim, **changes: object) -> Direction:
    vector = unit(torch.randn(dim, generator=torch.Generator().manual_seed(len(name))))
    return dataclasses.replace(Direction(name, vector, std=0.7, source={"method": "test"}), **changes)


def test_svm_finds_the_planted_direction() -> None:
    w, normal, scores = planted()
    found = learn_direction("smile", w, scores, LearnSettings(), "Smiling")
    assert found.vector @ normal > 0.95
    assert found.vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert found.std == pytest.approx(float(np.std(w.numpy() @ found.vector.numpy(), ddof=1)), rel=1e-5)
    assert found.source["accuracy_test"] > 0.97
    assert found.source["accuracy_rest"] > 0.85
    assert found.source["correlation"] > 0.9


def test_svm_points_to_higher_scores() -> None:
    w, _, scores = planted()
    up = learn_direction("a", w, scores, LearnSettings())
    down = learn_direction("a", w, -scores, LearnSettings())
    assert up.vector @ down.vector < -0.95


def test_svm_does_not_depend_on_the_scale_of_w() -> None:
    w, _, scores = planted()
    one = learn_direction("a", w, scores, LearnSettings())
    ten = learn_direction("a", w * 10, scores, LearnSettings())
    assert one.vector @ ten.vector > 0.9999
    assert ten.std == pytest.approx(10 * one.std, rel=1e-3)


def test_svm_orthogonal_to_others() -> None:
    w, normal, scores = planted()
    others = [direction("one", 24), direction("three", 24), direction("one", 24)]
    found = learn_direction("a", w, scores, LearnSettings(), orthogonal_to=others)
    assert all(abs(found.vector @ other.vector) < 1e-6 for other in others)
    expected = normal.double()
    basis, _ = np.linalg.qr(np.stack([o.vector.double().numpy() for o in others[:2]], axis=1))
    expected = expected.numpy() - basis @ (basis.T @ expected.numpy())
    assert found.vector.double().numpy() @ expected / np.linalg.norm(expected) > 0.95


def test_svm_orthogonal_to_itself_is_refused() -> None:
    w, _, scores = planted()
    found = learn_direction("a", w, scores, LearnSettings())
    with pytest.raises(WranganError, match="nothing is left of it"):
        learn_direction("b", w, scores, LearnSettings(), orthogonal_to=[found])


def test_svm_needs_scores_that_differ() -> None:
    w, _, _ = planted(count=100)
    with pytest.raises(WranganError, match="do not differ"):
        learn_direction("a", w, torch.zeros(100), LearnSettings())


@pytest.mark.parametrize(
    "bad", [{"samples": 3}, {"share": 0.0}, {"share": 0.6}, {"svm_c": float("nan")}, {"epsilon": -1.0}]
)
def test_learn_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        LearnSettings(**bad)  # type: ignore[arg-type]


def test_score_samples_scores_the_images_of_w(tiny_model: Model) -> None:
    net, seen = small_net(), []
    w, scores = score_samples(tiny_model, net, LearnSettings(samples=20, batch=8), seen.append)
    assert seen == [8, 16, 20]
    assert w.shape == (20, TINY.style_dim)
    with torch.no_grad():
        image = tiny_model.generator.synthesis(w[13:14]).clamp(-1, 1)
        torch.testing.assert_close(scores[13:14], net(image), rtol=1e-4, atol=1e-5)
    other = score_samples(tiny_model, net, LearnSettings(samples=20, batch=8, epsilon=1.0))[1]
    assert not torch.allclose(scores, other)


@pytest.mark.parametrize(
    ("resolution", "sides", "expected"),
    [
        (1024, [64], 64),
        (1024, [128, 256], 256),
        (1024, [96], None),
        (1024, [96, 256], None),
        (64, [64], None),
        (64, [128], None),
        (1024, [1024], None),
    ],
)
def test_side_to_draw_at(resolution: int, sides: list[int], expected: int | None) -> None:
    assert rendering_side(resolution, sides) == expected


def test_reduced_drawing_scores_as_the_whole_image_does() -> None:
    config = MobileStyleGANConfig(
        {4: 16, 8: 16, 16: 16, 32: 8}, num_latents=8, style_dim=16, mapping_layers=2
    )
    torch.manual_seed(3)
    generator = MobileStyleGANGenerator(config).eval().requires_grad_(False)
    with torch.no_grad():
        generator.to_img.conv.weight.mul_(0.1)  # values within [-1, 1], which are not clipped
    model = Model("tiny", Path("tiny"), "0", generator, torch.zeros(16), 1.0, "fake")
    w, scores = score_samples(model, small_net(), LearnSettings(samples=20, batch=8))
    whole = generator.synthesis(w)
    assert whole.shape[-1] == 64
    assert whole.abs().max() < 1
    torch.testing.assert_close(scores, small_net()(whole), rtol=1e-4, atol=1e-5)


def test_scores_of_pairs(tiny_model: Model, tmp_path: Path) -> None:
    pairs, seen = render_pairs(tiny_model, tmp_path, 30, side=16), []
    settings = LearnSettings(samples=25, batch=8)
    w, scores = score_samples(tiny_model, small_net(), settings, seen.append, pairs)
    assert seen == [8, 16, 24, 25]
    assert torch.equal(w, pairs.w[:25])
    torch.testing.assert_close(scores, small_net()(pairs.images(range(25))), rtol=1e-4, atol=1e-5)
    assert len(score_samples(tiny_model, small_net(), LearnSettings(samples=50), pairs=pairs)[0]) == 30
    with pytest.raises(UsageError, match="mean weights"):
        score_samples(tiny_model, small_net(), LearnSettings(samples=20, epsilon=1.0), pairs=pairs)


def test_pca_against_numpy(tiny_model: Model) -> None:
    found = pca_directions(tiny_model, components=4, samples=3000)
    assert [item.name for item in found] == ["pca-0", "pca-1", "pca-2", "pca-3"]
    w = sample_w(tiny_model.generator, 3000, seed=0).double().numpy()
    _, singular, rows = np.linalg.svd(w - w.mean(axis=0), full_matrices=False)
    for item, size, row in zip(found, singular, rows, strict=False):
        assert item.std == pytest.approx(size / np.sqrt(2999), rel=1e-6)
        assert abs(item.vector.numpy() @ row) == pytest.approx(1, abs=1e-5)
        assert item.vector[item.vector.abs().argmax()] > 0
        assert item.std == pytest.approx(np.std(w @ item.vector.numpy(), ddof=1), rel=1e-5)


@pytest.mark.parametrize(("components", "samples"), [(0, 100), (17, 100), (2, 16)])
def test_pca_counts_are_checked(tiny_model: Model, components: int, samples: int) -> None:
    with pytest.raises(UsageError):
        pca_directions(tiny_model, components, samples)


def test_directions_survive_their_file(tiny_model: Model) -> None:
    path = directions_file(tiny_model)
    stored = [direction("smile"), direction("age", layers=(0, 2), range=(-2.0, 4.0))]
    save_directions(path, tiny_model, stored)
    loaded = load_directions(tiny_model)
    assert list(loaded) == ["smile", "age"]
    for item in stored:
        read = loaded[item.name]
        assert torch.equal(read.vector, item.vector)
        assert vars(dataclasses.replace(read, vector=item.vector)) == vars(item)
    add_directions(path, tiny_model, [direction("smile", std=9.0), direction("pca-0")])
    assert {name: item.std for name, item in load_directions(tiny_model).items()} == {
        "smile": 9.0,
        "age": 0.7,
        "pca-0": 0.7,
    }


def test_model_without_directions_has_none(tiny_model: Model, tmp_path: Path) -> None:
    assert load_directions(tiny_model) == {}
    with pytest.raises(FileError, match="no such file"):
        load_directions(tiny_model, tmp_path / "none.safetensors")


def test_directions_of_another_model_are_refused(tiny_model: Model, other_folder: Path) -> None:
    path = directions_file(tiny_model)
    save_directions(path, tiny_model, [direction()])
    other = load_model(str(other_folder))
    with pytest.raises(FileError, match=r"another model \(tiny"):
        load_directions(other, path)
    with pytest.raises(FileError, match="another model"):
        add_directions(path, other, [direction()])


@pytest.mark.parametrize("what", ["nan", "long", "shape", "missing", "layers", "name", "record", "kind"])
def test_broken_direction_files(tiny_model: Model, what: str) -> None:
    path = directions_file(tiny_model)
    save_directions(path, tiny_model, [direction()])
    tensors, record = read_tensors(path)
    entry = record["directions"][0]
    if what == "nan":
        tensors["smile"][0] = torch.nan
    elif what == "long":
        tensors["smile"] *= 2
    elif what == "shape":
        tensors["smile"] = tensors["smile"][:3]
    elif what == "missing":
        tensors = {"other": torch.zeros(1)}
    elif what == "layers":
        entry["layers"] = [99]
    elif what == "name":
        tensors["../x"], entry["name"] = tensors.pop("smile"), "../x"
    elif what == "record":
        del entry["std"]
    else:
        record["kind"] = "code"
    write_tensors(path, tensors, record)
    with pytest.raises(FileError, match=path.name):
        load_directions(tiny_model)


@pytest.mark.parametrize(
    ("text", "expected"), [("all", None), ("0-2,5", (0, 1, 2, 5)), ("3", (3,)), ("2,0", (0, 2))]
)
def test_parse_layers(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_layers(text, 6) == expected


@pytest.mark.parametrize("text", ["", "x", "0-9", "-1", "3-1"])
def test_parse_layers_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="layers"):
        parse_layers(text, 6)


def test_labels_and_range_of_moves() -> None:
    assert Move(direction(), 3).label == "smile+3"
    assert Move(direction(), -2.5).label == "smile-2.5"
    assert Move(direction(), 3.5).outside_range
    assert not Move(direction(), -3).outside_range
    with pytest.raises(UsageError, match="finite"):
        Move(direction(), float("inf"))


def test_list_command(tiny_folder: Path, tiny_model: Model) -> None:
    empty = run.invoke(app, ["directions", "list", "--model", str(tiny_folder)])
    assert empty.exit_code == 0
    assert empty.stdout == ""
    assert "no directions" in empty.stderr
    stored = [direction("smile"), direction("age", layers=(0, 2))]
    save_directions(directions_file(tiny_model), tiny_model, stored)
    listed = run.invoke(app, ["directions", "list", "--model", str(tiny_folder)])
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == ["smile", "age"]
    assert "layers 0,2" in listed.stdout
    as_json = run.invoke(app, ["directions", "list", "--model", str(tiny_folder), "--json"])
    records = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [(r["name"], r["std"], r["layers"]) for r in records] == [
        ("smile", 0.7, None),
        ("age", 0.7, [0, 2]),
    ]


def test_pca_command_writes_into_the_model(tiny_folder: Path, tiny_model: Model) -> None:
    save_directions(directions_file(tiny_model), tiny_model, [direction("smile")])
    arguments = ["directions", "pca", "--components", "2", "--samples", "500", "--model", str(tiny_folder)]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(tiny_folder / "directions.safetensors")]
    assert list(load_directions(tiny_model)) == ["smile", "pca-0", "pca-1"]


def test_learn_command(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    save_attributes(tiny_folder / "attributes.safetensors", small_net())
    out = tmp_path / "new" / "mine.safetensors"
    base = ["--model", str(tiny_folder), "--samples", "200", "--share", "0.2", "--json"]
    result = run.invoke(app, ["directions", "learn", "smile", "age", "--out", str(out), *base])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["path"] == str(out)
    assert [item["name"] for item in record["directions"]] == ["smile", "age"]
    found = load_directions(tiny_model, out)
    assert found["smile"].source["attribute"] == "Smiling"
    assert found["age"].source["attribute"] == "-Young"
    assert not directions_file(tiny_model).exists()
    # `age` points away from the score of Young.
    w, scores = score_samples(tiny_model, small_net(), LearnSettings(samples=200))
    assert np.corrcoef(w @ found["age"].vector, scores[:, 1])[0, 1] < -0.3

    more = ["old", "--attribute", "-Young", "--orthogonal-to", "smile", "--layers", "0-1"]
    result = run.invoke(app, ["directions", "learn", *more, "--out", str(out), *base])
    assert result.exit_code == 0, result.stderr
    found = load_directions(tiny_model, out)
    assert list(found) == ["smile", "age", "old"]
    assert abs(found["old"].vector @ found["smile"].vector) < 1e-6
    assert found["old"].layers == (0, 1)


def test_learn_command_from_pairs(
    tiny_folder: Path, tiny_model: Model, other_folder: Path, tmp_path: Path
) -> None:
    save_attributes(tiny_folder / "attributes.safetensors", small_net())
    render_pairs(tiny_model, tmp_path / "pairs", 120, side=16)
    words = ["directions", "learn", "smile", "--pairs", str(tmp_path / "pairs"), "--share", "0.2"]
    result = run.invoke(app, [*words, "--model", str(tiny_folder)])
    assert result.exit_code == 0, result.stderr
    assert load_directions(tiny_model)["smile"].source["samples"] == 120
    net = ["--net", str(tiny_folder / "attributes.safetensors")]
    refused = run.invoke(app, [*words, *net, "--model", str(other_folder)])
    assert refused.exit_code == 1
    assert "another generator" in refused.stderr
    refused = run.invoke(app, [*words[:-2], "--epsilon", "1", "--model", str(tiny_folder)])
    assert refused.exit_code == 2
    assert "mean weights" in refused.stderr


def test_learnt_together_and_orthogonal_to_one_of_them(
    tiny_folder: Path, tiny_model: Model, tmp_path: Path
) -> None:
    save_attributes(tiny_folder / "attributes.safetensors", small_net())
    out = tmp_path / "mine.safetensors"
    # An `age` that stands there already is replaced, and must not be what `smile` is held against.
    save_directions(out, tiny_model, [direction("age")])
    base = ["--model", str(tiny_folder), "--samples", "200", "--share", "0.2", "--out", str(out)]
    result = run.invoke(app, ["directions", "learn", "smile", "age", "--orthogonal-to", "age", *base])
    assert result.exit_code == 0, result.stderr
    found = load_directions(tiny_model, out)
    assert found["smile"].source["orthogonal_to"] == ["age"]
    assert found["age"].source["orthogonal_to"] == []
    assert abs(found["smile"].vector @ found["age"].vector) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["surprise"], 2, "give its --attribute"),
        (["smile", "--attribute", "Bald"], 2, "the net knows Smiling, Young"),
        (["smile", "age", "--attribute", "Young"], 2, "takes exactly one name"),
        (["a/b", "--attribute", "Young"], 2, "direction name"),
        (["smile", "--orthogonal-to", "nothing"], 2, "there are: none"),
        (["smile", "--others", "x.safetensors"], 2, "--others needs --orthogonal-to"),
        (["smile", "--orthogonal-to", "age", "--others", "gone.st"], 1, "gone.st: no such file"),
        (["smile", "--layers", "7"], 2, "layers '7'"),
        (["smile", "--share", "0.9"], 2, "share"),
        (["smile", "--net", "gone.safetensors"], 1, "gone.safetensors: no such file"),
    ],
)
def test_learn_errors(tiny_folder: Path, arguments: list[str], code: int, message: str) -> None:
    save_attributes(tiny_folder / "attributes.safetensors", small_net())
    result = run.invoke(
        app, ["directions", "learn", *arguments, "--model", str(tiny_folder), "--samples", "40"]
    )
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_learn_without_attribute_net(tiny_folder: Path) -> None:
    result = run.invoke(app, ["directions", "learn", "smile", "--model", str(tiny_folder)])
    assert result.exit_code == 1
    assert "wrangan train attributes" in result.stderr


def test_known_names_are_the_five() -> None:
    assert KNOWN_ATTRIBUTES["age"] == ("Young", -1.0)
    assert set(KNOWN_ATTRIBUTES) == {"smile", "eyeglasses", "gender", "age", "mouth-open"}
