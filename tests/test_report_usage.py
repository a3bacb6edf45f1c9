"""`wrangan report`: what it refuses, leaves out and names, and its older name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import write_photo
from tests.report_cases import LITTLE, SET, Page, run, subject, table
from tests.test_evaluate import small_features
from wrangan_cli.app import app

__all__ = ["small_features", "subject"]  # fixtures

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


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
