"""A person's way: a snapshot, its face, the inversion, edits, files; two tabs, and what goes wrong."""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.code_files import pixels
from tests.face_cases import FakeDetector, smooth_photo
from tests.studio_browser.tab import PHONE, WAIT, Tab
from wrangan_cli.engine.data.marks import MARK
from wrangan_cli.engine.models.codes import load_code, random_code, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.studio.session import Sessions
from wrangan_cli.studio.work import Work

pytestmark = [pytest.mark.filterwarnings("ignore::Warning:gradio"), pytest.mark.xdist_group("studio")]


def test_a_person_goes_the_whole_way(tab: Tab, command: Callable[[str], None], tmp_path: Path) -> None:
    """Snapshot, face, inversion, sliders by mouse and keys, before and after, undo, paste, downloads."""
    page = tab.page
    tab.upload(smooth_photo(tmp_path / "party.png"))
    tab.invert()
    inverted = tab.shown()

    slider = tab.slider("smile")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.85, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    tab.tab("Save")
    strength = float(slider.input_value())
    assert strength > 1
    tab.shows_command(f"--direction smile --strength={strength:g} ")
    smiling = tab.shown()
    assert smiling != inverted
    tab.tab("Edit")
    tab.slider("pose").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    tab.shows_command("--direction pose --strength=0.5 ")
    assert tab.shown() != smiling
    page.click("#undo")
    tab.shows(smiling)
    assert tab.slider("pose").input_value() == "0"

    page.locator("#compare").fill("80")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--at')") == "80%"
    before = page.locator("#stage .before").bounding_box()
    assert page.evaluate("document.querySelector('#stage .before').naturalWidth") == 16
    assert before["width"] == page.locator("#stage .after").bounding_box()["width"]
    page.click("#compare-with label:has-text('unedited')")
    page.wait_for_selector("#stage .tag.left:has-text('unedited')")
    assert tab.shown() == smiling

    tab.tab("Save")
    image = tab.download("#save-image", tmp_path / "made")
    code = tab.download("#save-code", tmp_path / "made")
    snapshot = tab.download("#save-paste", tmp_path / "made")
    assert (image.name, code.name, snapshot.name) == (
        "party-edited.png",
        "party.st",
        "party-edited-pasted.png",
    )
    lines = page.input_value("#commands textarea").splitlines()
    assert [line.split()[1] for line in lines] == ["align", "invert", "edit", "paste"]
    for line in lines:
        command(line)
    assert np.array_equal(pixels(tmp_path / image.name), pixels(image))
    assert np.array_equal(pixels(tmp_path / snapshot.name), pixels(snapshot))
    with Image.open(snapshot) as picture:
        assert picture.size == (240, 200)
        assert picture.info["Comment"] == MARK
    page.click("#paste")
    page.wait_for_selector("#stage .tag:has-text('with the edit')")
    assert page.evaluate("document.querySelector('#stage .after').naturalWidth") == 240
    # Nothing of it stays in the browser, and Gradio offers no page of earlier runs.
    assert page.evaluate("indexedDB.databases()") == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert page.request.get(f"{tab.address}gradio_api/runs").status == 404
    tab.fits_a_phone()


def test_photographs_and_codes_of_the_command_line(
    model: Model,
    detector: type[FakeDetector],  # noqa: ARG001
    tmp_path: Path,
) -> None:
    """The photograph can be inverted although a code is shown."""
    gradio = pytest.importorskip("gradio", reason="package gradio is not installed")
    from wrangan_cli.studio.downloads import AllEvents
    from wrangan_cli.studio.layout import lay_out

    work = Work(model)
    save_code(tmp_path / "a.st", random_code(model, 1, 0.7))
    given = [smooth_photo(tmp_path / "party.png"), tmp_path / "a.st"]
    with Sessions() as sessions, gradio.Blocks():
        parts = lay_out(work)
        shown = AllEvents(work, sessions, parts, given).begin(SimpleNamespace(session_hash="tab"))
    assert shown[parts.message] == ""
    assert shown[parts.subject]["value"] == "a"
    assert shown[parts.invert]["interactive"]
    assert "face of " in shown[parts.crops]


def test_two_tabs_do_not_mix_and_a_phone_shows_it_all(tab: Tab, tmp_path: Path) -> None:
    one, phone = tab, Tab(tab.page.context, tab.address)
    phone.begin(PHONE)
    one.upload(smooth_photo(tmp_path / "one.png", seed=1))
    phone.upload(smooth_photo(tmp_path / "two.png", seed=2))
    for each, name in ((one, "one"), (phone, "two")):
        each.invert()
        assert each.page.input_value("#subject input") == name
    pictures = {each: each.shown() for each in (one, phone)}
    assert pictures[one] != pictures[phone]
    phone.slider("age").focus()
    phone.page.keyboard.press("ArrowLeft")
    phone.changed(pictures[phone])
    assert one.shown() == pictures[one]
    # The picture stays in sight while one moves the sliders below.
    phone.page.locator("#direction-pose").scroll_into_view_if_needed()
    phone.page.mouse.wheel(0, 400)
    phone.page.wait_for_function("() => window.scrollY > 50")
    assert phone.page.locator("#stage").bounding_box()["y"] >= -1
    assert phone.problems == []
    phone.page.close()
    one.slider("age").focus()
    one.page.keyboard.press("ArrowLeft")
    one.changed(pictures[one])


def test_what_is_wrong_is_a_sentence_on_the_page(tab: Tab, tmp_path: Path) -> None:
    tab.tab("More")
    tab.page.click("#gif")
    tab.says("pick two different faces")
    tab.page.click("text=Strip of strengths")
    tab.page.click("#strip")
    tab.says("there is no face to edit yet")
    tab.page.click("text=Methods side by side")
    tab.page.click("#side-by-side")
    tab.says("pick a face first")
    tab.tab("Photograph")
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
    tab.says("only a face that was found in a photograph")
    tab.page.click("#save-paste")
    tab.says("only a face that was found in a photograph")
    tab.tab("More")
    tab.page.fill("#strip-box input[aria-label=From]", "")
    tab.page.click("#strip")
    tab.says("give the strengths at both ends")
    tab.fits_a_phone()


def test_stop_random_faces_and_the_way_between(tab: Tab, model: Model, tmp_path: Path) -> None:
    page = tab.page
    tab.upload(smooth_photo(tmp_path / "party.png"))
    page.wait_for_selector(".ws-crop.picked")
    page.click("text=Inversion settings")
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


def test_nothing_is_left_when_a_tab_closes(tab: Tab, tmp_path: Path) -> None:
    tab.upload(smooth_photo(tmp_path / "private.png"))
    tab.page.wait_for_selector(".ws-crop.picked")

    def kept() -> list[Path]:
        return [
            path
            for root in Path(tempfile.gettempdir()).glob("wrangan-studio-*")
            for path in root.rglob("private*")
        ]

    assert kept()
    tab.page.goto("about:blank")
    patience = time.monotonic() + WAIT / 1000
    while kept() and time.monotonic() < patience:
        time.sleep(0.1)
    assert kept() == []
