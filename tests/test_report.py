"""`wrangan report`: from photographs to tables, figures and the page, and run again."""

import csv
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import write_photo
from tests.fakes import fake_perceptual
from tests.test_consistency import smile
from tests.test_edit_success import EverySecond, corners
from tests.test_evaluate import FEATURES, needs_fidelity, small_features
from tests.test_separability import net
from wrangan_cli.app import app
from wrangan_cli.engine.data.images import load_image, to_uint8
from wrangan_cli.engine.data.photographs import load_photograph
from wrangan_cli.engine.editing.directions import Move, directions_file, edit_code, save_directions
from wrangan_cli.engine.inversion import inverter as inverting
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import METHODS
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics import corruption, edit_success, lpips
from wrangan_cli.engine.metrics.corruption import moved_images
from wrangan_cli.engine.metrics.drift import drift
from wrangan_cli.engine.metrics.kid import kid
from wrangan_cli.engine.metrics.samples import REFERENCE_FILE, Reference, save_reference
from wrangan_cli.engine.models.attributes import save_attributes
from wrangan_cli.engine.models.codes import Code, load_code, render
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.reports import sweep
from wrangan_cli.engine.reports.settings import parse_settings
from wrangan_cli.engine.training.settings import SensitivitySettings

__all__ = ["small_features"]  # a fixture

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
SET = {
    "steps": 2,
    "init": "mean",
    "pti_steps": 1,
    "pti_pivot_steps": 1,
    "perceptual_weight": 0,
    "metrics": "mse,ms-ssim,st-lpips-alex",
    "separability_samples": 60,
    "influence_samples": 4,
    "consistency": 2,
    "sweep": 2,
    "alphas": "10,0.1",
    "edited": 2,
    "shown": 2,
}
LITTLE = {**dict.fromkeys(("consistency", "separability_samples", "interpolations", "sweep"), 0), "shown": 1}
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


@pytest.fixture
def subject(
    tiny_folder: Path,
    tiny_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    small_features: Tensor,
) -> Path:
    """A model folder with all that a report can use; fake perceptual distance and Inception."""
    real = torch.randn(30, FEATURES, generator=torch.Generator().manual_seed(1))
    save_reference(tiny_folder / REFERENCE_FILE, Reference(real, "held-out.zip", 16))
    save_directions(directions_file(tiny_model), tiny_model, [smile(), smile(name="age")])
    save_attributes(tiny_folder / "attributes.safetensors", net())
    monkeypatch.setattr(edit_success, "load_descriptors", lambda: corners)
    monkeypatch.setattr(edit_success, "YawScorer", AllFaces)
    monkeypatch.setattr(corruption, "FaceDetector", EverySecond)
    for module in (lpips, inverting):
        monkeypatch.setattr(module, "load_perceptual", lambda *_: fake_perceptual())
    del photos, small_features
    return tiny_folder


def run(out: Path, model: Path, photos: Path, *more: object, methods: str = "all", **changes: object) -> Any:
    values = {**SET, **changes}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    arguments = ["report", photos, "--out", out, "--methods", methods, "--model", model]
    return CliRunner().invoke(app, [*map(str, arguments), "--samples", "15", *sets, *map(str, more)])


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((out / "tables" / f"{name}.json").read_text())["rows"]


class AllFaces:
    """A detector that finds a face in each image, turned a little."""

    side = 256

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 1), 0.1)


class Page(HTMLParser):
    """Every tag is closed that has to be; addresses, texts and the data are kept."""

    EMPTY = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in self.EMPTY:
            self.open.append(tag + "#data" if attributes.get("id") == "data" else tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().removesuffix("#data") == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script#data":
            self.data = json.loads(data)
        self.texts.append(data)


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


def check_drift(out: Path, model: Model, methods: list[str]) -> None:
    rows = {row["method"]: row["drift"] for row in table(out, "drift")}
    assert list(rows) == methods
    codes = [load_code(out / "codes" / "weight-tuning" / f"{stem}.st") for stem in "abc"]
    assert rows["weight-tuning"]["value"] == pytest.approx(np.mean([drift(model, code) for code in codes]))
    assert rows["weight-tuning"]["low"] < rows["weight-tuning"]["high"]


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


def test_evaluate_report_is_the_same(subject: Path, photos: Path, tmp_path: Path) -> None:
    wanted = {**LITTLE, "samples": 0, "metrics": "mse", "edit_success": 0}
    first = run(tmp_path / "out", subject, photos, methods="sg2-w", **wanted)
    assert first.exit_code == 0, first.output
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "codes").rglob("*.st")}
    sets = [part for name, value in {**SET, **wanted}.items() for part in ("--set", f"{name}={value}")]
    older = ["evaluate", "--report", tmp_path / "out", "--photos", photos, "--model", subject]
    again = CliRunner().invoke(app, [*map(str, older), "--methods", "sg2-w", *sets])
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_what_the_model_lacks_is_left_out_and_named(tiny_folder: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(out, tiny_folder, photos, methods="sg2-w", metrics="mse")
    assert result.exit_code == 0, result.output
    for line in (
        "Table 3: left out",
        "Table 4: left out",
        "Table 5: left out (the model has no attribute net)",
        "latent editing consistency: left out (the model has no directions)",
    ):
        assert line in result.stderr
        assert line in (out / "index.html").read_text()
    assert table(out, "table-6-std-share")
    assert Page((out / "index.html").read_text()).data["edits"] == []


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "x"], "--report needs --photos"),
        (["--report", "x", "--photos", ".", "--metric", "mse"], "leave out --metric"),
        (["--report", "x", "--photos", ".", "--methods", "nonsense"], "method 'nonsense'"),
        (["--report", "x", "--photos", ".", "--set", "step=1"], "no setting 'step'"),
        (["--report", "x", "--photos", ".", "--set", "steps"], "expected NAME=VALUE"),
        (["--report", "x", "--photos", ".", "--set", "e4e.lr=1"], "method e4e has no setting lr"),
        (["--report", "x", "--photos", ".", "--set", "steps=many"], "'many' is not a valid value of steps"),
        (["--report", "x", "--photos", ".", "--set", "steps=-1"], "steps"),
        (["--report", "x", "--photos", ".", "--strength", "2"], "leave out --strength"),
        (["--report", "x", "--photos", ".", "--set", "alphas=1,much"], "alphas '1,much': expected numbers"),
        (["--report", "x", "--photos", ".", "--set", "sweep_layers=0"], "sweep_layers '0': expected numbers"),
        (["--methods", "sg2-w"], "--methods applies to --report"),
        (["--strength", "2"], "--strength applies to --metric lec"),
        (["--metric", "separability", "--epsilon", "1"], "--epsilon applies to fid"),
        (["--against", "x"], "give --codes and --photos"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--model", "faces-64", *arguments])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_a_method_asked_for_by_name_must_be_possible(tiny_folder: Path, photos: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "out", tiny_folder, photos, methods="encoder", init="encoder")
    assert result.exit_code == 2
    assert "has no encoder.safetensors" in result.stderr
    assert not (tmp_path / "out").exists()


def test_photographs_of_one_name_are_named_once_each_method(
    tiny_folder: Path, photos: Path, tmp_path: Path
) -> None:
    write_photo(photos / "a.jpg", seed=9)
    result = run(tmp_path / "out", tiny_folder, photos, methods="sg2-w", metrics="mse")
    assert result.exit_code == 1
    assert "not inverted" in result.stderr
    (row,) = table(tmp_path / "out", "table-2-reconstruction")
    assert row["count"] == 3
