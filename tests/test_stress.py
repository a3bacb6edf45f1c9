"""The stress script (`python -m tests.benchmarks.stress`) finds what it looks for; nothing is run here."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.stress import folder, kills
from tests.benchmarks.stress.headers import Case, damaged, judged
from tests.benchmarks.stress.samples import Format
from wrangan_cli.engine.models.codes import Code, save_code

DATA = bytes(range(256)) * 16
GOOD = {"exit": 1, "traceback": "", "problems": [], "chatter": 0, "written": 0, "seconds": 0.1}


@pytest.mark.parametrize(("region", "first", "last"), [(0, 0, 1024), (-1024, 3072, 4096), (2048, 2048, 3072)])
def test_damage_stays_in_its_kilobyte_and_comes_again_from_its_seed(
    region: int, first: int, last: int
) -> None:
    kinds = set()
    for seed in range(60):
        kind, data = damaged(DATA, (region,), random.Random(seed))
        assert (kind, data) == damaged(DATA, (region,), random.Random(seed))
        kinds.add(kind)
        assert data[:first] == DATA[:first]
        if kind == "cut":
            assert first <= len(data) < last
        else:
            assert data.endswith(DATA[last:])
    assert kinds == {"bits", "bytes", "zeros", "cut", "lost"}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"stderr": "wrangan: PATH: broken"}, "named"),
        ({"stderr": "wrangan: broken"}, "unnamed"),
        ({"stderr": "wrangan: PATH: broken\nwrangan: PATH: broken"}, "named twice"),
        ({"stderr": "wrangan: PATH: " + "x" * 500}, "line too long"),
        ({"stderr": "wrangan: PATH: \x1b[2J"}, "unprintable"),
        ({"stderr": "", "traceback": "ValueError"}, "traceback"),
        ({"stderr": "wrangan: PATH: broken", "problems": ["a.st: broken"]}, "broken output"),
        ({"stderr": "wrangan: PATH: broken", "chatter": 9}, "library output"),
        ({"stderr": "", "exit": 0}, "nothing written"),
        ({"stderr": "", "exit": 0, "written": 1}, "read"),
        ({"stderr": "wrangan: PATH: broken", "exit": 3}, "exit code 3"),
        ({"fault": "hang"}, "hang"),
    ],
)
def test_verdicts(change: dict[str, Any], verdict: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    case = Case(Format("png", (), lambda *_: []), "bits", path, path, [], tmp_path / "out")
    outcome = GOOD | change
    outcome["stderr"] = outcome.get("stderr", "").replace("PATH", str(path))
    assert judged(case, outcome) == verdict
    path.unlink()
    if verdict == "named":
        assert judged(case, outcome) == "input lost"


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are POSIX's")
def test_the_hostile_folder_has_fifty_entries(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    made = dict(folder._hostile(tmp_path / "photos", random.Random(0)))
    assert set(os.listdir(tmp_path / "photos")) == made.keys()
    assert len(made) == folder.HOSTILE


def test_codes_that_differ_in_one_bit_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "PHOTOS", 1)
    for name, value, seconds in (("one", 1.0, 3.0), ("two", 1.0, 4.0), ("three", 1.0 + 2**-23, 3.0)):
        info = {"batch": 1, "seconds": seconds}
        save_code(tmp_path / name / "a.st", Code(w=torch.tensor([value]), info=info))
    assert not list(kills._codes_differ(tmp_path / "one", tmp_path / "two"))
    (line,) = kills._codes_differ(tmp_path / "one", tmp_path / "three")
    assert "other numbers" in line
    (tmp_path / "two" / "a.st").unlink()
    (line,) = kills._codes_differ(tmp_path / "one", tmp_path / "two")
    assert "other codes" in line
