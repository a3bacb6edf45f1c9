"""`wrangan doctor`."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from wrangan_cli.app import app
from wrangan_cli.engine import diagnosis
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.models import folder as model_folder


def test_report_as_json(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {tiny_folder.name: tiny_folder}
    monkeypatch.setattr(diagnosis, "bundled_models", lambda: found)
    monkeypatch.setattr(model_folder, "bundled_models", lambda: found)
    monkeypatch.setattr(diagnosis, "DEFAULT_MODEL", tiny_folder.name)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["devices"]["auto"] in ("cpu", "cuda", "mps")
    assert report["passed"]
    (model,) = report["models"]
    weights = tiny_folder / "model.safetensors"
    assert model["problem"] is None
    assert model["sha256"] == diagnosis.load_model(str(tiny_folder)).sha256
    assert model["bytes"] >= weights.stat().st_size
    names = [check["name"] for check in report["self_test"]]
    assert names[0] == "shared = per-image weights"
    assert names[-1] == "image of tiny"
    weights.write_bytes(b"broken")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert str(weights) in json.loads(result.stdout)["models"][0]["problem"]


def test_text_names_every_section_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr(
        diagnosis.importlib.util,
        "find_spec",
        lambda name, *a: None if name == "sklearn" else present(name, *a),
    )
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("versions", "device auto", "threads", "kernels cpu: ", "optional parts", "self-test"):
        assert word in result.stdout
    assert install_line("directions") in result.stdout


def test_failed_self_test_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[bool, str]:
        raise RuntimeError("no such operator\nsecond line")

    monkeypatch.setattr(diagnosis, "_shared_and_per_image_weights_agree", broken)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "FAIL  shared = per-image weights: RuntimeError: no such operator\n" in result.stdout


def test_self_test_leaves_the_global_seed_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    diagnosis.self_test()
    assert torch.equal(torch.rand(2), expected)
