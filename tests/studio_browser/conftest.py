"""One server, one browser and one page for all of these tests; each test begins a tab of its own on it."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.browsers import FLAGS, chromium
from tests.conftest import TINY, random_generator_network
from tests.face_cases import FakeDetector, detector
from tests.studio_browser.tab import Tab
from tests.studio_cases import studio_model
from wrangan_cli.app import app
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.studio.server import serving

__all__ = ["detector"]  # a fixture


@pytest.fixture(scope="package")
def context() -> Iterator[Any]:
    """A window of a browser: what one of its pages has loaded need not be fetched by the next."""
    pytest.importorskip("gradio", reason="package gradio is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="package playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield browser.new_context()
        browser.close()


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, random_generator_network(), Discriminator(TINY), perceptual="st-lpips-alex")
    return studio_model(folder, steps=30)


@pytest.fixture(scope="package")
def address(model: Model, context: Any) -> Iterator[str]:  # noqa: ARG001  none is needed without a browser
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(lambda: model, [], "127.0.0.1", port) as where:
        yield where


@pytest.fixture(scope="package")
def page(context: Any, address: str) -> Iterator[Tab]:
    opened = Tab(context, address)
    yield opened
    opened.page.close()


@pytest.fixture
def tab(page: Tab, detector: type[FakeDetector]) -> Iterator[Tab]:  # noqa: ARG001
    """A tab that has nothing yet."""
    page.begin()
    yield page
    assert page.problems == []
    assert page.hosts <= {"127.0.0.1", "data"}  # nothing was asked of anybody else


@pytest.fixture
def command(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a line that the page shows, in a folder that has the files which it names."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> None:
        import shlex

        words = [str(model.path) if word == model.name else word for word in shlex.split(line)]
        assert words[0] == "wrangan"
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output

    return run
