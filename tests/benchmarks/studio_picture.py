"""Make the picture of the studio for docs/, on desktop and phone, and time its sliders.

python -m tests.benchmarks.studio_picture snapshot.jpg docs/images/studio.jpg --model ffhq --steps 60
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.benchmarks.page_picture import save_side_by_side
from tests.browsers import FLAGS, chromium

WAIT = 600_000
EDITS = {"smile": 1.6, "age": -1.5}
CHANGES = 8
"""Positions that a slider has, one after the other, each once the picture of the last is there."""
_CHANGE = """([name, strength]) => new Promise((done) => {
    const stage = document.querySelector('#stage');
    const before = stage.querySelector('.after').src;
    const began = performance.now();
    const watch = new MutationObserver(async () => {
        const image = stage.querySelector('.after');
        if (image.src === before) return;
        watch.disconnect();
        await image.decode();
        requestAnimationFrame(() => done((performance.now() - began) / 1000));
    });
    watch.observe(stage, {childList: true, subtree: true, attributes: true});
    const slider = document.querySelector(`#direction-${name} input[type=range]`);
    slider.value = strength;
    slider.dispatchEvent(new Event('input', {bubbles: true}));
})"""
"""Moves a slider; the seconds until its picture is decoded, at full size."""


def main() -> None:
    """Use the page, print the times and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ffhq")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--port", type=int, default=7869)
    given = parser.parse_args()
    with studio(given.photo, given.model, given.port) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 880})
        page.set_default_timeout(WAIT)
        page.goto(address)
        shots = _screenshots(page, given.steps)
        browser.close()
    save_side_by_side(shots, given.out, quality=80)


@contextlib.contextmanager
def studio(photo: Path, model: str, port: int) -> Iterator[str]:
    """The command in a process of its own, as a person runs it; yields the page's address."""
    words = [sys.executable, "-m", "wrangan_cli", "studio", photo, "--model", model, "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("the studio did not start")
            yield address
        finally:
            process.terminate()


def _screenshots(page: Any, steps: int) -> list[Image.Image]:
    page.wait_for_selector(".ws-crop.picked")
    page.click("text=Inversion settings")
    page.fill("#steps input", str(steps))
    page.keyboard.press("Tab")
    began = time.monotonic()
    page.click("#invert")
    page.wait_for_selector("#subject", state="visible")
    page.wait_for_selector("#stage .tag:has-text('inverted')")
    print(f"{steps} steps: {time.monotonic() - began:.1f} s")
    for name, strength in EDITS.items():
        positions = [round(strength * (number + 1) / CHANGES, 1) for number in range(CHANGES)]
        seconds = [page.evaluate(_CHANGE, [name, position]) for position in positions]
        print(f"{name}: {statistics.median(seconds):.2f} s in the median, {max(seconds):.2f} s at most")
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
