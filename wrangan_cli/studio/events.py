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
_SHOWN_EVERY = 0.5
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
            return {self.parts.message: pictures.problem(error)}

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
        return self._taken(self.session(request), self.given)

    def end(self, request: gr.Request) -> None:
        """The tab is closed."""
        if request.session_hash is not None:
            self.sessions.close(request.session_hash)

    # Photographs.

    def upload(self, files: list[str] | None, request: gr.Request) -> Updates:
        """Photographs (or codes) were dropped in."""
        session = self.session(request)
        shown = self._taken(session, (session.keep(Path(file)) for file in files or []))
        return {**shown, self.parts.photo: None}

    def _taken(self, session: Session, paths: Iterable[Path]) -> Updates:
        """Take photographs and codes, and show what there is then; codes alone are there to be edited."""
        before, photos = session.current, len(session.photos)
        problems = self._take_all(session, paths)
        shown = self._crops_shown(session)
        if session.current is not before:
            shown |= self._subject_shown(session)
            if len(session.photos) == photos:
                shown[self.parts.tabs] = gr.Tabs(selected="edit")
        return {**shown, self.parts.message: problems}

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
                f"{path.name}: no face found. If it is already a cropped face, use the whole picture."
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
        yield {**after, parts.tabs: gr.Tabs(selected="edit")}

    def _forming(self, session: Session, crop: Crop, settings: InversionSettings) -> Iterator[Updates]:
        photograph = pictures.url(open_image(crop.picture, self.work.model.resolution))
        shown = 0.0
        for forming in self.work.invert(session, crop, settings):
            updates: Updates = {}
            if forming.image is not None:
                image = pictures.url(forming.image)
                updates[self.parts.stage] = pictures.stage(image, photograph, ("photograph", "forming"))
                session.drawn = -1
            if updates or time.monotonic() - shown >= _SHOWN_EVERY:
                shown = time.monotonic()
                yield {**updates, self.parts.progress: pictures.progress(forming)}

    @said
    def show(self, request: gr.Request) -> Updates:
        """After an inversion: its code, or what was edited before where there is none."""
        session = self.session(request)
        if session.unseen:
            return self._subject_shown(session)
        return self._drawn(session) if session.current and session.drawn < 0 else gr.skip()

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
    def choose(self, name: str | None, request: gr.Request) -> Updates:
        """Another face is edited."""
        session = self.session(request)
        if name is None or (session.current is not None and session.current.name == name):
            return {self.parts.message: ""}
        session.choose(name)
        return self._subject_shown(session)

    def _subject_shown(self, session: Session) -> Updates:
        """The unedited image of the current code, with all sliders at 0."""
        parts, subject = self.parts, session.current
        assert subject is not None
        session.unseen = False
        session.urls.clear()
        names = list(session.subjects)
        first = names[-2] if len(names) > 1 else names[0]
        return {
            **self._sliders(session),
            **self._drawn(session),
            parts.subject: gr.update(choices=names, value=subject.name),
            parts.first: gr.update(choices=names, value=first),
            parts.second: gr.update(choices=names, value=names[-1]),
            parts.fraction: 0,
            parts.about: pictures.note(pictures.code_note(subject)),
            parts.message: "",
        }

    # Sliders.

    @said
    def move(self, which: str | int, strength: float, request: gr.Request) -> Updates:
        """A slider moves. which: its direction, or the place of an imported one."""
        session = self.session(request)
        if session.current is None:
            return {
                self.parts.message: pictures.note("Invert a photograph first, or start with a random face.")
            }
        name = which if isinstance(which, str) else list(session.directions)[which]
        if session.drawn >= session.move(name, strength):
            return {self.parts.message: ""}
        return {**self._drawn(session), self.parts.message: ""}

    @said
    def undo(self, request: gr.Request) -> Updates:
        """Back to the strengths before the last change."""
        session = self.session(request)
        if not session.undo():
            return {self.parts.message: pictures.note("There is nothing to undo.")}
        return {**self._sliders(session), **self._drawn(session), self.parts.message: ""}

    @said
    def reset(self, request: gr.Request) -> Updates:
        """All sliders to 0."""
        session = self.session(request)
        if session.current is None:
            return {self.parts.message: ""}
        session.remember()
        session.set({})
        session.remember()
        return {**self._sliders(session), **self._drawn(session), self.parts.message: ""}

    @said
    def compare(self, compared: str, request: gr.Request) -> Updates:
        """What stands before the edit is another picture."""
        session = self.session(request)
        session.compared = compared
        return {**(self._drawn(session) if session.current else {}), self.parts.message: ""}

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

    def _drawn(self, session: Session) -> Updates:
        """The edit as it is, and the commands that make it; nothing where a later one is shown by now.

        At full size while a slider moves, too: a smaller image takes almost the same pass.
        """
        version = session.version
        image = pictures.url(self.work.rendered(self.work.edited(session)), 93)
        if session.drawn > version:
            return {}
        session.drawn, session.drawn_at = version, time.monotonic()
        lines = pictures.commands(self.work.lines_of_edit(session), session.current)
        return {self.parts.stage: self._staged(session, image), self.parts.commands: lines}

    def _staged(self, session: Session, image: str) -> str:
        assert session.current is not None
        plain = "unedited" if session.current.crop is None else "inverted"
        unedited = session.compared != "photograph" or session.current.crop is None
        name = "unedited" if unedited else "photograph"
        if name not in session.urls:
            session.urls[name] = pictures.url(self.work.original(session, unedited))
        names = (name, "edited" if session.strengths else plain)
        return pictures.stage(image, session.urls[name], names)

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
