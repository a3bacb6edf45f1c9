"""`wrangan report`: from photographs to tables, figures and the page, and run again."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes import fake_perceptual
from tests.report_cases import LITTLE, SET, Page, run, subject, table
from tests.test_consistency import smile
from tests.test_evaluate import FEATURES, needs_fidelity, small_features
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.data.photographs import load_photograph
from wrangan_cli.engine.editing.directions import Move, edit_code
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import METHODS
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics import edit_success
from wrangan_cli.engine.metrics.corruption import moved_images
from wrangan_cli.engine.metrics.drift import drift
from wrangan_cli.engine.metrics.kid import kid
from wrangan_cli.engine.models.codes import Code, load_code, render
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.reports import sweep
from wrangan_cli.engine.reports.settings import parse_settings
from wrangan_cli.engine.training.settings import SensitivitySettings

__all__ = ["small_features", "subject"]  # fixtures

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
NUMBERED = (
    "1-cost",
    "2-reconstruction",
    "2-wins",
    "3-samples",
    "4-corruption",
    "5-separability",
    "6-std-share",
    "7-layer-influence",
)


@needs_fidelity
def test_end_to_end_and_again(subject: Path, tiny_model: Model, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    result = run(out, subject, photos, "--batch", 2)
    assert result.exit_code == 1, result.output  # of the broken photograph alone
    assert "Traceback" not in result.output
    failed = [line for line in result.stderr.splitlines() if "broken.png" in line]
    done = [row["method"] for row in table(out, "table-2-reconstruction")]
    assert {"wrangan", "weight-tuning", "sg2-w"} <= set(done)
    assert len(failed) == len(done)
    assert len(result.stderr.splitlines()) == len(failed) + len(METHODS) - len(done)
    for method in set(METHODS) - set(done):
        assert f"method {method}: left out" in result.stderr
    check_reconstruction(out, tiny_model, photos, done)
    check_corruption(out, tiny_model, done)
    check_drift(out, tiny_model, done)
    check_sweep(out)
    check_edits(out, tiny_model, photos, done)
    check_page(out, tiny_model, done)
    for name in NUMBERED:
        assert table(out, f"table-{name}"), name
        markdown = (out / "tables" / f"table-{name}.md").read_text()
        assert markdown in (out / "tables.md").read_text()
        with open(out / "tables" / f"table-{name}.csv") as stream:
            assert len(list(csv.DictReader(stream))) == len(table(out, f"table-{name}"))
    assert [row["count"] for row in table(out, "editing-consistency")] == [2] * len(done)
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures >= {
        *("reconstructions.png", "zooms.png", "differences.png", "edits-smile.png", "edits-age.png"),
        *("strategies.png", "interpolations.png", "std.png", "epsilon-wrangan.png", "sweep.png"),
        "edit-success.png",
    }
    assert set(result.stdout.splitlines()) >= {str(out / "index.html"), str(out / "figures" / "std.png")}
    before = {path: path.stat().st_mtime_ns for path in cached(out)}
    again = run(out, subject, photos, "--batch", 2)
    assert again.stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in cached(out)} == before


def check_edits(out: Path, model: Model, photos: Path, done: list[str]) -> None:
    """Each cell again, from the codes; gender is no direction of this model, and has no column."""
    rows = table(out, "edit-success")
    assert [row["method"] for row in rows] == done
    judge = edit_success.load_judge(model, [smile(), smile(name="age")])
    for row in rows:
        shares: dict[str, list[float]] = {"all": [], "smile": [], "age": []}
        points = []
        for path in sorted((out / "codes" / row["method"]).glob("*.st")):
            photo = load_photograph(next(photos.glob(f"{path.stem}.*")), model.resolution)
            ends = {
                t.direction: t.outcome() for t in edit_success.trials(model, judge, photo, load_code(path))
            }
            wins = {name: end.reached and end.identity < 0.6 for name, end in ends.items()}
            for name in ("smile", "age"):
                shares[name].append(wins[name])
            shares["all"].append((wins["smile"] + wins["age"]) / 2)
            points += ends.values()
        for name, values in shares.items():
            assert row[name]["value"] == pytest.approx(sum(values) / len(values)), (row["method"], name)
        assert row["reached"] == pytest.approx(sum(point.reached for point in points) / len(points))
    assert "gender" not in rows[0]


def cached(out: Path) -> list[Path]:
    """What a second run must leave as it is: codes, measures, images and figures."""
    folders = ("codes", "cache", "images", "figures")
    return sorted(path for folder in folders for path in (out / folder).rglob("*") if path.is_file())


def check_reconstruction(out: Path, model: Model, photos: Path, methods: list[str]) -> None:
    files = {path.stem: path for path in photos.iterdir()}
    mse: dict[str, list[float]] = {}
    for method in methods:
        for stem in "abc":
            drawn = render(model, [load_code(out / "codes" / method / f"{stem}.st")]).clamp(-1, 1)[0]
            mse.setdefault(method, []).append((drawn - load_image(files[stem], 16)).square().mean().item())
            written = np.asarray(Image.open(out / "images" / method / f"{stem}.png"))
            assert (written == to_uint8(drawn).permute(1, 2, 0).numpy()).all()
    for row in table(out, "table-2-reconstruction"):
        assert (row["count"], row["failed"]) == (3, 1)
        assert row["mse"]["value"] == pytest.approx(np.mean(mse[row["method"]]), rel=1e-4)
        assert row["mse"]["low"] <= row["mse"]["value"] <= row["mse"]["high"]
        assert row["seconds"]["value"] > 0
    for row in table(out, "table-2-wins"):
        other = row["methods"].removeprefix("against ")
        pairs = zip(mse["wrangan"], mse[other], strict=True)
        share = np.mean([(a < b) + (a == b) / 2 for a, b in pairs])
        assert row["mse"]["value"] == pytest.approx(share)
        assert row.keys() >= {"mse", "corruption-kid", "drift", "edit-success"}
        assert "seconds" not in row  # shared by the photographs of a batch
    with open(out / "tables" / "photographs.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["photo"]) for row in rows] == [(m, s) for m in methods for s in "abc"]
    assert [float(row["mse"]) for row in rows] == pytest.approx(
        [v for m in methods for v in mse[m]], rel=1e-4
    )


def check_corruption(out: Path, model: Model, methods: list[str]) -> None:
    matrix = torch.randn(3 * 16 * 16, FEATURES, generator=torch.Generator().manual_seed(7)) / 16
    real = torch.randn(30, FEATURES, generator=torch.Generator().manual_seed(1)).half().float()
    rows = {row["method"]: row for row in table(out, "table-4-corruption")}
    assert list(rows) == methods
    codes = [load_code(out / "codes" / "sg2-w" / f"{stem}.st") for stem in "abc"]
    moved = torch.cat(list(moved_images(model, codes, range(15))))
    features = moved.clamp(-1, 1).flatten(1) @ matrix
    found = {name: rows["sg2-w"][name]["value"] for name in ("kid", "pooled-kid")}
    each = [kid(features[code::3], real).value for code in range(3)]
    assert found["kid"] == pytest.approx(np.mean(each), rel=0.02, abs=1e-4)  # float16
    assert found["pooled-kid"] == pytest.approx(kid(features, real).value, rel=0.02, abs=1e-4)
    assert rows["sg2-w"]["each"] == 5
    check_means_of_photographs(out, {method: row["kid"] for method, row in rows.items()}, "corruption-kid")


def check_drift(out: Path, model: Model, methods: list[str]) -> None:
    rows = {row["method"]: row["drift"] for row in table(out, "drift")}
    assert list(rows) == methods
    codes = [load_code(out / "codes" / "weight-tuning" / f"{stem}.st") for stem in "abc"]
    assert rows["weight-tuning"]["value"] == pytest.approx(np.mean([drift(model, code) for code in codes]))
    assert rows["weight-tuning"]["low"] < rows["weight-tuning"]["high"]
    check_means_of_photographs(out, rows, "drift")


def check_means_of_photographs(out: Path, expected: dict[str, Any], name: str) -> None:
    """The value of each method in a table is the mean of its photographs."""
    for method, value in expected.items():
        each = [row[name] for row in table(out, "photographs") if row["method"] == method]
        assert len(each) == 3
        assert np.mean(each) == pytest.approx(value["value"])


def check_sweep(out: Path) -> None:
    rows = {(row["method"], row["alpha"]): row for row in table(out, "figure-3-sweep")}
    assert list(rows) == [(m, alpha) for m in ("wrangan", "weight-tuning") for alpha in (0.1, 10)]
    known = {(row["method"], row["photo"]): row for row in table(out, "photographs")}
    for method in ("wrangan", "weight-tuning"):
        row = rows[method, 0.1]  # the weight that the report's own codes have
        assert (row["layers"], row["count"]) == (3, 2)
        assert row["mse"]["value"] == pytest.approx(np.mean([known[method, s]["mse"] for s in "ab"]))
        assert rows[method, 10]["mse"]["value"] != row["mse"]["value"]


def check_page(out: Path, model: Model, methods: list[str]) -> None:
    text = (out / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert "{{" not in text
    assert "{%" not in text
    for address in page.addresses:
        assert address.startswith("#") or (out / unquote(address)).is_file(), address
    assert [photo["name"] for photo in page.data["photos"]] == ["a", "b", "c"]
    values = {(row["method"], row["photo"]): row for row in table(out, "photographs")}
    rows = model.generator.config.num_latents
    for number, photo in enumerate(page.data["photos"]):
        assert (out / unquote(photo["image"])).is_file()
        assert list(photo["methods"]) == methods
        for method, made in photo["methods"].items():
            assert (out / unquote(made["image"])).is_file()
            for name, value in made["values"].items():
                assert value == values[method, photo["name"]][name]
            expected = ["smile -3", "smile +3", "age -3", "age +3"] if number < 2 else []
            assert list(made["edits"]) == expected
            assert all((out / unquote(address)).is_file() for address in made["edits"].values())
    code = load_code(out / "codes" / "sg2-w" / "a.st")
    edited = render(model, [edit_code(code, [Move(smile(), 3.0)], rows)])[0]
    written = load_image(out / unquote(page.data["photos"][0]["methods"]["sg2-w"]["edits"]["smile +3"]), 16)
    assert (to_uint8(written) == to_uint8(edited)).all()
    for name in NUMBERED:
        assert f"table-{name}" in page.ids
    shown = "".join(page.texts)
    for row in table(out, "table-2-reconstruction"):
        assert f"{row['mse']['value']:.3g}" in shown


@needs_fidelity
def test_a_second_run_makes_only_what_is_missing(subject: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(out, subject, photos, methods="sg2-w", **LITTLE)
    assert first.exit_code == 0, first.output
    before = {path: path.stat().st_mtime_ns for path in cached(out)}
    lost = [out / "codes/sg2-w/b.st", out / "images/sg2-w/a.png", out / "figures/zooms.png"]
    kept = [path.read_bytes() for path in lost[1:]]
    for path in lost:
        path.unlink()
    assert run(out, subject, photos, methods="sg2-w", **LITTLE).exit_code == 0
    assert [path.read_bytes() for path in lost[1:]] == kept
    after = {path: path.stat().st_mtime_ns for path in cached(out)}
    touched = {path for path, when in after.items() if before.get(path) != when}
    assert {path for path in touched if path.suffix == ".st"} == {lost[0]}
    assert (out / "images/sg2-w/b.png").is_file()
    wider = run(out, subject, photos, methods="sg2-w,wrangan", **LITTLE)
    assert wider.exit_code == 0, wider.output
    assert [row["method"] for row in table(out, "table-2-reconstruction")] == ["wrangan", "sg2-w"]
    changed = run(out, subject, photos, methods="sg2-w", steps=3, **LITTLE)
    assert changed.exit_code == 1
    (line, *rest) = [line for line in changed.stderr.splitlines() if "made with" in line]
    assert "made with steps 2, not 3" in line
    assert len(rest) == 2
    assert not any("mse" in row for row in table(out, "table-2-reconstruction"))  # no stale numbers
    assert "Failed: 3." in (out / "index.html").read_text()


def test_figure_3_over_n_with_corruption(
    subject: Path, tiny_model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"probes": 8, "distortion": 0.3, "floor": 0.1}
    config = json.loads((subject / "config.json").read_text())
    (subject / "config.json").write_text(json.dumps({**config, "source": {"settings": made}}))
    assert sweep.sensitivity_of(load_model(str(subject))) == SensitivitySettings(**made)
    monkeypatch.setattr(sweep, "load_perceptual", lambda *_: fake_perceptual())
    wanted = {"sweep": 3, "alphas": "1", "sweep_layers": "99,2,3", "sweep_samples": 12}
    out = tmp_path / "out"
    result = run(out, subject, photos, methods="weight-tuning", **{**LITTLE, "samples": 0, **wanted})
    assert result.exit_code == 0, result.output
    assert "Figure 3, weight-tuning, N = 99: left out (N = 99: the model has" in result.stderr
    rows = table(out, "figure-3-sweep")
    assert [(row["layers"], row["count"]) for row in rows] == [(2, 3), (3, 3)]
    # By hand, for the model's own N: fit, draw, compare.
    (settings,) = parse_settings([f"{k}={v}" for k, v in SET.items()], ("weight-tuning",))[0].values()
    images = torch.stack([load_image(path, 16) for path in sorted(photos.iterdir(), key=lambda p: p.stem)])
    inverter = Inverter.load(tiny_model, dataclasses.replace(settings, alpha=1.0))
    codes = [code for code in inverter.invert(images) if isinstance(code, Code)]
    error = (render(tiny_model, codes).clamp(-1, 1) - images).square().mean().item()
    assert rows[1]["mse"]["value"] == pytest.approx(error, rel=1e-3)
    assert rows[0]["mse"]["value"] != rows[1]["mse"]["value"]
    assert all(row["corruption-kid"]["standard_error"] > 0 for row in rows)
