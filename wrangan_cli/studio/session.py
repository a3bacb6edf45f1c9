"""One tab of the page: its photographs, codes and edits, in a folder that goes with it."""

import re
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.directions import Direction
    from wrangan_cli.engine.models.codes import Code

MOST_PAST = 100
"""Edits that can be undone."""
RESTED = 0.5
"""Seconds after which a slider that moves again begins another edit."""


@dataclass(frozen=True)
class Crop:
    """A picture that can be inverted: a face cut out of a photograph, or the photograph itself."""

    name: str
    """Stem of the file, from which the code gets its name."""
    picture: Path
    photo: Path
    """The photograph that it is from; `picture` itself where that is inverted as a whole."""
    transform: Path | None = None
    """The `.align.json` of a face; None: the photograph itself."""


@dataclass(frozen=True)
class Subject:
    """A code of this tab, and where it comes from."""

    name: str
    """Of its file, without the suffix."""
    code: "Code"
    crop: Crop | None = None
    lines: tuple[str, ...] = ()
    """The commands that make the code; none where only its file can give it."""
    file: str = ""
    """The code's file, as those lines write it."""
    note: str = ""
    """What a person should know of it, such as that its inversion was stopped."""


@dataclass
class Session:
    """What one tab has. Its methods may be called from several threads."""

    folder: Path
    """Its own, private to this user; `Sessions.close` removes it."""
    directions: "dict[str, Direction]" = field(default_factory=dict)
    imported: dict[str, Path] = field(default_factory=dict)
    """Names of directions that came from a file, and that file."""
    photos: list[Path] = field(default_factory=list)
    crops: list[Crop] = field(default_factory=list)
    chosen: Crop | None = None
    subjects: dict[str, Subject] = field(default_factory=dict)
    current: Subject | None = None
    strengths: dict[str, float] = field(default_factory=dict)
    """Of the directions that are not at 0, in standard deviations."""
    version: int = 0
    """Rises with each change of what is to be drawn."""
    drawn: int = -1
    """The version that the page shows; -1: something else."""
    drawn_at: float = 0.0
    """When, as `time.monotonic` counts."""
    compared: str = "photograph"
    """What the edit is compared with: `photograph` or `unedited`."""
    unseen: bool = False
    """The page does not show `current` yet."""
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)
    known_as: dict[Path, str] = field(default_factory=dict)
    """What a person calls a file: the path that was given, or the name of an upload."""
    urls: dict[str, str] = field(default_factory=dict)
    """Images as the page has them, that it asks for again and again."""
    _past: list[dict[str, float]] = field(default_factory=list)
    _moved: str = ""
    """The direction whose slider moved last."""
    _stems: set[str] = field(default_factory=set)

    def keep(self, upload: Path, name: str | None = None) -> Path:
        """Move an uploaded file into the session's folder; of equal stems the later gets a number."""
        clean = re.sub(r"[^\w.() -]+", "_", name or upload.name).lstrip(". ") or "photo"
        stem, suffix = Path(clean).stem, Path(clean).suffix
        with self.lock:
            number, free = 1, stem
            while free.casefold() in self._stems:
                number += 1
                free = f"{stem}-{number}"
            self._stems.add(free.casefold())
        target = self.folder / "photos" / f"{free}{suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(upload, target)
        self.known_as[target] = target.name
        return target

    def called(self, path: Path) -> str:
        """A file as command lines name it."""
        return self.known_as.get(path, str(path))

    def add(self, subject: Subject) -> None:
        """Put a code beside the others, and edit it from now on."""
        with self.lock:
            self.subjects[subject.name] = subject
            self.choose(subject.name)

    def free_name(self, wanted: str) -> str:
        """`wanted`, or with a number where a code of this tab has that name."""
        number, name = 1, wanted
        while name in self.subjects:
            number += 1
            name = f"{wanted}-{number}"
        return name

    def choose(self, name: str) -> None:
        """Edit this code, from its unedited image on."""
        with self.lock:
            self.current = self.subjects[name]
            self.strengths, self._past = {}, []
            self.version += 1
            self.unseen = True

    def move(self, name: str, strength: float) -> int:
        """Ask for another strength of a direction. Returns the version that this is.

        One slider's strengths without a rest between them are one edit for `undo`.
        """
        with self.lock:
            if name != self._moved or time.monotonic() - self.drawn_at > RESTED:
                self.remember()
            self._moved = name
            return self.set({**self.strengths, name: strength})

    def set(self, strengths: dict[str, float]) -> int:
        """Ask for these strengths; those at 0 are left out. Returns the version that they are."""
        wanted = {name: round(value, 4) for name, value in strengths.items() if value}
        with self.lock:
            if wanted != self.strengths:
                self.strengths = wanted
                self.version += 1
            return self.version

    def remember(self) -> None:
        """The strengths are an edit that `undo` can go back to; remembered twice, they are one."""
        with self.lock:
            if (self._past[-1] if self._past else {}) != self.strengths:
                self._past = [*self._past, dict(self.strengths)][-MOST_PAST:]

    def undo(self) -> bool:
        """Go back to the strengths before the last change; False where there is none."""
        with self.lock:
            if self._past and self._past[-1] == self.strengths:
                self._past.pop()
            elif not self._past and not self.strengths:
                return False
            self.strengths = dict(self._past[-1]) if self._past else {}
            self.version += 1
            return True


class Sessions:
    """The tabs that are open, by Gradio's name of each; none sees what another has."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="wrangan-studio-"))
        """Readable by this user alone; all that the page writes is in it."""
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, tab: str) -> Session:
        """The session of a tab, begun where there is none yet."""
        with self._lock:
            if tab not in self._open:
                folder = self.root / secrets.token_hex(16)
                folder.mkdir(mode=0o700)
                self._open[tab] = Session(folder)
            return self._open[tab]

    def close(self, tab: str) -> None:
        """End a session: what runs for it is stopped, and its files are removed."""
        with self._lock:
            session = self._open.pop(tab, None)
        if session is not None:
            session.stop.set()
            shutil.rmtree(session.folder, ignore_errors=True)

    def close_all(self) -> None:
        """End all sessions, and remove what uploads have left."""
        for tab in list(self._open):
            self.close(tab)
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()
