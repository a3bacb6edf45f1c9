"""How this package was installed, and the command that adds an extra accordingly."""

import importlib.util
import json
import os
import shlex
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = "wrangan"
SOURCE = Path(__file__).parents[2]
"""The folder that contains `wrangan_cli`: a checkout, or site-packages."""


def install_line(extra: str = "") -> str:
    """The command that installs `extra`, one of pyproject.toml's, into the current environment.

    Without an extra: the packages of every installation.

    `python -m pip` if the environment is activated, otherwise with the interpreter's path; through pipx
    in an environment of pipx, by uv in one of uv without pip. It names the folder for a checkout or an
    installation from a folder, otherwise the package, which keeps the installed release and adds packages.
    """
    return f"{_installer()} {_requirement(f'[{extra}]' if extra else '')}"


def upgrade_line(package: str) -> str:
    """The command that upgrades another package in the current environment."""
    return f"{_installer()} --upgrade {package}"


def _requirement(extras: str) -> str:
    if _is_checkout(SOURCE):
        # Also if it is not installed at all, or an outdated record of an installation exists.
        return f"-e {_quoted(f'{SOURCE}{extras}')}"
    # PEP 610: where pip or uv installed it from, if not from an index.
    origin = json.loads(_record("direct_url.json") or "{}")
    folder = _local(origin.get("url", "")) if "dir_info" in origin else None
    return _quoted(f"{folder if folder and _is_checkout(folder) else PACKAGE}{extras}")


def _is_checkout(folder: Path) -> bool:
    """Whether the folder holds this project's sources."""
    with suppress(OSError, ValueError):
        project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        return bool(project.get("project", {}).get("name") == PACKAGE)
    return False


def _record(name: str) -> str:
    """A file of the installation's record; empty if there is none.

    In the folder of a checkout `wrangan.egg-info` is found first, which has none of these files.
    """
    texts = (found.read_text(name) for found in distributions(name=PACKAGE))
    return next((text.strip() for text in texts if text), "")


def _local(url: str) -> Path | None:
    """The path of a `file:` URL."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _installer() -> str:
    """The command up to and including `install`."""
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx runpip {_quoted(prefix.name)} install"
    python = "python" if _is_active(prefix) else _quoted(sys.executable)
    if _record("INSTALLER") == "uv" and importlib.util.find_spec("pip") is None:
        return "uv pip install" + ("" if python == "python" else f" --python {python}")
    return f"{python} -m pip install"


def _is_active(prefix: Path) -> bool:
    """Whether `python` in the user's shell is this interpreter, that of an activated venv or conda
    environment."""
    # A venv activated within a conda environment takes precedence.
    given = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    return given is not None and Path(given).resolve() == prefix.resolve()


def _quoted(word: str) -> str:
    """Quoted for the shell if necessary; brackets are file name patterns in some shells."""
    if os.name == "nt":
        return f'"{word}"' if " " in word or "[" in word else word
    return shlex.quote(word)
