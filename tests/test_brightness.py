"""The luminance of the face's middle, the direction learnt from it, and others that leave it alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from tests.conftest import TINY
from wrangan_cli.app import app
from wrangan_cli.engine.editing.brightness import REGION, BrightnessScorer
from wrangan_cli.engine.editing.directions import SENSIBLE_RANGE, directions_file, load_directions
from wrangan_cli.engine.models.attributes import AttributeConfig, AttributeNet, save_attributes
from wrangan_cli.engine.models.folder import Model, sample_w
from wrangan_cli.engine.models.pairs import render_pairs

run = CliRunner()
MIDDLE = (slice(None), slice(8, 12), slice(5, 11))
"""The region of images of 16 px."""


def test_the_region_is_the_middle_of_the_face() -> None:
    image = torch.full((1, 3, 16, 16), -1.0)
    image[0][MIDDLE] = 1
    assert BrightnessScorer()(image).item() == pytest.approx(1)
    assert BrightnessScorer()(-image).item() == pytest.approx(-1)
    # Its left and right are alike, and the eyes (at .47 of the height of FFHQ's frame) are not in it.
    assert REGION[2] + REGION[3] == 1
    assert REGION[0] > 0.47


def test_luminance_of_a_colour() -> None:
    colour = torch.tensor([0.5, -0.25, 3.0])  # blue is clipped to 1
    images = colour[:, None, None].expand(2, 3, 64, 64)
    score = BrightnessScorer()(images)
    assert score.shape == (2, 1)
    assert score[0].item() == pytest.approx(0.2126 * 0.5 - 0.7152 * 0.25 + 0.0722, abs=1e-6)


def test_an_image_reduced_by_area_has_the_same_score() -> None:
    images = torch.rand(3, 3, 256, 256) * 2 - 1
    scores = BrightnessScorer()(images)
    torch.testing.assert_close(BrightnessScorer()(F.adaptive_avg_pool2d(images, 64)), scores)
    assert scores.flatten().unique().numel() == 3


def luminance(images: torch.Tensor) -> np.ndarray:
    middle = images.clamp(-1, 1)[(slice(None), *MIDDLE)].mean(dim=(2, 3))
    return np.asarray(middle.numpy() @ [0.2126, 0.7152, 0.0722])


def test_command(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    words = ["directions", "learn", "brightness", "--model", str(tiny_folder), "--ridge", "0.1"]
    result = run.invoke(app, [*words, "--samples", "400", "--json"])
    assert result.exit_code == 0, result.stderr
    assert "without a face" not in result.stderr
    (record,) = json.loads(result.stdout)["directions"]
    assert record["source"]["attribute"] == "luminance of the face's middle"
    assert record["source"]["samples"] == 400
    found = load_directions(tiny_model)["brightness"]
    assert found.range == SENSIBLE_RANGE
    w = sample_w(tiny_model.generator, 500, seed=9)
    with torch.no_grad():
        images = tiny_model.generator.synthesis(w)
        moved = tiny_model.generator.synthesis(w + found.std * found.vector)
    correlation = np.corrcoef(w @ found.vector, luminance(images))[0, 1]
    assert correlation > 0.5
    assert record["source"]["correlation_test"] == pytest.approx(correlation, abs=0.15)
    assert (luminance(moved) > luminance(images)).mean() > 0.7
    # The same from pairs, whose images are rounded to 8 bits.
    pairs = render_pairs(tiny_model, tmp_path / "pairs", 400, side=TINY.resolution)
    again = run.invoke(
        app, [*words, "--pairs", str(tmp_path / "pairs"), "--out", str(tmp_path / "p.safetensors")]
    )
    assert again.exit_code == 0, again.stderr
    other = load_directions(tiny_model, tmp_path / "p.safetensors")["brightness"]
    assert other.source["samples"] == len(pairs) == 400
    assert other.vector @ found.vector > 0.5


def test_others_are_made_orthogonal_to_it(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    """Beside it from the same images, from the model's own directions, and from another file."""
    pytest.importorskip("sklearn")
    torch.manual_seed(2)
    net = AttributeNet(AttributeConfig(("Smiling", "Young"), resolution=16, widths=(8, 8)))
    save_attributes(tiny_folder / "attributes.safetensors", net)
    bare = tmp_path / "bare.safetensors"
    words = ["--model", str(tiny_folder), "--samples", "200", "--share", "0.2"]

    def learn(*more: str) -> None:
        result = run.invoke(app, ["directions", "learn", *more, *words])
        assert result.exit_code == 0, result.stderr

    learn("smile", "brightness", "age", "--out", str(bare))
    learn("age", "brightness", "--orthogonal-to", "brightness")
    held, own = load_directions(tiny_model, bare), load_directions(tiny_model)
    assert own["age"].source["orthogonal_to"] == ["brightness"]
    assert abs(own["age"].vector @ own["brightness"].vector) < 1e-6
    assert abs(held["age"].vector @ held["brightness"].vector) > 1e-4
    # The bare ones of the file, although the model's own has others, which stay.
    learn("smile", "--orthogonal-to", "brightness", "--orthogonal-to", "age", "--others", str(bare))
    own = load_directions(tiny_model)
    assert sorted(own) == ["age", "brightness", "smile"]
    for name in ("brightness", "age"):
        assert abs(own["smile"].vector @ held[name].vector) < 1e-6
    assert torch.equal(load_directions(tiny_model, bare)["smile"].vector, held["smile"].vector)
    lost = ["directions", "learn", "smile", "--orthogonal-to", "pose", "--others", str(bare), *words]
    result = run.invoke(app, lost)
    assert result.exit_code == 2
    assert f"direction 'pose' is not in {bare}" in result.stderr
    assert directions_file(tiny_model).exists()
