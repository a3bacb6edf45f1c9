"""Make the picture of the studio for docs/, on desktop and phone, and time its sliders.

python -m tests.benchmarks.studio_picture snapshot.jpg docs/images/studio.jpg --model ffhq --steps 60
"""

import argparse
import io
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.benchmarks.page_picture import save_side_by_side
from tests.test_report_browser import chromium
from wrangan_cli.engine.library import load_model
from wrangan_cli.studio.server import serving

WAIT = 600_000
EDITS = {"smile": 1.6, "age": -1.5}


def main() -> None:
    """Use the page, print the times and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ffhq")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--port", type=int, default=7869)
    given = parser.parse_args()
    with (
        serving(lambda: load_model(given.model), [given.photo], "127.0.0.1", given.port) as address,
        sync_playwright() as playwright,
    ):
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        page = browser.new_page(viewport={"width": 1180, "height": 880})
        page.set_default_timeout(WAIT)
        page.goto(address)
        shots = _screenshots(page, given.steps)
        browser.close()
    save_side_by_side(shots, given.out, quality=80)


def _screenshots(page: Any, steps: int) -> list[Image.Image]:
    page.wait_for_selector(".ws-crop.picked")
    page.click("text=How to invert")
    page.fill("#steps input", str(steps))
    page.keyboard.press("Tab")
    began = time.monotonic()
    page.click("#invert")
    page.wait_for_selector("#subject", state="visible")
    page.wait_for_selector("#stage .tag:has-text('inverted')")
    print(f"{steps} steps: {time.monotonic() - began:.1f} s")
    for name, strength in EDITS.items():
        for number in range(3):
            before = page.get_attribute("#stage .after", "src")
            field = page.locator(f"#direction-{name} input[type=range]")
            began = time.monotonic()
            field.fill(str(round(strength - 0.2 * (2 - number), 1)))
            changed = "src => document.querySelector('#stage .after').getAttribute('src') != src"
            page.wait_for_function(changed, arg=before)
            preview = time.monotonic() - began
            page.wait_for_selector("#stage .ws-stage:not(.preview)")
            print(f"{name}: preview {preview:.2f} s, full {time.monotonic() - began:.2f} s")
    page.locator("#compare").fill("50")
    shots = [_shot(page)]
    page.set_viewport_size({"width": 390, "height": 880})
    page.wait_for_timeout(500)
    page.evaluate("window.scrollTo(0, 150)")
    page.wait_for_timeout(500)
    return [*shots, _shot(page)]


def _shot(page: Any) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


if __name__ == "__main__":
    main()
