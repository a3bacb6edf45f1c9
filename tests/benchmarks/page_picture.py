"""Make the picture of a report's page for docs/: desktop and phone side by side, from a real browser.

python -m tests.benchmarks.page_picture out/index.html docs/images/report.jpg --sort mse
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browsers import chromium

SIZES = ((1180, 860), (390, 860))
GAP = 24


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", help="method to show; default: the page's choice")
    parser.add_argument("--sort", default="", help="metric to sort by; default: by name")
    arguments = parser.parse_args()
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium())
        for width, height in SIZES:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(arguments.page.resolve().as_uri())
            if arguments.method:
                page.select_option("#method", arguments.method)
            page.select_option("#sort", arguments.sort)
            page.wait_for_load_state("networkidle")
            shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    save_side_by_side(shots, arguments.out, quality=85)


def save_side_by_side(shots: Sequence[Image.Image], out: Path, quality: int) -> None:
    """Write screenshots side by side on a neutral background as one JPEG, as high as the first one."""
    width = sum(shot.width for shot in shots) + GAP * (len(shots) + 1)
    whole = Image.new("RGB", (width, shots[0].height + 2 * GAP), "#d9d5cc")
    left = GAP
    for shot in shots:
        whole.paste(shot, (left, GAP))
        left += shot.width + GAP
    out.parent.mkdir(parents=True, exist_ok=True)
    whole.save(out, quality=quality)


if __name__ == "__main__":
    main()
