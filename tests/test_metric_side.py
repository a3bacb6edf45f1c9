"""The side at which photographs and their codes are compared, and heads that name the network."""

import csv
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import TINY, write_photo
from tests.test_evaluate import records, run
from tests.test_photograph_side import model  # noqa: F401  (a fixture: 64 px)
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.metrics.pairs import compare_pairs, measured, pair_by_stem, side_note
from wrangan_cli.engine.metrics.registry import PAIR_METRICS, SAMPLE_METRICS
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import reduced
from wrangan_cli.engine.reports.photographs import photographs_table
from wrangan_cli.engine.reports.reconstruction import _key, about_side, reconstruction_table
from wrangan_cli.engine.reports.settings import ReportSettings
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import markdown


@pytest.fixture
def pairs(tmp_path: Path, model: Model) -> list[Any]:  # noqa: F811
    """Photographs of 64, 40 and 16 px, and codes."""
    for index, side in enumerate((64, 40, 16)):
        write_photo(tmp_path / "photos" / f"{'abc'[index]}.png", side=side, seed=index)
        torch.manual_seed(index)
        info = {"model": model.name, "model_sha256": model.sha256}
        code = Code(torch.randn(TINY.style_dim) * 0.3, info=info)
        save_code(tmp_path / "codes" / f"{'abc'[index]}.st", code)
    return pair_by_stem(tmp_path / "photos", tmp_path / "codes")[0]


def error(model: Model, pair: Any, own: int, side: int) -> float:  # noqa: F811
    """By the definition: the code's image reduced to the photograph's side and clipped, then both by area."""
    photo = load_image(pair.photo, own)
    drawn = F.adaptive_avg_pool2d(render(model, [load_code(pair.code)]), own)[0].clamp(-1, 1)
    if side:
        photo, drawn = (F.adaptive_avg_pool2d(image, min(own, side)) for image in (photo, drawn))
    return (photo - drawn).square().mean().item()


@pytest.mark.parametrize("side", [0, 20, 32])
def test_larger_photographs_are_compared_at_the_metric_side(
    side: int,
    model: Model,  # noqa: F811
    pairs: list[Any],
) -> None:
    measures = {"mse": PAIR_METRICS["mse"].load(torch.device("cpu"))}
    found = {one.pair.photo.stem: one for one in compare_pairs(model, pairs, measures, metric_side=side)}
    for stem, own in (("a", 64), ("b", 40), ("c", 16)):
        assert found[stem].values["mse"] == pytest.approx(error(model, found[stem].pair, own, side), rel=1e-3)
        assert found[stem].side == own  # at which codes of two methods must agree
    assert error(model, pairs[0], 64, 20) != pytest.approx(error(model, pairs[0], 64, 0), rel=0.01)


def test_nothing_changes_up_to_the_metric_side() -> None:
    """The very same numbers, not nearly: at 256 px and below nothing is resampled."""
    for side in (16, 255, 256):
        image = torch.rand(1, 3, side, side)
        assert reduced(image, 256) is image
    assert reduced(torch.rand(1, 3, 257, 257), 256).shape[-1] == 256
    for function in (measured, compare_pairs):
        assert inspect.signature(function).parameters["metric_side"].default == 256
    assert ReportSettings().metric_side == 256


def test_the_command_says_the_side(model: Model, pairs: list[Any], tmp_path: Path) -> None:  # noqa: F811
    words = ["--metric", "mse", "--model", model.path, "--codes", tmp_path / "codes"]
    words += ["--photos", tmp_path / "photos", "--json"]
    values = {}
    for given, side in ((None, 256), (16, 16), (0, 0)):
        table = tmp_path / "table.csv"
        more = [] if given is None else ["--metric-side", given]
        result = run(*words, *more, "--csv", table)
        assert result.exit_code == 0, result.output
        record = records(result.stdout)[0]
        assert record["metric_side"] == side
        assert record["protocol"].endswith(side_note(side))
        values[given] = record["value"]
        with open(table) as stream:
            rows = list(csv.DictReader(stream))
        assert record["value"] == pytest.approx(sum(float(row["mse"]) for row in rows) / 3)
    assert values[None] == values[0]
    expected = sum(error(model, pair, own, 16) for pair, own in zip(pairs, (64, 40, 16), strict=True)) / 3
    assert values[16] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "fid", "--metric-side", 128], "--metric-side applies to pairs"),
        (["--metric", "precision-vgg16"], "precision-vgg16: give --reference"),
        (["--report", "x", "--photos", ".", "--metric-side", 0], "leave out --metric-side"),
    ],
)
def test_options_that_do_not_go_together(words: list[object], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def report_subject(tmp_path: Path, side: int, resolution: int) -> Subject:
    return Subject(
        model=SimpleNamespace(sha256="m", resolution=resolution),  # type: ignore[arg-type]
        photos=[],
        codes={},
        wanted={},
        out=tmp_path,
        settings=ReportSettings(metric_side=side),
        reference=None,  # type: ignore[arg-type]
        inception=None,  # type: ignore[arg-type]
    )


def test_the_side_is_in_the_cache_key_where_it_matters(tmp_path: Path) -> None:
    def key(side: int, resolution: int) -> str:
        subject = report_subject(tmp_path, side, resolution)
        for name in ("code", "photo"):
            (tmp_path / name).write_text(name)
        job = SimpleNamespace(code=tmp_path / "code", photo=tmp_path / "photo")
        return json.dumps(_key(subject, job, PAIR_METRICS["mse"]))  # type: ignore[arg-type]

    assert len({key(side, 1024) for side in (0, 128, 256)}) == 3
    # Of models of up to 256 px what was measured before it existed stays known.
    assert key(256, 256) == key(256, 64) == key(0, 256)
    assert "metric_side" not in key(256, 256)


def test_tables_name_side_and_network(tmp_path: Path) -> None:
    photos = {"pti": {"a": {"mse": 0.1, "st-lpips-alex": 0.2}, "b": {"mse": 0.2, "st-lpips-alex": 0.4}}}
    subject = report_subject(tmp_path, 256, 1024)
    subject.settings = ReportSettings(metrics="mse,st-lpips-alex")  # type: ignore[misc]
    for table in (reconstruction_table(subject, photos), photographs_table(photos, about_side(subject))):
        text = markdown(table)
        assert "| st-LPIPS-Alex |" in text
        assert "reduced to 256 by area" in table.note
    assert "not comparable with LPIPS" in reconstruction_table(subject, photos).note
    own = report_subject(tmp_path, 0, 1024)
    assert "at the side of the photograph" in about_side(own)


def test_heads_name_the_network() -> None:
    heads = {name: metric.column for name, metric in (PAIR_METRICS | SAMPLE_METRICS).items()}
    assert heads["st-lpips-alex"] == "st-LPIPS-Alex"
    assert heads["lpips-alex"] == "LPIPS-Alex (paper)"
    assert heads["precision"] == "precision (Inception pool3)"
    assert heads["recall-vgg16"] == "recall (VGG16 fc2)"
    assert heads["mse"] == "mse"
    assert not any("paper" in head for name, head in heads.items() if name.startswith("st-"))
    assert len(set(heads.values())) == len(heads)
