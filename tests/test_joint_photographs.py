"""tests.benchmarks.joint_photographs: several reports, one set of tables."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import joint_photographs
from tests.benchmarks.joint_photographs import means_table, ratio_of_means, ratios_table, read_tables


def write(path: Path, rows: list[tuple[str, str, float, float]]) -> Path:
    lines = [f"{method},{photo},{mse},{drift}" for method, photo, mse, drift in rows]
    path.write_text("\n".join(["method,photo,mse,drift", *lines]) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / "1.csv", [("pti", "a", 0.4, 0.3), ("wrangan", "a", 0.2, 0.1)]),
        write(tmp_path / "2.csv", [("pti", "b", 0.2, 0.1), ("wrangan", "b", 0.4, 0.1)]),
    ]


def test_tables_of_all_photographs(files: list[Path]) -> None:
    every = read_tables(files)
    rows = {row["method"]: row for row in means_table(every).rows}
    assert rows["pti"]["count"] == 2
    assert rows["pti"]["mse"].value == pytest.approx(0.3)  # type: ignore[union-attr]
    every = {"wrangan": every["wrangan"], "pti": every["pti"]}
    (row,) = ratios_table(every).rows
    assert row["drift"].value == pytest.approx(2)  # type: ignore[union-attr]
    assert row["mse"].value == pytest.approx(1)  # type: ignore[union-attr]


def test_intervals_are_of_pairs() -> None:
    each = np.random.default_rng(1).lognormal(size=(40, 1))
    exact = ratio_of_means(np.hstack([each, 1.5 * each]))
    assert (exact.value, exact.low, exact.high) == pytest.approx((1.5, 1.5, 1.5))
    noisy = ratio_of_means(np.hstack([each, 1.5 * np.random.default_rng(2).permutation(each)]))
    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.low < 1.2 < 1.5 < 1.8 < noisy.high


def test_command_line(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "joint.csv"
    monkeypatch.setattr(sys, "argv", ["joint_photographs", *map(str, files), "--out", str(out)])
    joint_photographs.main()
    assert "| against pti | 2 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["joint_photographs", *map(str, files), "--first", "pti"])
    joint_photographs.main()
    assert "| against wrangan | 2 |" in capsys.readouterr().out
    with open(out) as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["photo"]) for row in rows] == [
        (method, photo) for method in ("wrangan", "pti") for photo in "ab"
    ]
    monkeypatch.setattr(sys, "argv", ["joint_photographs", str(files[0]), str(files[0])])
    with pytest.raises(SystemExit, match="a of pti occurs twice"):
        joint_photographs.main()
