"""The paper's two algorithms stay on one screen each, with the numbers of their lines."""

import ast
import re
from pathlib import Path

import pytest

from wrangan_cli.engine.inversion import wrangan
from wrangan_cli.engine.inversion.methods import METHOD_TABLE
from wrangan_cli.engine.training import adversarial

SCREEN = 60
INVERSION = [1, 2, 3, 4, 5, 6, 7]
TRAINING = list(range(1, 15))


@pytest.mark.parametrize(
    ("module", "names", "lines"),
    [(wrangan, ["invert", "loss"], INVERSION), (adversarial, ["AdversarialTrainer"], TRAINING)],
    ids=["algorithm 1", "algorithm 2"],
)
def test_the_algorithm_is_on_one_screen(module: object, names: list[str], lines: list[int]) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert len(source.splitlines()) <= SCREEN
    bodies = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert [body.name for body in bodies] == names
    text = "".join(ast.get_source_segment(source, body) or "" for body in bodies)
    assert {int(number) for number in re.findall(r"\bLine (\d+):", text)} == set(lines)


def test_what_is_read_is_what_runs() -> None:
    assert METHOD_TABLE["wrangan"] is wrangan.invert
    assert adversarial.AdversarialTrainer.step.__module__ == adversarial.__name__
