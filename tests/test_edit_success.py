"""Edit success: the ladder of strengths, what counts as one, and the command."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.conftest import write_photo
from tests.test_evaluate import run
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.editing.directions import Direction, directions_file, save_directions, unit
from wrangan_cli.engine.metrics import corruption, edit_success
from wrangan_cli.engine.metrics.edit_success import (
    SAME_PERSON,
    STEPS,
    YAW,
    Judge,
    Point,
    Trial,
    at_judged_side,
    by_photograph,
    load_judge,
    parts,
    trials,
)
from wrangan_cli.engine.models.attributes import FILE_NAME, AttributeConfig, AttributeNet, save_attributes
from wrangan_cli.engine.models.codes import Code, render, save_code
from wrangan_cli.engine.models.folder import Model


def direction(name: str = "smile", **changes: object) -> Direction:
    vector = unit(torch.randn(16, generator=torch.Generator().manual_seed(1)))
    return dataclasses.replace(Direction(name, vector, std=0.7), **changes)  # type: ignore[arg-type]


def brightness(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3)) * 10


def corners(images: Tensor) -> Tensor:
    return images[:, :, ::64, ::64].flatten(1)


def judge_of(*directions: Direction) -> Judge:
    """Of attributes and of yaw: the brightness."""
    columns = {one.name: (1, 1.0) for one in directions}
    return Judge(
        {one.name: one for one in directions},
        columns,
        lambda images: torch.stack([-brightness(images), brightness(images)], dim=1),
        brightness,
        corners,
    )


def drawn(model: Model, w: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(
        render(model, [Code(w)]).clamp(-1, 1), size=256, mode="bilinear", align_corners=False
    )


@pytest.mark.parametrize("low", [True, False])
def test_the_ladder_goes_to_what_the_photograph_does_not_show(tiny_model: Model, low: bool) -> None:
    w = torch.randn(16, generator=torch.Generator().manual_seed(2))
    photo = torch.full((3, 16, 16), -0.4 if low else 0.4)
    way = direction(range=(-2.0, 3.0))
    (trial,) = trials(tiny_model, judge_of(way), photo, Code(w))
    sign, end = (1, 3.0) if low else (-1, 2.0)
    strengths = [sign * end * k / STEPS for k in range(STEPS + 1)]
    assert [point.strength for point in trial.points] == pytest.approx(strengths)
    large = photo.mean() * torch.ones(1, 3, 256, 256)
    for strength, point in zip(strengths, trial.points, strict=True):
        image = drawn(tiny_model, w + strength * 0.7 * way.vector)
        logit = sign * float(image.mean() * 10)
        assert point.change == pytest.approx(logit + 4, abs=1e-3)
        assert point.reached == (logit > 0)
        assert point.identity == pytest.approx(float((corners(image) - corners(large)).norm()), rel=1e-3)


def test_one_strength_and_pose(tiny_model: Model) -> None:
    w, photo = torch.zeros(16), torch.full((3, 16, 16), 0.1)
    ways = direction("pose"), direction("smile")
    pose, smile = trials(tiny_model, judge_of(*ways), photo, Code(w), strength=1.5)
    # Towards less, since the photograph has some of it.
    assert [point.strength for point in pose.points] == [0, -1.5]
    assert [point.strength for point in smile.points] == [0, -1.5]
    for point in pose.points:
        assert point.reached == (point.change >= YAW)
        assert point.change == pytest.approx(
            1 - float(drawn(tiny_model, w + point.strength * 0.7 * ways[0].vector).mean() * 10), abs=1e-3
        )
    untold = dataclasses.replace(judge_of(ways[0]), yaw=lambda images: brightness(images) * math.nan)
    assert list(trials(tiny_model, untold, photo, Code(w))) == []


def test_no_image_is_judged_twice(tiny_model: Model) -> None:
    counts = dict.fromkeys(("logits", "yaw", "describe"), 0)

    def counted(name: str, judge: Judge) -> Judge:
        whole = getattr(judge, name)

        def call(images: Tensor) -> Tensor:
            counts[name] += 1
            return whole(images)

        return dataclasses.replace(judge, **{name: call})  # type: ignore[arg-type]

    judge = judge_of(direction("pose"), direction("smile"), direction("age"))
    for name in counts:
        judge = counted(name, judge)
    made = list(trials(tiny_model, judge, torch.full((3, 16, 16), 0.1), Code(torch.zeros(16))))
    assert len(made) == 3
    images = 1 + 3 * STEPS  # unedited and edited; the photograph comes beside
    # Pose needs no attributes of its edits.
    assert counts == {"logits": 2 + 2 * STEPS, "yaw": images + 1, "describe": images + 1}


def test_a_sign_turns_the_score(tiny_model: Model) -> None:
    way, photo = direction("smile"), torch.full((3, 16, 16), 0.1)
    judge = judge_of(way)
    (plain,) = trials(tiny_model, judge, photo, Code(torch.zeros(16)), 1.0)
    turned = dataclasses.replace(judge, columns={"smile": (1, -1.0)})
    (other,) = trials(tiny_model, turned, photo, Code(torch.zeros(16)), 1.0)
    assert [point.strength for point in plain.points] == [0, -1]
    assert [point.strength for point in other.points] == [0, 1]


def point(reached: bool = True, face: bool = True, identity: float = 0.4) -> Point:
    return Point(1.0, 0.0, reached, face, identity)


def test_what_counts() -> None:
    none = Point(0.0, 0.0, reached=True, face=True, identity=0.5)  # unedited: counts for nothing
    won = Trial("a", [none, point(reached=False), point(), point(identity=9)])
    never = Trial("a", [none, point(reached=False), point(reached=False, identity=0.1)])
    faceless = Trial("b", [none, point(face=False), point()])
    stranger = Trial("b", [dataclasses.replace(none, identity=0.7), point(identity=SAME_PERSON)])
    assert [trial.outcome().success for trial in (won, never, faceless, stranger)] == [
        True,
        False,
        False,
        False,
    ]
    assert by_photograph({"x": [won, faceless], "y": [never], "z": [], "v": [won]}) == {
        "x": 0.5,
        "y": 0.0,
        "v": 1.0,
    }
    found = parts([won, never, faceless, stranger])
    assert found == pytest.approx(
        {"reached": 3 / 4, "face": 2 / 3, "same person": 2 / 3, "unedited same person": 3 / 4}
    )


def test_images_are_seen_at_256() -> None:
    large = torch.rand(1, 3, 512, 512)
    torch.testing.assert_close(at_judged_side(large), large.reshape(1, 3, 256, 2, 256, 2).mean(dim=(3, 5)))
    assert at_judged_side(torch.rand(2, 3, 16, 16)).shape == (2, 3, 256, 256)


class NoFaces:
    side = 256

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 1), math.nan)


def test_the_command(
    tiny_model: Model, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit_success, "load_descriptors", lambda: corners)
    monkeypatch.setattr(edit_success, "YawScorer", NoFaces)
    codes, photos = tmp_path / "codes", tmp_path / "photos"
    arguments = ["--metric", "edit-success", "--model", tiny_folder, "--codes", codes, "--photos", photos]
    torch.manual_seed(0)
    for number, name in enumerate(("a", "b")):
        write_photo(photos / f"{name}.png", seed=number)
        save_code(codes / f"{name}.st", Code(torch.randn(16), info={"model_sha256": tiny_model.sha256}))
    net = AttributeNet(AttributeConfig(("Smiling", "Male"), 16, (8, 8))).eval()
    save_attributes(tiny_folder / FILE_NAME, net)
    save_directions(
        directions_file(tiny_model), tiny_model, [direction("smile"), direction("gender"), direction("own")]
    )
    done = run(*arguments, "--json", "--csv", tmp_path / "points.csv")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()][:3]
    # `own` has no score.
    assert [row["direction"] for row in rows] == ["smile", "gender", "all"]
    assert all(row["value"] == 0 and row["count"] == 2 for row in rows)  # nobody's face is found
    with open(tmp_path / "points.csv", newline="") as stream:
        points = list(csv.DictReader(stream))
    assert len(points) == 2 * 2 * (1 + STEPS)
    assert sum(int(p["counted"]) for p in points) == 4
    reached = {
        name: sum(int(p["counted"]) and int(p["reached"]) for p in points if p["direction"] == name) / 2
        for name in ("smile", "gender")
    }
    assert [row["reached"] for row in rows] == [*reached.values(), sum(reached.values()) / 2]
    for more, cause in (
        (["--direction", "own"], "has no score"),
        (["--metric", "mse"], "give it alone"),
        (["--strength", "nan"], "expected a finite number"),
    ):
        refused = run(*arguments, *more)
        assert refused.exit_code == 2, more
        assert cause in refused.stderr.replace("\n", " ")
    (tiny_folder / FILE_NAME).unlink()
    with pytest.raises(FileError, match="no attribute"):
        load_judge(tiny_model, [direction()])


class EverySecond:
    """A detector that finds a face in every second image, and keeps what it was shown."""

    shown: ClassVar[list[object]] = []

    def detect(self, image: object) -> list[str]:
        self.shown.append(image)
        return ["a face"] * (len(self.shown) % 2)


def test_faces_among_moved_images(
    tiny_model: Model, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EverySecond.shown.clear()
    monkeypatch.setattr(corruption, "FaceDetector", EverySecond)
    codes = [Code(torch.randn(16), info={"model_sha256": tiny_model.sha256}) for _ in range(2)]
    for number, code in enumerate(codes):
        save_code(tmp_path / f"{number}.st", code)
    more = ["--codes", tmp_path, "--samples", 5, "--model", tiny_folder, "--json"]
    done = run("--metric", "corruption-face", *more)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["value"] == pytest.approx(3 / 5)
    # What it saw are the images of the corruption protocol, large enough to look at.
    (first,) = corruption.moved_images(tiny_model, codes, [0])
    large = torch.nn.functional.interpolate(first.clamp(-1, 1), size=(256, 256), mode="bilinear")
    assert EverySecond.shown[0] == to_pillow(large[0])
    assert len(EverySecond.shown) == 5
