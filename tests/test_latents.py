"""Other tools' latents: what each writes is read as it stands there, and nothing else is."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.latent_files import (
    DIM,
    ROWS,
    SIDES,
    noise_of,
    numbers,
    nvidia,
    old_numpy,
    restyle,
    rosinality,
    written,
)
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.checkpoints.latents import (
    code_of,
    encoded,
    fitting_noise,
    left_out,
    read_latents,
    safe_name,
    w_reach,
    warn_far_from_w,
    warn_unused_noise,
)
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model


def same(found: torch.Tensor, expected: np.ndarray) -> bool:
    return found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)


def test_nvidia_projected_w(tiny_model: Model, tmp_path: Path) -> None:
    w = numbers(1, 1, DIM)
    (found,) = read_latents(nvidia(tmp_path / "anna", w), tiny_model)
    # One w for all layers is a w of W; every image's file has that name, in a folder of its own.
    assert (found.name, found.key, found.shape) == ("anna", "", (1, ROWS, DIM))
    assert same(found.w, w[0, 0])


def test_npz_takes_w_before_what_else_is_there(tiny_model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", {"loss": np.zeros(3), "w": numbers(1, ROWS, DIM)})
    (found,) = read_latents(path, tiny_model)
    assert found.name == "a"
    assert same(found.w, numbers(1, ROWS, DIM)[0])
    path = written(tmp_path / "b.npz", {"x": numbers(DIM), "y": numbers(ROWS, DIM)})
    assert [item.name for item in read_latents(path, tiny_model)] == ["x", "y"]


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".pth", ".npz"])
@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((DIM,), 1),
        ((1, DIM), 1),
        ((ROWS, DIM), 1),
        ((1, 1, DIM), 1),
        ((1, ROWS, DIM), 1),
        ((3, ROWS, DIM), 3),
        ((12, 1, DIM), 12),
    ],
)
def test_arrays_of_every_shape(
    tiny_model: Model, tmp_path: Path, suffix: str, shape: tuple[int, ...], count: int
) -> None:
    array = numbers(*shape)
    content: Any = torch.from_numpy(array) if suffix.startswith(".pt") else array
    path = written(tmp_path / f"face{suffix}", {"arr_0": content} if suffix == ".npz" else content)
    found = read_latents(path, tiny_model)
    digits = len(str(count - 1))
    assert [item.name for item in found] == (
        ["face"] if count == 1 else [f"face-{i:0{digits}d}" for i in range(count)]
    )
    one = array.reshape(count, -1, DIM)
    for index, item in enumerate(found):
        assert same(item.w, one[index, 0] if one.shape[1] == 1 else one[index])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats(tiny_model: Model, tmp_path: Path, dtype: Any) -> None:
    array = numbers(ROWS, DIM).astype(dtype)
    (found,) = read_latents(written(tmp_path / "a.npy", array), tiny_model)
    assert same(found.w, array.astype(np.float32))


def test_rosinality(tiny_model: Model, tmp_path: Path) -> None:
    latents = {"../in/anna.jpg": numbers(DIM, seed=1), r"C:\in\b.c.PNG": numbers(DIM, seed=2)}
    found = read_latents(rosinality(tmp_path / "anna.pt", latents), tiny_model)
    assert [(item.name, item.key) for item in found] == [
        ("anna", "../in/anna.jpg"),
        ("b.c", r"C:\in\b.c.PNG"),
    ]
    assert all(same(item.w, w) for item, w in zip(found, latents.values(), strict=True))
    plus = {"a.jpg": numbers(ROWS, DIM, seed=3)}
    (found_plus,) = read_latents(rosinality(tmp_path / "plus.pt", plus), tiny_model)
    assert same(found_plus.w, plus["a.jpg"])
    # As forks write it: the inner dict alone, a file an image.
    bare = written(tmp_path / "anna_projected.pt", torch.load(tmp_path / "plus.pt")["a.jpg"])
    (alone,) = read_latents(bare, tiny_model)
    assert (alone.name, len(alone.noise)) == ("anna_projected", len(SIDES))


def test_noise_maps_that_fit_draw_what_the_projector_drew(tiny_model: Model, tmp_path: Path) -> None:
    path = rosinality(tmp_path / "r.pt", {"a.jpg": numbers(DIM, seed=1), "b.jpg": numbers(DIM, seed=2)})
    latent = read_latents(path, tiny_model)[1]
    code = code_of(latent, path, sha256(path), tiny_model, "w", None)
    save_code(tmp_path / "b.st", code)
    drawn = render(tiny_model, [load_code(tmp_path / "b.st", tiny_model)])
    maps = noise_of(path, "b.jpg")
    expected = tiny_model.generator.synthesis(latent.w[None], noise=maps)
    without = tiny_model.generator.synthesis(latent.w[None])
    assert (without - expected).abs().max() > 0.05
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-3)  # codes keep noise in half precision


@pytest.mark.parametrize(("sides", "silent"), [([4, 8, 8, 16, 16, 32, 32], False), (SIDES, True)])
def test_noise_maps_that_do_not_fit_are_left_out_with_one_remark(
    tiny_model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, sides: list[int], silent: bool
) -> None:
    if silent:
        for given in tiny_model.generator.noise_inputs().values():
            given.strength.data.zero_()
    path = rosinality(tmp_path / "r.pt", {"a.jpg": numbers(DIM), "b.jpg": numbers(DIM)}, sides)
    latents = read_latents(path, tiny_model)
    assert fitting_noise(latents[0], tiny_model) == {}
    with caplog.at_level(logging.WARNING, "wrangan"):
        warn_unused_noise({path: latents, Path("other.pt"): latents[:1]}, tiny_model)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"noise maps of {path}, other.pt are left out: ")
    why = "tiny does not use noise" if silent else "4 8 8 16 16 32 32, those of tiny 4 8 8 16 16"
    assert why in record.getMessage()


def test_pti_pivot(tiny_model: Model, tmp_path: Path) -> None:
    path = written(
        tmp_path / "PTI" / "anna" / "0.pt", torch.from_numpy(numbers(1, 1, DIM)).repeat(1, ROWS, 1)
    )
    (found,) = read_latents(path, tiny_model)
    assert found.name == "anna"
    assert same(found.w, numbers(1, 1, DIM)[0, 0])


@pytest.mark.parametrize("old", [False, True])
def test_latents_npy_of_restyle_and_hyperstyle(tiny_model: Model, tmp_path: Path, old: bool) -> None:
    latents = {"anna.jpg": numbers(ROWS, DIM, seed=1), "ben.png": numbers(ROWS, DIM, seed=2)}
    for name in ("restyle", "hyperstyle"):
        path = restyle(tmp_path / f"{name}.npy", latents) if name == "restyle" else tmp_path / f"{name}.npy"
        if name == "hyperstyle":  # one array for each name
            written(path, latents)
        if old:
            old_numpy(path, np.load(path, allow_pickle=True).item())
        found = read_latents(path, tiny_model)
        assert [item.name for item in found] == ["anna", "ben"]
        assert all(same(item.w, w) for item, w in zip(found, latents.values(), strict=True))


def test_a_list_of_latents(tiny_model: Model, tmp_path: Path) -> None:
    arrays = [numbers(ROWS, DIM, seed=1), numbers(1, DIM, seed=2)]
    path = written(tmp_path / "l.pt", [torch.from_numpy(array) for array in arrays])
    assert [item.name for item in read_latents(path, tiny_model)] == ["l-0", "l-1"]
    ragged = np.empty(2, dtype=object)
    ragged[:] = arrays
    found = read_latents(written(tmp_path / "o.npy", ragged), tiny_model)
    assert same(found[0].w, arrays[0])
    assert same(found[1].w, arrays[1][0])


def test_z_is_mapped(tiny_model: Model, tmp_path: Path) -> None:
    z = numbers(3, DIM)
    found = read_latents(written(tmp_path / "z.npy", z), tiny_model, "z")
    expected = tiny_model.generator.mapping(torch.from_numpy(z))
    torch.testing.assert_close(torch.stack([item.w for item in found]), expected)
    with pytest.raises(FileError, match=r"z is \(16,\), or \(N, 16\)"):
        read_latents(written(tmp_path / "w.npy", numbers(1, ROWS, DIM)), tiny_model, "z")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("/root/.ssh", "_ssh"),
        ("..", "__"),
        ("a/..", "__"),
        ("a/", ""),
        ("C:\\x\\y.jpg", "y"),
        ("face.01", "face.01"),
        ("face.01.webp", "face.01"),
        ("a\x00b\n\x1b[31mc.jpg", "a_b__[31mc"),
        (".jpg", "_jpg"),
        (" ", ""),
        ("é.jpg", "é"),
    ],
)
def test_names_are_no_paths(key: str, name: str) -> None:
    assert safe_name(key) == name


def test_a_name_of_which_nothing_is_left(tiny_model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "r.pt", {"a/": torch.from_numpy(numbers(2, ROWS, DIM))})
    assert [item.name for item in read_latents(path, tiny_model)] == ["r-0", "r-1"]


class Harm:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


GOOD = torch.from_numpy(numbers(DIM))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", numbers(18, DIM), f"18 rows; W+ of tiny has {ROWS}"),
        ("a.npy", numbers(2, 18, DIM), f"18 rows; W+ of tiny has {ROWS}"),
        ("a.npy", numbers(1, ROWS, 512), "vectors of 512 numbers; those of tiny have 16"),
        ("a.npy", numbers(1, 2, ROWS, DIM), "has shape (1, 2, 6, 16)"),
        ("a.npy", numbers(0, ROWS, DIM), "is empty"),
        ("a.npy", np.float32(1), "a single number"),
        ("a.npy", numbers(DIM) * np.nan, "not finite"),
        ("a.npy", np.full(DIM, 1e300), "not finite"),
        ("a.npy", np.ones((ROWS, DIM), int), "whole numbers (torch.int64)"),
        ("a.npy", numbers(DIM) > 0, "holds torch.bool, not real numbers"),
        ("a.npy", numbers(DIM).astype(complex), "holds torch.complex128, not real numbers"),
        ("a.npy", np.array(["a"] * DIM), "does not hold numbers"),
        ("a.npy", {}, "holds no latents"),
        ("a.npy", {"x": "text"}, "x is not an array but str"),
        ("a.npy", {1: numbers(DIM)}, "its names are not text but int"),
        ("a.npy", {"x": [[numbers(DIM)]]}, "x is not an array but list"),
        ("a.npy", Harm(), "could run code"),
        ("a.npy", {"x": Harm()}, "could run code"),
        ("a.npz", {}, "holds no latents"),
        ("a.npz", {"w": np.array([Harm()])}, "plain arrays"),
        ("a.pt", {}, "holds no latents"),
        ("a.pt", "text", "its content is not an array but str"),
        ("a.pt", {"a.jpg": {"latent": 3}}, "a.jpg is not an array but int"),
        ("a.pt", {"a.jpg": {"latent": GOOD, "noise": [GOOD * torch.inf]}}, "noise of a.jpg has values"),
        ("a.pt", {"x": Harm()}, "could run code"),
        ("a.pt", torch.nn.Linear(2, 2), "training is not an array but bool"),
        ("a.pkl", GOOD, "expected .npz, .npy, .pt, .pth"),
    ],
)
def test_what_is_no_latent_is_refused(
    tiny_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as caught:
        read_latents(written(tmp_path / name, content), tiny_model)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / name}: ")
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "harmed").exists()


def test_the_pickles_of_these_tests_do_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.load(written(tmp_path / "a.npy", Harm()), allow_pickle=True)
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize("kind", ["plain.npy", "pickled.npy", "a.npz", "a.pt"])
@pytest.mark.parametrize("broken", ["cut", "other", "nothing", "missing"])
def test_broken_files(tiny_model: Model, tmp_path: Path, kind: str, broken: str) -> None:
    content: Any = {
        "plain.npy": numbers(ROWS, DIM),
        "pickled.npy": {"a.jpg": numbers(ROWS, DIM)},
        "a.npz": {"w": numbers(1, ROWS, DIM)},
        "a.pt": torch.from_numpy(numbers(1, ROWS, DIM)),
    }[kind]
    path = written(tmp_path / kind, content)
    whole = path.read_bytes()
    if broken == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) * 2 // 3], "other": b"hello\n" * 9, "nothing": b""}[broken]
        )
    with pytest.raises(FileError, match=kind):
        read_latents(path, tiny_model)


@pytest.mark.parametrize("header", [b"{'shape': (", b"[1, 2", b"{'a': b}", b"((((((((", b"\0" * 9])
def test_a_broken_header_of_npy(tiny_model: Model, tmp_path: Path, header: bytes) -> None:
    """NumPy's parser raises errors of the tokenizer, too."""
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(FileError, match=r"a\.npy: not a readable \.npy file") as caught:
        read_latents(path, tiny_model)
    assert str(caught.value).isprintable()


def test_remark_of_latents_that_are_far_from_w(
    tiny_model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = torch.Generator().manual_seed(0)
    w = (
        tiny_model.generator.mapping(torch.randn(2000, DIM, generator=rng))
        .detach()
        .numpy()
        .astype(np.float64)
    )
    mean, variance = tiny_model.w_mean.numpy().astype(np.float64), tiny_model.w_std**2
    reach = w_reach(tiny_model)
    assert reach == pytest.approx((((w - mean) ** 2).sum(axis=1) / variance).max(), rel=1e-4)
    step = np.zeros(DIM)
    step[0] = np.sqrt(reach * variance)
    path = written(
        tmp_path / "a.npy", np.stack([np.tile(mean + s * step, (ROWS, 1)) for s in (0.99, 1.01, 2)])
    )
    latents = read_latents(path, tiny_model)
    with caplog.at_level(logging.WARNING, "wrangan"):
        warn_far_from_w({path: latents[:1]}, tiny_model)
        assert not caplog.records
        warn_far_from_w({path: latents, Path("b.npy"): latents[2:]}, tiny_model)
    (record,) = caplog.records
    assert record.getMessage() == (
        "these do not look like latents of tiny, or were optimised far away from its W: "
        f"{path} (a-1), {path} (a-2), b.npy; their squared distance from the mean of W is up to "
        f"{4 * reach:.3g} times its variance, that of random w at most {reach:.3g} times"
    )


@pytest.mark.parametrize("form", ["npz", "npy", "pt"])
@pytest.mark.parametrize("shape", [(DIM,), (ROWS, DIM)])
def test_there_and_back(tiny_model: Model, tmp_path: Path, form: Any, shape: tuple[int, ...]) -> None:
    w = torch.from_numpy(numbers(*shape))
    path = tmp_path / f"a.{form}"
    path.write_bytes(encoded(w, ROWS, form))
    rows = w.expand(ROWS, DIM)
    if form == "npz":
        with np.load(path, allow_pickle=False) as held:
            assert held.files == ["w"]
            assert held["w"].dtype == np.float32
            assert np.array_equal(held["w"], rows[None].numpy())
    elif form == "npy":
        assert np.array_equal(np.load(path, allow_pickle=False), rows.numpy())
    else:
        plain = torch.load(path, weights_only=True)
        assert torch.equal(plain, rows[None])
        assert plain.is_contiguous()
    (found,) = read_latents(path, tiny_model)
    assert torch.equal(found.w, w)


def test_what_is_left_out_is_what_changes_the_image() -> None:
    w, some, none = torch.zeros(DIM), {"0": torch.ones(1)}, {"0": torch.zeros(1)}
    assert left_out(Code(w, epsilon=none, noise=none)) == []
    code = Code(w, epsilon=some, delta=some, noise=some, parameters=some)
    assert left_out(code) == ["ε", "tuned weights", "noise maps", "tuned parameters"]
