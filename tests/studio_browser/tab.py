"""A tab of the studio, as a person uses it."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.models.codes import Code, render
from wrangan_cli.engine.models.folder import Model

WAIT = 60_000
"""Milliseconds: the machine may be busy."""
WIDTH, PHONE = 1280, 390
"""Of a window, in px."""
_BEYOND = """() => {
    const wide = document.documentElement.clientWidth;
    const box = (e) => e.getBoundingClientRect();
    const beyond = (e, left, right) => box(e).right > right + 1 || box(e).left < left - 1;
    const cut = (e) => {  // off the edge, or partly hidden by what it stands in
        for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) {
            const clips = getComputedStyle(p).overflowX !== 'visible';
            if (clips && beyond(e, box(p).left, box(p).right)) return true;
        }
        return beyond(e, 0, wide);
    };
    // Gradio measures the titles of tabs by hidden copies, which no key reaches.
    const used = 'button:not([tabindex="-1"]), input, textarea, label, summary, a, img, ' +
        'video, h1, p, code, figcaption';
    const visible = (e) => box(e).width > 1 && box(e).height > 1;
    const found = [...document.querySelectorAll(used)].filter(e => visible(e) && cut(e));
    const scrolls = document.documentElement.scrollWidth - wide;
    const said = found.map(e => e.outerHTML.slice(0, 150));
    return scrolls > 0 ? [`scrolls by ${scrolls} px`, ...said] : said;
}"""
"""What of a page stands beyond its edges, as HTML."""


class Tab:
    """A page of the studio, and what it asked for."""

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.address = address
        self.hosts: set[str] = set()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or "data"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def begin(self, width: int = WIDTH) -> "Tab":
        """Open the studio, which makes another tab of it."""
        self.hosts.clear()
        self.problems.clear()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.goto(self.address)
        self.page.wait_for_selector("#photo input[type=file]", state="attached")
        return self

    def upload(self, *files: Path) -> None:
        """Drop files in."""
        self.page.set_input_files("#photo input[type=file]", files)

    def choose_files(self, button: str, *files: Path) -> None:
        """Press a button that asks for files."""
        with self.page.expect_file_chooser() as waiting:
            self.page.click(button)
        waiting.value.set_files(files)

    def shown(self) -> str:
        """The picture."""
        return str(self.page.get_attribute("#stage .after", "src"))

    def changed(self, before: str) -> str:
        """The picture, when it is another one."""
        self.page.wait_for_function(
            "src => document.querySelector('#stage .after').getAttribute('src') != src", arg=before
        )
        return self.shown()

    def shows(self, picture: str) -> None:
        """Wait for this picture."""
        self.page.wait_for_function(
            "src => document.querySelector('#stage .after')?.getAttribute('src') == src", arg=picture
        )

    def shows_face(self, name: str) -> None:
        """Wait until this code is the one that is edited."""
        self.page.wait_for_function("n => document.querySelector('#subject input')?.value == n", arg=name)

    def shows_command(self, words: str) -> None:
        """Wait for words of the commands that make the picture. The tab Save must have been open once."""
        self.page.wait_for_function(
            "words => document.querySelector('#commands textarea').value.includes(words)", arg=words
        )

    def invert(self) -> None:
        self.page.wait_for_selector(".ws-crop.picked")
        self.page.click("#invert")
        self.page.wait_for_selector("#subject", state="visible")
        self.page.wait_for_selector("#stage .tag:has-text('inverted')")

    def tab(self, name: str) -> None:
        self.page.click(f"button[role=tab]:has-text('{name}')")

    def slider(self, direction: str) -> Any:
        return self.page.locator(f"#direction-{direction} input[type=range]")

    def download(self, button: str, folder: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.page.click(button)
        target = folder / str(waiting.value.suggested_filename)
        waiting.value.save_as(target)
        return target

    def says(self, text: str) -> None:
        self.page.wait_for_function("t => document.querySelector('#message').innerText.includes(t)", arg=text)

    def fits_a_phone(self) -> None:
        """All of what is on the page now stands within the width of a phone, and none of it is cut off."""
        self.page.set_viewport_size({"width": PHONE, "height": 900})
        self.page.wait_for_function(f"() => document.documentElement.clientWidth <= {PHONE}")
        self.page.wait_for_timeout(100)
        beyond = self.page.evaluate(_BEYOND)
        assert beyond == [], beyond


def picture(model: Model, code: Code) -> Image.Image:
    """The image of a code as the engine renders it, 8-bit RGB."""
    return to_pillow(render(model, [code])[0])
