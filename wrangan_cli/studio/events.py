"""What happens at an event: a request to `Work`, and what the page shows of it, by component."""

import functools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from wrangan_cli.engine.base.errors import UsageError, WranganError, is_out_of_memory
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.codes import SUFFIX
from wrangan_cli.studio import pictures
from wrangan_cli.studio.layout import Parts
from wrangan_cli.studio.session import Crop, Session, Sessions
from wrangan_cli.studio.work import Forming, Work

Updates = dict[Any, Any]
SETTLED = 0.3
"""Seconds without a change after which the image is drawn in full."""
_SHOWN_EVERY = 0.2
"""Seconds between two states of the progress bar."""


def answers(error: BaseException) -> bool:
    """Whether a person is told of an error; any other is a bug."""
    return isinstance(error, WranganError | OSError | MemoryError | ValueError) or is_out_of_memory(error)


def said(event: Callable[..., Updates]) -> Callable[..., Updates]:
    """What goes wrong is said on the page."""

    @functools.wraps(event)
    def wrapper(self: "Events", *given: Any) -> Updates:
        try:
            return event(self, *given)
        except Exception as error:
            if not answers(error):
                raise
            return {self.parts.message: pictures.problem(error), self.parts.link: ""}

    return wrapper


class Events:
    """The page's functions. Each gets the values of its inputs, and Gradio's request, which names the tab."""

    def __init__(self, work: Work, sessions: Sessions, parts: Parts, given: list[Path]) -> None:
        self.work, self.sessions, self.parts, self.given = work, sessions, parts, given

    def session(self, request: gr.Request) -> Session:
        assert request.session_hash is not None
        return self.sessions.of(request.session_hash)

    # A tab begins and ends.

    def begin(self, request: gr.Request) -> Updates:
        """Take what the command line gave."""
        session = self.session(request)
        problems = self._take_all(session, self.given)
        shown = self._subject_shown(session) if session.current else self._crops_shown(session)
        return {**shown, self.parts.message: problems}

    def end(self, request: gr.Request) -> None:
        """The tab is closed."""
        if request.session_hash is not None:
            self.sessions.close(request.session_hash)

    # Photographs.

    def upload(self, files: list[str] | None, request: gr.Request) -> Updates:
        """Photographs (or codes) were dropped in."""
        session = self.session(request)
        before = session.current
        problems = self._take_all(session, (session.keep(Path(file)) for file in files or []))
        shown = self._crops_shown(session)
        if session.current is not before:
            shown = {**shown, **self._subject_shown(session)}
        return {**shown, self.parts.photo: None, self.parts.message: problems}

    def _take_all(self, session: Session, paths: Iterable[Path]) -> str:
        """Take each file; what is wrong with some, as HTML."""
        problems = []
        for path in paths:
            try:
                self._take(session, path)
            except Exception as error:
                if not answers(error):
                    raise
                problems.append(pictures.problem(error))
        return "".join(problems)

    def _take(self, session: Session, path: Path) -> None:
        if path.suffix == SUFFIX:
            self.work.load(session, path)
            return
        session.photos.append(path)
        try:
            found = self.work.crops_of(session, path)
        except WranganError:
            # No detector, or no photograph: which of them, `whole` says.
            open_image(path, self.work.model.resolution)
            raise
        if not found:
            session.chosen = None
            raise UsageError(
                f"{path.name}: no face found. Take the whole picture if it is a face cut out already."
            )
        session.chosen = found[0]

    @said
    def take_whole(self, request: gr.Request) -> Updates:
        """The last photograph is inverted as it is."""
        session = self.session(request)
        session.chosen = self.work.whole(session, session.photos[-1])
        return {**self._crops_shown(session), self.parts.message: ""}

    @said
    def pick(self, request: gr.Request, event: gr.EventData) -> Updates:
        """One of the faces was clicked."""
        session = self.session(request)
        session.chosen = session.crops[int(event._data["crop"])]
        return {**self._crops_shown(session), self.parts.message: ""}

    def _crops_shown(self, session: Session) -> Updates:
        parts = self.parts
        shown: Updates = {
            parts.crops: pictures.crops(session),
            parts.whole: gr.update(visible=bool(session.photos)),
            parts.invert: gr.update(interactive=session.chosen is not None),
        }
        if session.chosen is not None:
            image = open_image(session.chosen.picture, self.work.model.resolution)
            shown[parts.stage] = pictures.stage(pictures.url(image), names=("", "the picture to invert"))
        return shown

    # Inversion.

    def invert(self, method: str, steps: float | None, request: gr.Request) -> Iterator[Updates]:
        """Invert the chosen picture, and show it forming."""
        parts, session = self.parts, self.session(request)
        crop = session.chosen
        if crop is None:
            yield {parts.message: pictures.problem(UsageError("pick a face first"))}
            return
        during = {parts.invert: gr.update(visible=False), parts.stop: gr.update(visible=True)}
        after = {
            parts.invert: gr.update(visible=True),
            parts.stop: gr.update(visible=False),
            parts.progress: "",
        }
        yield {**during, parts.message: "", parts.progress: pictures.progress(Forming())}
        try:
            yield from self._forming(
                session, crop, self.work.settings(method, steps=int(steps) if steps else None)
            )
        except Exception as error:
            if not answers(error):
                raise
            yield {**after, parts.message: pictures.problem(error)}
            return
        yield {**after, **self._subject_shown(session), parts.tabs: gr.Tabs(selected="edit")}

    def _forming(self, session: Session, crop: Crop, settings: InversionSettings) -> Iterator[Updates]:
        photograph = pictures.url(open_image(crop.picture, self.work.model.resolution))
        shown = 0.0
        for forming in self.work.invert(session, crop, settings):
            updates: Updates = {}
            if forming.image is not None:
                image = pictures.url(forming.image)
                updates[self.parts.stage] = pictures.stage(image, photograph, ("photograph", "forming"))
            if updates or time.monotonic() - shown >= _SHOWN_EVERY:
                shown = time.monotonic()
                yield {**updates, self.parts.progress: pictures.progress(forming)}

    def stop(self, request: gr.Request) -> Updates:
        """End the steps; what is there is kept."""
        self.session(request).stop.set()
        return {self.parts.progress: pictures.note("Stopping …")}

    # Codes.

    def load(self, files: list[str] | None, request: gr.Request) -> Updates:
        """Codes were opened."""
        return self.upload(files, request)

    @said
    def random(self, request: gr.Request) -> Updates:
        """A face that nobody has."""
        session = self.session(request)
        self.work.random(session, secrets.randbelow(2**31))
        return {**self._subject_shown(session), self.parts.tabs: gr.Tabs(selected="edit")}

    @said
    def choose(self, name: str | None, compared: str, request: gr.Request) -> Updates:
        """Another face is edited."""
        session = self.session(request)
        if name is None or (session.current is not None and session.current.name == name):
            return {self.parts.message: ""}
        session.choose(name)
        return self._subject_shown(session, compared)

    def _subject_shown(self, session: Session, compared: str = "photograph") -> Updates:
        """The unedited image of the current code, with all sliders at 0."""
        parts, subject = self.parts, session.current
        assert subject is not None
        session.urls.clear()
        names = list(session.subjects)
        first = names[-2] if len(names) > 1 else names[0]
        return {
            **self._sliders(session),
            **self._in_full(session, compared),
            parts.subject: gr.update(choices=names, value=subject.name),
            parts.first: gr.update(choices=names, value=first),
            parts.second: gr.update(choices=names, value=names[-1]),
            parts.fraction: 0,
            parts.about: pictures.note(pictures.code_note(subject)),
            parts.message: "",
        }

    # Sliders.

    @said
    def preview(self, request: gr.Request, *given: Any) -> Updates:
        """A slider moves: the image at a low resolution."""
        *values, compared = given
        session = self.session(request)
        if session.current is None:
            return {self.parts.message: pictures.note("Invert a photograph first, or take a random face.")}
        version = self._set(session, values)
        if session.in_full >= version:
            return {self.parts.message: ""}
        image = self.work.rendered(self.work.edited(session), self.work.preview_side)
        if session.in_full >= version:
            return {self.parts.message: ""}
        return {self.parts.stage: self._staged(session, pictures.url(image, 85), compared, preview=True)}

    def settle(self, request: gr.Request, *given: Any) -> Updates:
        """Some time after a preview: the full image, if nothing has moved since."""
        session = self.session(request)
        version = session.version
        time.sleep(SETTLED)
        if session.current is None or session.version != version:
            return {self.parts.message: ""}
        return self.full(request, *given)

    @said
    def full(self, request: gr.Request, *given: Any) -> Updates:
        """A slider is released: the full image."""
        *values, compared = given
        session = self.session(request)
        if session.current is None or session.in_full >= self._set(session, values):
            return {self.parts.message: ""}
        session.remember()
        return {**self._in_full(session, compared), self.parts.message: ""}

    @said
    def undo(self, compared: str, request: gr.Request) -> Updates:
        """Back to the strengths before the last change."""
        session = self.session(request)
        if not session.undo():
            return {self.parts.message: pictures.note("There is nothing to undo.")}
        return {**self._sliders(session), **self._in_full(session, compared), self.parts.message: ""}

    @said
    def reset(self, compared: str, request: gr.Request) -> Updates:
        """All sliders to 0."""
        session = self.session(request)
        if session.current is None:
            return {self.parts.message: ""}
        session.set({})
        session.remember()
        return {**self._sliders(session), **self._in_full(session, compared), self.parts.message: ""}

    @said
    def compare(self, compared: str, request: gr.Request) -> Updates:
        """What stands before the edit is another picture."""
        session = self.session(request)
        return self._in_full(session, compared) if session.current else {self.parts.message: ""}

    def _set(self, session: Session, values: list[float]) -> int:
        names = [*self.work.directions, *session.directions]
        return session.set(dict(zip(names, values, strict=False)))

    def _sliders(self, session: Session) -> Updates:
        """All sliders as the session has them."""
        shown: Updates = {
            slider: session.strengths.get(name, 0) for name, slider in self.parts.sliders.items()
        }
        for place, direction in zip(self.parts.places, session.directions.values(), strict=False):
            low, high = direction.range
            value = session.strengths.get(direction.name, 0)
            shown[place] = gr.update(
                visible=True, label=direction.name, minimum=low, maximum=high, value=value
            )
        return shown

    def _in_full(self, session: Session, compared: str) -> Updates:
        version = session.version
        image = pictures.url(self.work.rendered(self.work.edited(session)), 93)
        session.in_full = version
        lines = pictures.commands(self.work.lines_of_edit(session), session.current)
        return {self.parts.stage: self._staged(session, image, compared), self.parts.commands: lines}

    def _staged(self, session: Session, image: str, compared: str, preview: bool = False) -> str:
        assert session.current is not None
        unedited = compared != "photograph" or session.current.crop is None
        name = "unedited" if unedited else "photograph"
        if name not in session.urls:
            session.urls[name] = pictures.url(self.work.original(session, unedited))
        names = (name, "edited" if session.strengths else "inverted")
        return pictures.stage(image, session.urls[name], names, preview)

    @said
    def import_directions(self, file: str | None, request: gr.Request) -> Updates:
        """Directions of a file, for this tab."""
        session = self.session(request)
        if file is None:
            return {self.parts.message: ""}
        room = len(self.parts.places) - len(session.directions)
        found = self.work.import_file(session, session.keep(Path(file)), room)
        names = ", ".join(direction.name for direction in found)
        return {
            **self._sliders(session),
            self.parts.imported: gr.update(visible=True),
            self.parts.strip_of: gr.update(choices=[*self.work.directions, *session.directions]),
            self.parts.message: pictures.note(f"Added: {names}."),
        }
