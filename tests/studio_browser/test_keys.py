"""The page without a mouse."""

from pathlib import Path

import pytest

from tests.face_cases import smooth_photo
from tests.studio_browser.tab import Tab

pytestmark = [pytest.mark.filterwarnings("ignore::Warning:gradio"), pytest.mark.xdist_group("studio")]

_FOCUSED = "selector => document.activeElement?.matches(selector)"


def tab_to(tab: Tab, selector: str, most: int = 12) -> None:
    """Press Tab until this has the focus."""
    for _ in range(most):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate(_FOCUSED, selector):
            return
    raise AssertionError(f"{most} times Tab do not lead to {selector}")


def test_the_way_by_keys(tab: Tab, tmp_path: Path) -> None:
    """Tab goes from one control to the next; keys pick, move, undo, and compare."""
    page, keys = tab.page, tab.page.keyboard
    tab.upload(smooth_photo(tmp_path / "two-faces.png", width=241))
    page.wait_for_selector(".ws-crop >> nth=1")
    page.locator("#photo input[type=file]").focus()
    tab_to(tab, "[data-crop='1']")
    keys.press("Enter")
    page.wait_for_selector("[data-crop='1'].picked")
    tab_to(tab, "#invert")
    keys.press("Enter")
    tab.shows_face("two-faces-2")
    page.wait_for_selector("#stage .tag:has-text('inverted')")
    inverted = tab.shown()

    page.locator("#subject input").focus()
    tab_to(tab, "#direction-smile input[type=range]")
    keys.press("ArrowRight")
    smiling = tab.changed(inverted)
    assert tab.slider("smile").input_value() == "0.1"
    tab_to(tab, "#direction-age input[type=range]")
    for _ in range(3):
        keys.press("ArrowLeft")
    assert tab.slider("age").input_value() == "-0.3"
    tab.changed(smiling)
    keys.press("Control+z")
    tab.shows(smiling)
    assert tab.slider("age").input_value() == "0"
    keys.press("Control+z")
    tab.shows(inverted)
    assert tab.slider("smile").input_value() == "0"
    keys.press("Control+z")
    tab.says("There is nothing to undo.")

    # In a field of numbers Ctrl-Z is the field's own.
    page.evaluate(
        "document.querySelector('#undo').addEventListener('click', () => { window.undone = true; })"
    )
    page.locator("#direction-smile input[type=number]").focus()
    keys.press("Control+z")
    assert not page.evaluate("window.undone")
    page.locator("#compare").focus()
    keys.press("ArrowRight")
    assert page.evaluate("document.documentElement.style.getPropertyValue('--at')") == "51%"
    keys.press("Control+z")
    assert page.evaluate("window.undone")
    page.locator("button[role=tab]:has-text('Edit')").focus()
    keys.press("Tab")
    keys.press("Enter")
    page.wait_for_selector("#save-image", state="visible")
