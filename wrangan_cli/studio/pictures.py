"""What the page shows as HTML: images within it, so that no other file is asked for."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from wrangan_cli.engine.base.errors import FileError, is_out_of_memory
from wrangan_cli.studio.session import Session, Subject
from wrangan_cli.studio.work import Forming

THUMBNAIL = 160
"""Side in px of the crops to pick from."""
PHOTO_SIDE = 1600
"""Longer side in px, at most, of a photograph that is shown."""

EMPTY = (
    '<div class="ws-stage empty"><div><svg viewBox="0 0 48 48" aria-hidden="true"><rect x="5" y="9" '
    'width="38" height="30" rx="4"/><circle cx="24" cy="21" r="6"/>'
    '<path d="M12 39c1-8 6-11 12-11s11 3 12 11"/></svg>'
    "<p>Drop in a photograph to begin,<br>or start with a random face.</p></div></div>"
)


def url(image: Image.Image, quality: int = 90) -> str:
    """The image as a `data:` URL, JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def stage(after: str, before: str | None = None, names: tuple[str, str] = ("before", "after")) -> str:
    """The picture, and before it another one that a slider uncovers from the left. after, before: URLs.

    Where the slider stands is kept in the page's root, which outlives a new picture.
    """
    if before is None:
        return f'<div class="ws-stage"><img class="after" src="{after}" alt="{names[1]}"></div>'
    at = "document.documentElement.style.setProperty('--at', this.value + '%')"
    return (
        f'<div class="ws-stage pair">'
        f'<img class="after" src="{after}" alt="{names[1]}">'
        f'<img class="before" src="{before}" alt="{names[0]}"><span class="line"></span>'
        f'<span class="tag left">{names[0]}</span><span class="tag right">{names[1]}</span>'
        '<input type="range" min="0" max="100" step="1" value="50" id="compare" '
        f'aria-label="compare {names[0]} and {names[1]}" oninput="{at}"></div>'
    )


def progress(forming: Forming) -> str:
    """How far an inversion is."""
    if forming.waiting:
        return '<p class="ws-note" role="status">Waiting: another tab is inverting a photograph.</p>'
    if not forming.steps:
        bar = '<div class="ws-bar waits"><span></span></div>'
        return f'<div class="ws-progress">{bar}<p>Getting ready …</p></div>'
    done = 100 * forming.step / forming.steps
    left = "" if forming.left is None or forming.step < 3 else f" · about {_time(forming.left)} left"
    return (
        '<div class="ws-progress"><div class="ws-bar" role="progressbar" aria-label="inversion" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{done:.0f}">'
        f'<span style="width:{done:.1f}%"></span></div>'
        f"<p>step {forming.step} of {forming.steps}{left}</p></div>"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def crops(session: Session) -> str:
    """The pictures to pick from."""
    if not session.crops:
        return ""
    buttons = []
    for number, crop in enumerate(session.crops):
        picked = crop is session.chosen
        with Image.open(crop.picture) as image:
            small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        kind = "face" if crop.transform else "whole picture"
        name = html.escape(session.called(crop.photo))
        buttons.append(
            f'<button type="button" class="ws-crop{" picked" if picked else ""}" data-crop="{number}" '
            f'aria-pressed="{str(picked).lower()}" title="{name}"><img src="{url(small, 85)}" '
            f'alt="{kind} of {name}"><span>{kind}</span></button>'
        )
    return f'<div class="ws-crops">{"".join(buttons)}</div>'


def note(text: str) -> str:
    """A remark."""
    return f'<p class="ws-note" role="status">{html.escape(text)}</p>' if text else ""


def problem(error: BaseException) -> str:
    """What is wrong, in a sentence; files by their name alone."""
    if isinstance(error, FileError):
        said = f"{error.path.name}: {error.cause}"
    elif is_out_of_memory(error):
        said = "out of memory: close other tabs or use a smaller model"
    else:
        said = str(error)
    return f'<p class="ws-problem" role="alert">{html.escape(said)}</p>'


def commands(lines: Sequence[str], subject: Subject | None) -> str:
    """Command lines as they are pasted into a shell."""
    text = list(lines)
    if text and subject is not None and any(f" edit {subject.name}.st" in line for line in text):
        text.insert(0, f"# {subject.name}.st: get it with “Download code (.st)”")
    return "\n".join(text)


def code_note(subject: Subject) -> str:
    """What the code of a face reached."""
    after = subject.code.info.get("distortion", {}).get("after", {})
    reached = ", ".join(f"{name.removesuffix(' (loss)')} {value:.3f}" for name, value in after.items())
    distance = f"distance to the photograph: {reached}" if reached else ""
    parts = [subject.code.info.get("method"), distance, subject.note]
    return " · ".join(str(part) for part in parts if part)


def row(shown: Sequence[tuple[str, str, str]]) -> str:
    """Pictures beside each other: title, URL and remark of each."""
    cells = [
        f'<figure><img src="{image}" alt="{html.escape(title)}"><figcaption><b>{html.escape(title)}</b>'
        f"<br>{html.escape(remark)}</figcaption></figure>"
        for title, image, remark in shown
    ]
    return f'<div class="ws-row">{"".join(cells)}</div>'
