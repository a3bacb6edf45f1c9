"""The line that installs an extra, by how this package was installed."""

import json
import re
import shlex
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from wrangan_cli.engine import diagnosis
from wrangan_cli.engine.base import installation, weights
from wrangan_cli.engine.base.installation import install_line, upgrade_line

ROOT = Path(__file__).parents[1]
PYTHON = "/opt/my python/bin/python3"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes this package one that lies in a `site-packages` of an environment `env`."""
    env = tmp_path / "env"
    packages = env / "site-packages"
    record = packages / "wrangan-0.1.0.dist-info"
    record.mkdir(parents=True)
    monkeypatch.setattr(installation, "SOURCE", packages)
    monkeypatch.setattr(installation, "distributions", lambda **_of: [PathDistribution(record)])
    monkeypatch.setattr(installation.sys, "prefix", str(env))
    monkeypatch.setattr(installation.sys, "executable", PYTHON)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)

    def install(origin: dict[str, object] | None = None, by: str = "pip") -> Path:
        (record / "INSTALLER").write_text(f"{by}\n")
        if origin is not None:
            (record / "direct_url.json").write_text(json.dumps(origin))
        return env

    return install


def checkout(folder: Path, name: str = "wrangan") -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder


def test_a_checkout_is_named_by_its_path(tmp_path: Path, installed, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkout(tmp_path / "my source")
    installed({"url": source.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setattr(installation, "SOURCE", source)
    line = install_line("heif")
    assert shlex.split(line) == [PYTHON, "-m", "pip", "install", "-e", f"{source}[heif]"]
    assert shlex.split(install_line())[-2:] == ["-e", str(source)]
    # So it is where nothing was installed.
    monkeypatch.setattr(installation, "distributions", lambda **_of: [])
    assert install_line("heif") == line


def test_a_folder_that_was_copied_is_named_by_its_path(tmp_path: Path, installed) -> None:
    source = checkout(tmp_path / "source")
    installed({"url": source.as_uri(), "dir_info": {}})
    assert shlex.split(install_line("video"))[-2:] == ["install", f"{source}[video]"]


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {"url": "file:///downloads/wrangan-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "file:///gone", "dir_info": {}},
        {"url": "https://example.org/wrangan.git", "vcs_info": {"vcs": "git"}},
    ],
)
def test_everything_else_by_name(origin: dict[str, object] | None, installed) -> None:
    installed(origin)
    assert install_line("video") == f"'{PYTHON}' -m pip install 'wrangan[video]'"
    assert install_line() == f"'{PYTHON}' -m pip install wrangan"


def test_a_folder_that_now_holds_another_project_is_not_named(tmp_path: Path, installed) -> None:
    source = checkout(tmp_path / "source", name="other")
    installed({"url": source.as_uri(), "dir_info": {}})
    assert install_line("video").endswith("install 'wrangan[video]'")


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_python_by_name_where_its_environment_is_activated(
    variable: str, installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(installed()))
    assert install_line("video") == "python -m pip install 'wrangan[video]'"
    assert upgrade_line("pillow") == "python -m pip install --upgrade pillow"
    monkeypatch.setenv(variable, str(tmp_path))
    assert install_line("video").startswith(f"'{PYTHON}' -m")


def test_a_venv_counts_before_the_conda_environment_around_it(
    installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDA_PREFIX", str(installed()))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert install_line("video").startswith(f"'{PYTHON}' -m")


def test_uv_where_there_is_no_pip(installed, monkeypatch: pytest.MonkeyPatch) -> None:
    env = installed(by="uv")
    found = {"pip": None}
    monkeypatch.setattr(installation.importlib.util, "find_spec", found.get)
    assert install_line("video") == f"uv pip install --python '{PYTHON}' 'wrangan[video]'"
    monkeypatch.setenv("VIRTUAL_ENV", str(env))
    assert install_line("video") == "uv pip install 'wrangan[video]'"
    found["pip"] = "there"
    assert install_line("video") == "python -m pip install 'wrangan[video]'"


def test_pipx_runs_its_own_pip(installed) -> None:
    (installed() / "pipx_metadata.json").write_text("{}")
    assert install_line("video") == "pipx runpip env install 'wrangan[video]'"


def test_windows_has_double_quotes(installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    monkeypatch.setattr(installation, "SOURCE", ROOT / "nowhere")
    monkeypatch.setattr(installation.os, "name", "nt")
    assert installation._quoted("wrangan[video]") == '"wrangan[video]"'
    assert installation._quoted(r"C:\Program Files\python.exe") == r'"C:\Program Files\python.exe"'
    assert installation._quoted(r"C:\python.exe") == r"C:\python.exe"


def test_an_older_record_beside_the_code_does_not_hide_the_installation(
    installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(by="uv")
    (info := tmp_path / "wrangan.egg-info").mkdir()
    real = installation.distributions(name="wrangan")
    monkeypatch.setattr(installation, "distributions", lambda **_of: [PathDistribution(info), *real])
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda _name: None)
    assert install_line("video").startswith("uv pip")


def test_every_extra_that_a_message_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = [path.read_text() for path in (ROOT / "wrangan_cli").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"install_line\(['\"]([a-z-]+)['\"]\)", text)}
    named |= {extra.name for extra in diagnosis.EXTRAS}
    named |= {file.extra for file in vars(weights).values() if isinstance(file, weights.WeightFile)} - {""}
    assert {"heif", "directions", "video", "identity"} <= named
    assert named <= project["optional-dependencies"].keys()


def test_no_message_has_a_line_of_its_own() -> None:
    """`pip install` is written where the environment is looked at, and nowhere else."""
    for path in (ROOT / "wrangan_cli").rglob("*.py"):
        if path.name != "installation.py":
            assert "pip install" not in path.read_text(), path
