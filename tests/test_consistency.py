"""Latent editing consistency, costs in the record, paired comparison, identity."""

import csv
import dataclasses
import importlib.util
import json
import mmap
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import write_photo
from tests.fakes import make_inverter
from tests.test_evaluate import run
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.base.peak_memory import peak_memory, reset_peak
from wrangan_cli.engine.editing.directions import Direction, directions_file, save_directions, unit
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics import identity
from wrangan_cli.engine.metrics.comparison import compare_paired, wilson
from wrangan_cli.engine.metrics.consistency import Consistency, codes_consistency, editing_consistency
from wrangan_cli.engine.models.codes import Code, render, save_code
from wrangan_cli.engine.models.folder import Model


def smile(**changes: object) -> Direction:
    vector = unit(torch.randn(16, generator=torch.Generator().manual_seed(1)))
    return dataclasses.replace(Direction("smile", vector, std=0.7), **changes)  # type: ignore[arg-type]


class Exact:
    """An inverter that gives the w that it is told: what an ideal encoder would."""

    def __init__(self, model: Model, shift: Tensor) -> None:
        self.model, self.shift, self.seen = model, shift, []
        self.settings = inversion_settings()

    def invert(self, images: Tensor) -> list[Code | WranganError]:
        self.seen.append(images)
        return [Code(self.answers.pop(0) + self.shift) for _ in images]


def test_against_the_formula(tiny_model: Model) -> None:
    w = torch.randn(2, 16) * 0.3
    inverter = Exact(tiny_model, shift := torch.randn(16) * 0.1)
    step = 2 * 0.7 * smile().vector
    inverter.answers = [*(w + step), *(w - step)]
    found = editing_consistency(inverter, [Code(row) for row in w], smile(), 2.0)  # type: ignore[arg-type]
    edited = render(tiny_model, [Code(row + step) for row in w]).clamp(-1, 1)
    torch.testing.assert_close(inverter.seen[0], edited)
    for row, one in zip(w, found, strict=True):
        assert isinstance(one, Consistency)
        # All rows of W+ are the same: the mean over them is the one distance.
        assert one.values["lec"] == pytest.approx(shift.norm().item() / tiny_model.w_std, rel=1e-4)
        first, last = render(tiny_model, [Code(row), Code(row + shift)]).clamp(-1, 1)
        assert one.values["lec-image"] == pytest.approx((first - last).square().mean().item(), rel=1e-3)


def test_w_plus_is_a_mean_over_rows_and_perfect_is_zero(tiny_model: Model) -> None:
    rows = tiny_model.generator.config.num_latents
    w = torch.randn(rows, 16)
    step = 3 * 0.7 * smile().vector
    inverter = Exact(tiny_model, torch.zeros(16))
    inverter.answers = [w + step, w - step]
    (one,) = editing_consistency(inverter, [Code(w)], smile(), 3.0)  # type: ignore[arg-type]
    assert isinstance(one, Consistency)
    assert one.values == pytest.approx({"lec": 0, "lec-image": 0}, abs=1e-6)
    gap = torch.randn(rows, 16)
    inverter.answers = [w + step + gap, w - step + gap]
    (one,) = editing_consistency(inverter, [Code(w)], smile(), 3.0)  # type: ignore[arg-type]
    assert isinstance(one, Consistency)
    expected = np.sqrt((gap.numpy() ** 2).sum(axis=1).mean()) / tiny_model.w_std
    assert one.values["lec"] == pytest.approx(expected, rel=1e-5)


def test_codes_are_inverted_with_the_settings_in_their_records(tiny_model: Model) -> None:
    made = {}
    for steps in (2, 3):
        inverter = make_inverter(tiny_model, steps=steps)
        (code,) = inverter.invert(torch.rand(1, 3, 16, 16) * 2 - 1)
        assert isinstance(code, Code)
        made[steps] = (inverter, code)
    loaded: list[InversionSettings] = []

    def load(model: Model, settings: InversionSettings) -> Inverter:
        loaded.append(settings)
        return make_inverter(model, **dataclasses.asdict(settings))

    edited = dataclasses.replace(made[2][1], info={**made[2][1].info, "edits": [{"direction": "x"}]})
    codes = [made[2][1], Code(torch.zeros(16)), made[3][1], edited, made[2][1]]
    found = list(codes_consistency(tiny_model, codes, smile(), 1.0, 8, load))
    assert [isinstance(one, WranganError) for one in found] == [False, True, False, True, False]
    assert [settings.steps for settings in loaded] == [2, 3]
    expected = editing_consistency(made[3][0], [made[3][1]], smile(), 1.0)[0]
    assert isinstance(expected, Consistency)
    assert isinstance(found[2], Consistency)
    assert found[2].values == pytest.approx(expected.values, rel=1e-4)


def settled(model: Model) -> dict[str, object]:
    settings = inversion_settings(method="sg2-w", init="mean", steps=2, perceptual_weight=0)
    return {
        "model": model.name,
        "model_sha256": model.sha256,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    }


def test_command(tiny_model: Model, tiny_folder: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    save_code(codes / "a.st", Code(torch.randn(16), info=settled(tiny_model)))
    save_code(codes / "b.st", Code(torch.randn(16), info={**settled(tiny_model), "settings": {}}))
    arguments = ["--metric", "lec", "--metric", "lec-image", "--model", tiny_folder, "--codes", codes]
    nothing = run(*arguments)
    assert (nothing.exit_code, "there are: none" in nothing.stderr) == (2, True)
    save_directions(directions_file(tiny_model), tiny_model, [smile()])
    table = tmp_path / "table.csv"
    result = run(*arguments, "--strength", 1, "--json", "--csv", table)
    assert result.exit_code == 1
    (complaint,) = result.stderr.splitlines()
    assert "b.st" in complaint
    assert "cannot be inverted again" in complaint
    first, second, _ = (json.loads(line) for line in result.stdout.splitlines())
    assert (first["metric"], first["count"], first["direction"]) == ("lec", 1, "smile")
    with open(table) as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["lec-image"]) == pytest.approx(second["value"])
    refused = run("--metric", "lec", "--codes", codes, "--photos", tmp_path)
    assert (refused.exit_code, "and no --photos" in refused.stderr) == (2, True)


def test_wins_and_their_interval() -> None:
    first = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "only": 0.0}
    second = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 5.0, "other": 9.0}
    lower = compare_paired(first, second, higher_is_better=False)
    assert (lower.count, lower.wins, lower.ties, lower.fraction_won) == (4, 2, 1, 0.625)
    assert lower.difference == pytest.approx(np.mean([-1, 0, 2, -1]))
    assert compare_paired(first, second, higher_is_better=True).wins == 1
    with pytest.raises(WranganError, match="no photograph in common"):
        compare_paired(first, {"z": 1.0}, higher_is_better=False)


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.3, 10), (0.5, 1), (1.0, 50)])
def test_wilson_ends_are_where_the_score_test_turns(share: float, count: int) -> None:
    for end in wilson(share, count):
        if 0 < end < 1:
            deviation = abs(share - end) / np.sqrt(end * (1 - end) / count)
            assert deviation == pytest.approx(1.959964, rel=1e-5)
        else:
            assert end == share


def test_command_against_another_method(tiny_model: Model, tiny_folder: Path, tmp_path: Path) -> None:
    for index, stem in enumerate("abc"):
        write_photo(tmp_path / "photos" / f"{stem}.png", seed=index)
        torch.manual_seed(index)
        for folder, extra in (("one", {"seconds": 2.0 + index}), ("two", {})):
            info = {"model": tiny_model.name, "model_sha256": tiny_model.sha256, **extra}
            save_code(tmp_path / folder / f"{stem}.st", Code(torch.randn(16) * 0.3, info=info))
    options = ["--photos", tmp_path / "photos", "--model", tiny_folder, "--json"]
    values = {}
    for folder in ("one", "two"):
        table = tmp_path / f"{folder}.csv"
        assert run("--metric", "mse", "--codes", tmp_path / folder, "--csv", table, *options).exit_code == 0
        with open(table) as stream:
            values[folder] = [float(row["mse"]) for row in csv.DictReader(stream)]
    result = run("--metric", "mse", "--codes", tmp_path / "one", "--against", tmp_path / "two", *options)
    assert result.exit_code == 0, result.output
    _, won = (json.loads(line) for line in result.stdout.splitlines())
    wins = sum(a < b for a, b in zip(values["one"], values["two"], strict=True))
    assert (won["wins"], won["count"], won["share_won"]) == (wins, 3, pytest.approx(wins / 3))
    timed = run("--metric", "seconds", "--metric", "peak-memory", "--codes", tmp_path / "one", *options)
    assert timed.exit_code == 1  # these codes have no memory in their record, and each is named
    assert [json.loads(line)["value"] for line in timed.stdout.splitlines()] == [3.0]
    assert json.loads(timed.stdout.splitlines()[0])["interval"] is None  # a batch shares its seconds
    assert timed.stderr.count("has no peak_memory_mib") == 3


def test_peak_memory_sees_what_was_held_and_forgets() -> None:
    device = torch.device("cpu")
    fresh = reset_peak(device)
    with mmap.mmap(-1, 114 * 2**20) as block:  # the allocator might keep a tensor's memory
        block.write(b"1" * len(block))
        high = peak_memory(device, fresh)
    assert high["peak_memory_of"] in ("process", "process, since its start")
    if high["peak_memory_of"] == "process":
        reset_peak(device)
        assert peak_memory(device)["peak_memory_mib"] < high["peak_memory_mib"] - 80


def test_identity_cuts_out_the_box_of_an_aligned_face() -> None:
    boxes = []

    class Dlib:
        @staticmethod
        def rectangle(*sides: int) -> tuple[int, ...]:
            boxes.append(sides)
            return sides

    class Network:
        @staticmethod
        def compute_face_descriptor(pixels: np.ndarray, landmarks: object) -> list[float]:
            assert pixels.dtype == np.uint8
            assert pixels.shape == (256, 256, 3)
            return [pixels[..., 0].mean() / 255, float(landmarks == "found"), *[0.0] * 126]

    describe = identity.FaceDescriptors(Dlib, lambda _pixels, _box: "found", Network)
    rows = describe(torch.stack([torch.full((3, 64, 64), -1.0), torch.full((3, 64, 64), 1.0)]))
    assert boxes == [(46, 81, 201, 219)] * 2
    assert rows[:, 0].tolist() == [0, 1]
    assert (rows[0] - rows[1]).norm().item() == 1


def test_identity_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dlib", None)
    with pytest.raises(WranganError, match=re.escape(install_line("identity"))):
        identity.METRIC.load(torch.device("cpu"))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("dlib", "face_recognition_models")),
    reason="the extra identity is not installed",
)
def test_identity_of_an_image_with_itself_is_zero() -> None:
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    measure = identity.METRIC.load(torch.device("cpu"))
    assert measure(image, image).item() == 0
    assert measure(image, -image).item() > 0
