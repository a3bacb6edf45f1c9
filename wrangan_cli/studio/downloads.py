"""The events that make files, films, strips and comparisons of methods."""

import functools
import html
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.editing.sweeps import Span
from wrangan_cli.studio import pictures
from wrangan_cli.studio.events import Events, Updates, answers, said
from wrangan_cli.studio.session import Session


def link(path: Path) -> str:
    """Where the page finds a file of its session."""
    return f"gradio_api/file={quote(str(path))}"


def saved(event: Callable[..., Path]) -> Callable[..., Updates]:
    """The file that is made is downloaded; what goes wrong is said on the page."""

    @functools.wraps(event)
    def wrapper(self: "AllEvents", *given: Any) -> Updates:
        try:
            return {self.parts.link: link(event(self, *given)), self.parts.message: ""}
        except Exception as error:
            if not answers(error):
                raise
            return {self.parts.link: "", self.parts.message: pictures.problem(error)}

    return wrapper


class AllEvents(Events):
    """The page's functions, with those that make files."""

    # Files.

    @saved
    def save_image(self, request: gr.Request) -> Path:
        """The edited image."""
        return self.work.save_edit(self.session(request))

    @saved
    def save_code(self, request: gr.Request) -> Path:
        """The code."""
        return self.work.save_code(self.session(request))

    @saved
    def save_edited(self, request: gr.Request) -> Path:
        """The code with the edits in it."""
        return self.work.save_code(self.session(request), edited=True)

    @saved
    def save_paste(self, feather: float, detail: bool, request: gr.Request) -> Path:
        """The photograph with the edited face."""
        return self.work.save_paste(self.session(request), feather, detail)

    @said
    def paste(self, feather: float, detail: bool, request: gr.Request) -> Updates:
        """Show the photograph with the edited face."""
        session = self.session(request)
        path = self.work.save_paste(session, feather, detail)
        assert session.current is not None
        assert session.current.crop is not None
        after = open_image(path, max_side=pictures.PHOTO_SIDE)
        before = open_image(session.current.crop.photo, max_side=pictures.PHOTO_SIDE)
        lines = self.work.lines_of_edit(session, feather, detail)
        return {
            self.parts.stage: pictures.stage(
                pictures.url(after), pictures.url(before), ("photograph", "with the edit")
            ),
            self.parts.commands: pictures.commands(lines, session.current),
            self.parts.message: "",
        }

    # More.

    @said
    def between(self, first: str | None, second: str | None, fraction: float, request: gr.Request) -> Updates:
        """The image between two codes."""
        session = self.session(request)
        one, other = self._pair(session, first, second)
        image = self.work.between(one, other, fraction)
        session.drawn = -1  # the stage shows something else than the edit
        label = f"{one.name} → {other.name}, {fraction:.0%}"
        return {
            self.parts.stage: pictures.stage(pictures.url(image), names=("", label)),
            self.parts.message: pictures.note(label),
        }

    @staticmethod
    def _pair(session: Session, first: str | None, second: str | None) -> Any:
        if not first or not second or first == second:
            raise UsageError("pick two different faces; if there is only one, invert or open another")
        return session.subjects[first], session.subjects[second]

    @said
    def film(
        self, suffix: str, first: str, second: str, frames: float, fps: float, request: gr.Request
    ) -> Updates:
        """The way between two codes as a film."""
        session = self.session(request)
        self._pair(session, first, second)
        path = self.work.save_way(session, [first, second], int(frames), fps, suffix)
        line = self.work.line_of_way([first, second], int(frames), fps, path.name)
        return {self.parts.film: self._made(path, line), self.parts.message: ""}

    @said
    def strip(
        self,
        direction: str | None,
        low: float | None,
        high: float | None,
        count: float,
        request: gr.Request,
    ) -> Updates:
        """The code over a range of strengths."""
        if not direction:
            raise UsageError("this model has no directions: add some from a file, under Edit")
        if low is None or high is None:
            raise UsageError("give the strengths at both ends of the strip")
        session, span = self.session(request), Span(low, high)
        path = self.work.save_strip(session, direction, span, int(count))
        line = self.work.line_of_strip(session, direction, span, int(count), path.name)
        return {self.parts.strip_shown: self._made(path, line), self.parts.message: ""}

    def _made(self, path: Path, line: str) -> str:
        where = f"{link(path)}?{secrets.token_hex(4)}"  # another one of that name is another picture
        picture = (
            f'<video src="{where}" controls loop autoplay muted></video>'
            if path.suffix == ".mp4"
            else f'<img src="{where}" alt="{html.escape(path.name)}">'
        )
        made = f"<code>{html.escape(line)}</code>" if line else ""
        return (
            f'<div class="ws-made">{picture}<a href="{where}" download="{path.name}">Download</a>{made}</div>'
        )

    def side_by_side(self, methods: list[str], seconds: float, request: gr.Request) -> Iterator[Updates]:
        """Invert the chosen picture by several methods, until it is stopped."""
        parts, session = self.parts, self.session(request)
        crop = session.chosen
        ended: Updates = {parts.progress: "", parts.stop: gr.update(visible=False)}
        try:
            if crop is None:
                raise UsageError("pick a face first")
            if not methods:
                raise UsageError("pick a method first")
            yield {parts.message: "", parts.methods_shown: "", parts.stop: gr.update(visible=True)}
            photograph = open_image(crop.picture, self.work.model.resolution)
            shown = [("photograph", pictures.url(photograph), "")]
            for method in methods:
                yield from self._forming(session, crop, self.work.settings(method, seconds=seconds))
                assert session.current is not None
                image = pictures.url(self.work.rendered(session.current.code))
                shown.append((session.current.name, image, pictures.code_note(session.current)))
                yield {parts.methods_shown: pictures.row(shown)}
                if "stopped" in session.current.code.info:
                    break
        except Exception as error:
            if not answers(error):
                raise
            ended[parts.message] = pictures.problem(error)
        yield ended
