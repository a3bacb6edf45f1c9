"""The studio's page in a real browser; skipped where there is no Gradio, playwright or browser."""

import itertools
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.code_files import pixels
from tests.face_cases import FakeDetector, detector, smooth_photo
from tests.studio_cases import studio_model
from tests.test_report_browser import chromium
from wrangan_cli.app import app
from wrangan_cli.engine.data.marks import MARK
from wrangan_cli.engine.models.codes import load_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.studio.server import serving

SETTLED = 0.3
"""Seconds after which a slider that rests is drawn in full (events.py, which needs Gradio)."""

__all__ = ["detector"]  # a fixture

pytest.importorskip("gradio", reason="package gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="package playwright is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::Warning:gradio")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
WAIT = 60_000
"""Milliseconds: the machine may be busy."""


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def model(tiny_folder: Path) -> Model:
    return studio_model(tiny_folder, steps=30)


@pytest.fixture
def address(model: Model, detector: type[FakeDetector], browser: Any) -> Iterator[str]:  # noqa: ARG001
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(lambda: model, [], "127.0.0.1", port) as where:
        yield where


class Tab:
    """A page of the studio, and what it asked for."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(WAIT)
        self.hosts: set[str] = set()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or "data"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#photo input[type=file]", state="attached")

    def upload(self, photo: Path) -> None:
        self.page.set_input_files("#photo input[type=file]", photo)

    def shown(self) -> str:
        return str(self.page.get_attribute("#stage .after", "src"))

    def in_full(self) -> str:
        """The picture, when it is no preview any more."""
        self.page.wait_for_selector("#stage .ws-stage:not(.preview)")
        return self.shown()

    def changed(self, before: str) -> str:
        """The picture, when it is another one."""
        self.page.wait_for_function(
            "src => document.querySelector('#stage .after').getAttribute('src') != src", arg=before
        )
        return self.shown()

    def invert(self) -> None:
        self.page.wait_for_selector(".ws-crop.picked")
        self.page.click("#invert")
        self.page.wait_for_selector("#subject", state="visible")
        self.page.wait_for_selector("#stage .tag:has-text('inverted')")

    def tab(self, name: str) -> None:
        self.page.click(f"button[role=tab]:has-text('{name}')")

    def download(self, button: str, folder: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.page.click(button)
        target = folder / str(waiting.value.suggested_filename)
        waiting.value.save_as(target)
        return target

    def says(self, text: str) -> None:
        self.page.wait_for_function("t => document.querySelector('#message').innerText.includes(t)", arg=text)


def test_a_person_goes_the_whole_way(browser: Any, address: str, model: Model, tmp_path: Path) -> None:
    """Snapshot, face, inversion, sliders by mouse and keys, before and after, undo, paste, downloads."""
    tab = Tab(browser, address)
    page = tab.page
    photo = smooth_photo(tmp_path / "party.png")
    tab.upload(photo)
    tab.invert()
    inverted = tab.shown()

    slider = page.locator("#direction-smile input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.85, box["y"] + box["height"] / 2, steps=4)
    tab.changed(inverted)
    page.mouse.up()
    smiling = tab.in_full()
    page.locator("#direction-pose input[type=range]").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    tab.changed(smiling)
    page.wait_for_timeout(SETTLED * 1000)
    assert tab.in_full() not in (inverted, smiling)

    page.click("#undo")
    page.wait_for_function(
        "src => document.querySelector('#stage .after').getAttribute('src') == src", arg=smiling
    )
    assert page.input_value("#direction-pose input[type=range]") == "0"
    strength = float(page.input_value("#direction-smile input[type=range]"))
    assert strength > 1

    page.locator("#compare").fill("80")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--at')") == "80%"
    before = page.locator("#stage .before").bounding_box()
    assert page.evaluate("document.querySelector('#stage .before').naturalWidth") == 16
    assert before["width"] == page.locator("#stage .after").bounding_box()["width"]

    tab.tab("Save")
    made = tmp_path / "made"
    image = tab.download("#save-image", made)
    code = tab.download("#save-code", made)
    snapshot = tab.download("#save-paste", made)
    assert (image.name, code.name, snapshot.name) == (
        "party-edited.png",
        "party.st",
        "party-edited-pasted.png",
    )
    out = tmp_path / "edit.png"
    words = [
        "edit",
        code,
        "--direction",
        "smile",
        f"--strength={strength}",
        "--model",
        model.path,
        "--out",
        out,
    ]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    assert np.array_equal(pixels(out), pixels(image))
    with Image.open(snapshot) as picture:
        assert picture.size == (240, 200)
        assert picture.info["Comment"] == MARK
    assert f"--strength={strength:g}" in page.input_value("#commands textarea")
    page.click("#paste")
    page.wait_for_selector("#stage .tag:has-text('with the edit')")
    assert page.evaluate("document.querySelector('#stage .after').naturalWidth") == 240

    assert tab.hosts <= {"127.0.0.1", "data"}  # nothing was asked of anybody else
    assert tab.problems == []


def test_two_tabs_do_not_mix_and_a_phone_shows_it_all(browser: Any, address: str, tmp_path: Path) -> None:
    one, phone = Tab(browser, address), Tab(browser, address, width=390)
    one.upload(smooth_photo(tmp_path / "one.png", seed=1))
    phone.upload(smooth_photo(tmp_path / "two.png", seed=2))
    for tab, name in ((one, "one"), (phone, "two")):
        tab.invert()
        assert tab.page.input_value("#subject input") == name
    pictures = {tab: tab.shown() for tab in (one, phone)}
    assert pictures[one] != pictures[phone]
    phone.page.locator("#direction-age input[type=range]").focus()
    phone.page.keyboard.press("ArrowLeft")
    phone.changed(pictures[phone])
    assert one.shown() == pictures[one]
    assert one.page.locator("#photo").count() == 1
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    # The picture stays in sight while one moves the sliders below.
    phone.page.locator("#direction-pose").scroll_into_view_if_needed()
    phone.page.mouse.wheel(0, 400)
    phone.page.wait_for_timeout(300)
    box = phone.page.locator("#stage").bounding_box()
    assert box["y"] >= -1
    phone.page.close()
    one.page.wait_for_timeout(500)
    with pytest.raises(sync_api.Error):
        phone.shown()
    assert one.shown() == pictures[one]


def test_what_is_wrong_is_a_sentence_on_the_page(browser: Any, address: str, tmp_path: Path) -> None:
    tab = Tab(browser, address)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    tab.upload(broken)
    tab.says("broken.jpg: ")
    assert "/" not in tab.page.inner_text("#message")  # no folders
    tab.upload(smooth_photo(tmp_path / "landscape.png", width=200))
    tab.says("landscape.png: no face found")
    tab.page.click("#whole")
    tab.invert()
    tab.tab("Save")
    tab.page.click("#paste")
    tab.says("there is no snapshot to paste back into")
    tab.page.wait_for_timeout(100)
    assert tab.problems == []


def test_stop_random_faces_and_the_way_between(
    browser: Any, model: Model, address: str, tmp_path: Path
) -> None:
    tab = Tab(browser, address)
    page = tab.page
    tab.upload(smooth_photo(tmp_path / "party.png"))
    page.wait_for_selector(".ws-crop.picked")
    page.click("text=How to invert")
    page.fill("#steps input", "5000")
    page.keyboard.press("Tab")
    page.click("#invert")
    page.wait_for_selector(".ws-progress:has-text('step')")
    page.wait_for_selector("#stage .tag:has-text('forming')")
    page.click("#stop")
    page.wait_for_selector("#about:has-text('stopped after')")
    tab.tab("Save")
    code = load_code(tab.download("#save-code", tmp_path / "made"), model)
    assert 0 < code.info["steps"] < 5000
    tab.tab("Photograph")
    page.click("#random")
    page.wait_for_function("() => document.querySelector('#subject input').value.startsWith('seed-')")
    tab.tab("More")
    seen = [tab.shown()]
    page.locator("#share input[type=range]").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        seen.append(tab.changed(seen[-1]))
    assert all(a != b for a, b in itertools.pairwise(seen))
    page.click("#gif")
    page.wait_for_selector("#film img")
    assert page.evaluate("document.querySelector('#film img').naturalWidth") == 16
    assert re.match(r"wrangan interpolate party\.st seed-\d+\.st ", page.inner_text("#film code"))


def test_nothing_is_left_when_a_tab_closes(browser: Any, address: str, tmp_path: Path) -> None:
    tab = Tab(browser, address)
    tab.upload(smooth_photo(tmp_path / "private.png"))
    tab.page.wait_for_selector(".ws-crop.picked")

    def kept() -> list[Path]:
        return [
            path
            for root in Path(tempfile.gettempdir()).glob("wrangan-studio-*")
            for path in root.rglob("private*")
        ]

    assert kept()
    tab.page.close()
    patience = time.monotonic() + WAIT / 1000
    while kept() and time.monotonic() < patience:
        time.sleep(0.2)
    assert kept() == []
