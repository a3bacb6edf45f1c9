"""The page of a report in a real browser; skipped where there is no playwright or no browser."""

from pathlib import Path

import pytest

from tests.browsers import chromium
from tests.report_cases import LITTLE, run, subject, table
from tests.test_evaluate import needs_fidelity, small_features

__all__ = ["small_features", "subject"]  # fixtures


@needs_fidelity
def test_a_person_clicks_through_the_page(subject: Path, photos: Path, tmp_path: Path) -> None:
    """In a real browser, at the size of a phone: methods, directions, sorting, the slider."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="package playwright is not installed")
    out = tmp_path / "out"
    assert run(out, subject, photos, methods="sg2-w,wrangan", **LITTLE).exit_code == 0
    values = {(row["method"], row["photo"]): row["mse"] for row in table(out, "photographs")}
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium())
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto((out / "index.html").as_uri())
        names = "els => els.map(e => e.dataset.photo)"
        assert page.eval_on_selector_all(".card", names) == ["a", "b", "c"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for method in ("wrangan", "sg2-w"):
            page.select_option("#method", method)
            page.select_option("#sort", "mse")
            best_first = sorted("abc", key=lambda stem: values[method, stem])
            assert page.eval_on_selector_all(".card", names) == best_first
            page.click("#turn")
            assert page.eval_on_selector_all(".card", names) == best_first[::-1]
            page.click("#turn")
        page.select_option("#edit", "smile +3")
        assert page.locator(".card").count() == 2  # edited=2
        assert "smile%2B3" in (page.locator(".card .over").first.get_attribute("src") or "")
        page.locator(".card input").first.fill("80")
        assert page.eval_on_selector(".card .pair", "e => e.style.getPropertyValue('--at')") == "80%"
        assert page.eval_on_selector(".card .over", "e => e.naturalWidth") == 16
        # A finger (or the mouse) on the picture itself, and the keys.
        box = page.locator(".card .pair").first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        at = "e => parseFloat(e.style.getPropertyValue('--at'))"
        assert page.eval_on_selector(".card .pair", at) == pytest.approx(25, abs=1.5)
        page.keyboard.press("ArrowRight")
        assert page.eval_on_selector(".card .pair", at) > 25
        page.set_viewport_size({"width": 1280, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert problems == []
        browser.close()
