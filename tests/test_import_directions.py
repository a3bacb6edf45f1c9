"""`wrangan directions import`: files of vectors, what is no such file, directions with rows of their own."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import TINY
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.editing.directions import (
    Direction,
    Move,
    directions_file,
    edit_code,
    load_directions,
    save_directions,
    std_along,
)
from wrangan_cli.engine.editing.imports import import_directions
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.editing.svm import learn_direction
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model, sample_w

run = CliRunner()
DIM, ROWS = TINY.style_dim, TINY.num_latents
VECTOR = np.random.default_rng(0).standard_normal(DIM).astype(np.float32) * 2
UNIT = torch.from_numpy(VECTOR / np.linalg.norm(VECTOR))


def written(path: Path, content: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch.save(content, path)
    return path


def rows(*which: int) -> np.ndarray:
    """W+ with VECTOR in some rows."""
    array = np.zeros((ROWS, DIM), dtype=np.float32)
    array[list(which)] = VECTOR
    return array


def different_rows() -> np.ndarray:
    array = rows()
    array[[0, 2]] = np.random.default_rng(1).standard_normal((2, DIM))
    return array


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
@pytest.mark.parametrize("shape", [(DIM,), (1, DIM), (ROWS, DIM), (1, ROWS, DIM)])
def test_one_vector_in_any_shape(
    tiny_model: Model, tmp_path: Path, suffix: str, shape: tuple[int, ...]
) -> None:
    array = np.broadcast_to(VECTOR, shape).copy()
    path = written(tmp_path / f"d{suffix}", array if suffix == ".npy" else torch.from_numpy(array))
    (found,) = import_directions(tiny_model, path, "mine")
    assert found.name == "mine"
    assert found.layers is None
    torch.testing.assert_close(found.vector, UNIT)
    w = sample_w(tiny_model.generator, 10_000, seed=0)
    assert found.std == pytest.approx(np.std(w.numpy() @ UNIT.numpy(), ddof=1), rel=1e-4)
    assert found.source["norm"] == pytest.approx(np.linalg.norm(VECTOR), rel=1e-5)
    assert found.source["shape"] == list(shape)
    assert found.source["file"] == path.name
    assert found.source["file_sha256"] == sha256(path)
    # The strength that is said to be the file's own vector adds just that.
    code = Code(torch.zeros(DIM), {}, {}, {})
    moved = edit_code(code, [Move(found, found.source["strength_of_file_unit"])], ROWS).w
    torch.testing.assert_close(moved, torch.from_numpy(VECTOR))


def test_float64_and_half_and_gradients_are_read(tiny_model: Model, tmp_path: Path) -> None:
    for number, tensor in enumerate(
        [
            torch.from_numpy(VECTOR).double(),
            torch.from_numpy(VECTOR).half(),
            torch.from_numpy(VECTOR).requires_grad_(),
            torch.nn.Parameter(torch.from_numpy(VECTOR)),
        ]
    ):
        path = written(tmp_path / f"{number}.pt", tensor)
        (found,) = import_directions(tiny_model, path, "mine")
        torch.testing.assert_close(found.vector, UNIT, rtol=0, atol=1e-3)


def test_zero_rows_are_not_moved(tiny_model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "d.npy", rows(1, 3))
    (found,) = import_directions(tiny_model, path, "mine")
    assert found.layers == (1, 3)
    torch.testing.assert_close(found.vector, UNIT)
    (fewer,) = import_directions(tiny_model, path, "mine", layers="0-2")
    assert fewer.layers == (1,)
    with pytest.raises(FileError, match="all zero in the requested layers"):
        import_directions(tiny_model, path, "mine", layers="0,2")


def test_layers_of_a_vector(tiny_model: Model, tmp_path: Path) -> None:
    (found,) = import_directions(tiny_model, written(tmp_path / "d.npy", VECTOR), "mine", layers="0-2")
    assert found.layers == (0, 1, 2)
    with pytest.raises(UsageError, match="layers"):
        import_directions(tiny_model, tmp_path / "d.npy", "mine", layers=f"0-{ROWS}")


def test_rows_that_differ_keep_their_own(tiny_model: Model, tmp_path: Path) -> None:
    array = different_rows()
    (found,) = import_directions(tiny_model, written(tmp_path / "d.npy", array), "mine")
    assert found.per_row
    assert found.layers == (0, 2)
    norm = np.sqrt((np.linalg.norm(array[[0, 2]], axis=1) ** 2).mean())
    torch.testing.assert_close(found.vector, torch.from_numpy(array / norm), rtol=1e-5, atol=1e-6)
    w = sample_w(tiny_model.generator, 10_000, seed=0).numpy()
    spreads = [np.var(w @ row, ddof=1) for row in array[[0, 2]] / norm]
    assert found.std == pytest.approx(np.sqrt(np.mean(spreads)), rel=1e-4)
    # Its file, and an edit with what came out of it.
    save_directions(directions_file(tiny_model), tiny_model, [found])
    loaded = load_directions(tiny_model)["mine"]
    assert torch.equal(loaded.vector, found.vector)
    assert loaded.layers == (0, 2)
    code = Code(torch.randn(DIM), {}, {}, {})
    edited = edit_code(code, [Move(loaded, 2.0)], ROWS).w
    expected = code.w.repeat(ROWS, 1) + 2 * found.std * torch.from_numpy(array / norm)
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=f"{ROWS} rows"):
        edit_code(code, [Move(loaded, 2.0)], ROWS + 2)
    (one,) = import_directions(tiny_model, tmp_path / "d.npy", "mine", layers="2")
    assert not one.per_row
    assert one.layers == (2,)


def test_spread_of_equal_rows_is_that_of_the_vector() -> None:
    w = torch.randn(500, DIM)
    assert std_along(w, UNIT.repeat(3, 1)) == pytest.approx(std_along(w, UNIT))


def test_nothing_is_made_orthogonal_to_rows() -> None:
    other = Direction("rows", torch.from_numpy(different_rows()), 1.0, (0, 2))
    w = torch.randn(200, DIM)
    with pytest.raises(UsageError, match="rows has a vector for each row"):
        learn_direction("a", w, w[:, 0], LearnSettings(), orthogonal_to=[other])


@pytest.mark.parametrize("what", ["long", "outside", "shape"])
def test_broken_files_of_rows(tiny_model: Model, what: str) -> None:
    path = directions_file(tiny_model)
    vector = torch.from_numpy(different_rows())
    vector /= vector[[0, 2]].norm(dim=1).square().mean().sqrt()
    save_directions(path, tiny_model, [Direction("rows", vector, 1.0, (0, 2))])
    assert load_directions(tiny_model)["rows"].per_row
    tensors, record = read_tensors(path)
    if what == "long":
        tensors["rows"] *= 2
    elif what == "outside":
        tensors["rows"][1, 0] = 0.1
    else:
        tensors["rows"] = tensors["rows"][:-1]
    write_tensors(path, tensors, record)
    with pytest.raises(FileError, match=path.name):
        load_directions(tiny_model)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_several_by_name(tiny_model: Model, tmp_path: Path, suffix: str) -> None:
    content: dict[str, Any] = {"age": VECTOR, "hair colour": rows(1)}
    if suffix == ".pt":
        content = {key: torch.from_numpy(value) for key, value in content.items()}
    path = written(tmp_path / f"d{suffix}", content)
    found = import_directions(tiny_model, path, "their")
    assert [item.name for item in found] == ["their-age", "their-hair-colour"]
    assert found[1].layers == (1,)
    (one,) = import_directions(tiny_model, path, "hair", key="hair colour")
    assert (one.name, one.layers, one.source["key"]) == ("hair", (1,), "hair colour")
    with pytest.raises(UsageError, match="there are: age, hair colour"):
        import_directions(tiny_model, path, "hair", key="smile")


@pytest.mark.parametrize("keys", [("comp", "std", "mean"), ("lat_comp", "lat_stdev", "lat_mean")])
def test_components(tiny_model: Model, tmp_path: Path, keys: tuple[str, str, str]) -> None:
    basis = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM, DIM)))[0].astype(np.float32)
    std = np.linspace(3, 1, 12, dtype=np.float32)
    content = dict(zip(keys, (basis[:12, None], std, np.zeros((1, DIM), np.float32)), strict=True))
    path = written(tmp_path / "d.npz", content)
    found = import_directions(tiny_model, path, "ganspace", components=3)
    assert [item.name for item in found] == ["ganspace-0", "ganspace-1", "ganspace-2"]
    torch.testing.assert_close(found[1].vector, torch.from_numpy(basis[1]))
    assert found[1].source["file_std"] == pytest.approx(float(std[1]))
    assert len(import_directions(tiny_model, path, "ganspace")) == 10
    assert len(import_directions(tiny_model, path, "ganspace", components=80)) == 12
    (one,) = import_directions(tiny_model, path, "hair", key="7", layers="1-2")
    assert (one.name, one.layers) == ("hair", (1, 2))
    torch.testing.assert_close(one.vector, torch.from_numpy(basis[7]))
    for bad in ({"key": "12"}, {"key": "x"}, {"components": 0}):
        with pytest.raises(UsageError):
            import_directions(tiny_model, path, "ganspace", **bad)


class Harm:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.npy", VECTOR[:-1], "shape"),
        ("d.npy", np.ones((ROWS + 1, DIM), np.float32), "shape"),
        ("d.npy", np.ones((2, ROWS, DIM), np.float32), "shape"),
        ("d.npy", np.float32(1), "shape"),
        ("d.npy", VECTOR * np.nan, "not finite"),
        ("d.npy", VECTOR * 0, "all zero"),
        ("d.npy", VECTOR.astype(complex), "real numbers"),
        ("d.npy", VECTOR > 0, "real numbers"),
        ("d.npy", np.array(["a"] * DIM), "does not hold numbers"),
        ("d.npy", np.array([{"a": 1}]), "plain arrays"),
        ("d.npz", {}, "no array"),
        ("d.npz", {"a": VECTOR, "b": VECTOR[:2]}, "b: shape"),
        ("d.npz", {"a b": VECTOR, "a+b": VECTOR}, "select one with --key"),
        ("d.npz", {"comp": VECTOR, "std": VECTOR}, "components of shape"),
        ("d.npz", {"comp": np.ones((3, 1, DIM)), "std": np.ones(2)}, "3 components and 2"),
        ("d.pt", [1, 2], "not an array but list"),
        ("d.pt", {"a": {"b": 1}}, "a is not an array but dict"),
        ("d.pt", {"a": Harm()}, "could run code"),
        ("d.pkl", VECTOR, "expected .npy, .npz, .pt"),
    ],
)
def test_other_files_are_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        written(path, content)
    result = run.invoke(
        app, ["directions", "import", str(path), "--name", "mine", "--model", str(tiny_folder)]
    )
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "harmed").exists()
    assert not (tiny_folder / "directions.safetensors").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("broken", ["cut", "other", "empty", "missing"])
def test_unreadable_files(tiny_model: Model, tmp_path: Path, suffix: str, broken: str) -> None:
    content = {".npy": VECTOR, ".npz": {"a": VECTOR}, ".pt": torch.from_numpy(VECTOR)}[suffix]
    path = written(tmp_path / f"d{suffix}", content)
    whole = path.read_bytes()
    if broken == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "other": b"hello\n" * 9, "empty": b""}[broken])
    with pytest.raises(FileError, match=path.name):
        import_directions(tiny_model, path, "mine")


def test_command(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "d.npz", {"age": VECTOR, "rows": different_rows()})
    base = ["--model", str(tiny_folder)]
    result = run.invoke(app, ["directions", "import", str(path), "--name", "their", "--json", *base])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert [(d["name"], d["per_row"]) for d in record["directions"]] == [
        ("their-age", False),
        ("their-rows", True),
    ]
    listed = run.invoke(app, ["directions", "list", *base]).stdout.splitlines()
    assert "all layers\timport of d.npz (original vector: strength" in listed[0]
    assert "layers 0,2, one vector each" in listed[1]
    for words in (["--name", "a/b"], ["--name", "a", "--key", "b"], ["--name", "a", "--layers", "x"]):
        refused = run.invoke(app, ["directions", "import", str(path), *words, *base])
        assert refused.exit_code == 2
        assert len(refused.stderr.splitlines()) == 1
    assert list(load_directions(tiny_model)) == ["their-age", "their-rows"]
