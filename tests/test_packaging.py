"""What travels in the wheel, and what its metadata say."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

import wrangan_cli
from tests.lower_bounds import constraints

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
PACKAGES = {
    "wrangan": ROOT / "wrangan",
    "wrangan_cli": ROOT / "wrangan_cli",
    "wrangan_kernels": ROOT / "kernels" / "wrangan_kernels",
}


def test_setuptools_finds_every_package_and_no_other() -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77")
    settings = SETUPTOOLS["packages"]["find"]
    assert settings["namespaces"] is False
    found = {
        name
        for folder in settings["where"]
        for name in setuptools.find_packages(ROOT / folder, include=settings["include"])
    }
    expected = set()
    for folder in PACKAGES.values():
        modules = {path.parent for path in folder.rglob("*.py")}
        expected |= {".".join(module.relative_to(folder.parent).parts) for module in modules}
    assert found == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_every_data_file_matches_a_pattern(package: str) -> None:
    folder = PACKAGES[package]
    matched = {path for pattern in SETUPTOOLS["package-data"][package] for path in folder.glob(pattern)}
    data = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data <= matched


def test_everything_required_has_a_lower_bound() -> None:
    """What `make test-oldest` installs."""
    extras = PROJECT["optional-dependencies"].values()
    named = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    names = {re.split(r"[\[<>=]", line)[0] for line in named} - {"wrangan"}
    lines = constraints()
    assert {line.split("==")[0] for line in lines} == names
    assert all(re.fullmatch(r"[^=]+==\d[\d.]*", line) for line in lines)
    assert not any(
        line.startswith("torch") for line in constraints(["torch", "torchvision", "torch-fidelity"])
    )


def test_the_changelog_has_this_release() -> None:
    heads = re.findall(r"^## \[(.+?)](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", dict(heads)[wrangan_cli.__version__])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    pytest.importorskip("setuptools", minversion="77")
    # setuptools leaves build/ and *.egg-info in the folder that it builds from: build a copy.
    copy = tmp_path_factory.mktemp("copy")
    for name in ("wrangan", "wrangan_cli", "kernels", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(copy), "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run([*command, "--wheel-dir", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("wrangan-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.slow
def test_wheel_holds_code_models_and_kernels(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(folder)}" in names
    assert not any(name.startswith(("tests/", "kernels/")) for name in names)


@pytest.mark.slow
def test_wheel_states_the_terms_of_code_and_weights(wheel: zipfile.ZipFile) -> None:
    (record,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata: Message = email.message_from_bytes(wheel.read(record))
    assert metadata["License-Expression"] == "MIT AND LicenseRef-non-commercial-research"
    texts = set(metadata.get_all("License-File", []))
    cards = (ROOT / "wrangan_cli" / "bundled").glob("*/README.md")
    assert texts == {"LICENSE", *(str(card.relative_to(ROOT)) for card in cards)}
    assert metadata["Author"] == "The wrangan authors"
