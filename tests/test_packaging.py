"""What travels in the wheel."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_named() -> None:
    folders = {path.parent for path in (ROOT / "wrangan_cli").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found | {"wrangan", "wrangan_kernels"} == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", ["wrangan", "wrangan_cli", "wrangan_kernels"])
def test_every_data_file_matches_a_pattern(package: str) -> None:
    folder = ROOT / SETUPTOOLS["package-dir"][package]
    matched = {path for pattern in SETUPTOOLS["package-data"][package] for path in folder.glob(pattern)}
    data = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data <= matched


@pytest.mark.slow
def test_wheel_holds_code_models_and_kernels(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q"]
    # setuptools leaves build/ and *.egg-info in the folder that it builds from: build a copy.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("wrangan", "wrangan_cli", "kernels", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    command[command.index(str(ROOT))] = str(copy)
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("wrangan-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, package in (
        ("wrangan", "wrangan"),
        ("wrangan_cli", "wrangan_cli"),
        ("kernels", "wrangan_kernels"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    assert not any(name.startswith(("tests/", "kernels/")) for name in names)
