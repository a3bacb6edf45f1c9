"""What the page's buttons do, by the calls that the commands make."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.data.image_writing import checked_pillow, save_pillow
from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.editing import animation, strips
from wrangan_cli.engine.editing.directions import (
    Direction,
    Move,
    edit_code,
    load_directions,
)
from wrangan_cli.engine.editing.imports import import_directions
from wrangan_cli.engine.editing.interpolation import code_between, render_way
from wrangan_cli.engine.editing.sweeps import Span, Sweep
from wrangan_cli.engine.faces import align_photos
from wrangan_cli.engine.inversion.folder import described
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import METHODS, applicable, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings, OptimisingSettings
from wrangan_cli.engine.inversion.trained import lacking_networks
from wrangan_cli.engine.models.codes import SUFFIX, Code, load_code, random_code, render, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.studio import lines
from wrangan_cli.studio.session import Crop, Session, Subject

FILM_SIDE = 512
"""Side in px, at most, of films."""
FORMING_SIDE = 256
"""Side in px, at most, of the image that is shown while it is inverted."""
RANDOM_TRUNCATION = 0.7
"""Of random faces: nearer to the mean they are more like photographs."""
_SECONDS_BETWEEN = 0.6
"""Between two images of an inversion, at least; more where drawing takes long."""


class Stopped(WranganError):
    """A person stopped what had nothing to keep yet."""


@dataclass(frozen=True)
class Forming:
    """How far an inversion is."""

    step: int = 0
    steps: int = 0
    left: float | None = None
    """Seconds that are still needed, about."""
    image: Image.Image | None = None
    """The image as it is; None: as it was shown last."""
    subject: Subject | None = None
    """The code, when it is there."""
    waiting: bool = False
    """Another tab's inversion comes first."""


class Work:
    """A model, loaded once, and what the tabs do with it.

    methods: the ways of inverting that the model has. What a person can act on is raised as a WranganError.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.directions = load_directions(model)
        self.methods = [name for name in METHODS if self._has(name)]
        self._rows = model.generator.config.num_latents
        self._inverting = threading.Lock()
        self._inverter = lru_cache(maxsize=4)(lambda settings: Inverter.load(model, settings))

    def _has(self, method: str) -> bool:
        if method == "wrangan" and not self.model.generator.random_weights():
            return False
        return not lacking_networks(self.model, self.settings(method))

    def settings(
        self, method: str, steps: int | None = None, seconds: float | None = None
    ) -> InversionSettings:
        """Those of `wrangan invert` for a method; of a model without an encoder w starts at the mean."""
        asked = inversion_settings(method, **applicable(method, {"steps": steps, "seconds": seconds}))
        if isinstance(asked, OptimisingSettings) and lacking_networks(self.model, asked):
            asked = replace(asked, init="mean")
        return asked

    # Photographs and codes that come in.

    def crops_of(self, session: Session, photo: Path) -> list[Crop]:
        """The faces of a photograph, cut out as `wrangan align` does, the largest first, for the session.

        Raises FileError for what is no photograph, WranganError where faces cannot be looked for.
        """
        faces = align_photos.PhotoAligner(session.folder / "faces").align(photo)
        found = [Crop(face.image.stem, face.image, photo, face.transform_file) for face in faces]
        session.crops += found
        return found

    def whole(self, session: Session, photo: Path) -> Crop:
        """The photograph itself as what is inverted: its central square, as `wrangan invert` takes it."""
        open_image(photo, self.model.resolution)
        crop = Crop(photo.stem, photo, photo)
        session.crops.append(crop)
        return crop

    def load(self, session: Session, path: Path) -> Subject:
        """A code from its file."""
        code = load_code(path, self.model)
        subject = Subject(session.free_name(path.stem), code, file=session.called(path))
        session.add(subject)
        return subject

    def random(self, session: Session, seed: int) -> Subject:
        """The face of a seed, as `wrangan generate` draws it."""
        code = random_code(self.model, seed, RANDOM_TRUNCATION)
        subject = Subject(session.free_name(f"seed-{seed}"), code)
        session.add(subject)
        return subject

    def import_file(self, session: Session, path: Path, most: int) -> list[Direction]:
        """The directions of a file, at most so many, for this tab: `.safetensors` of `wrangan directions`, or
        what `wrangan directions import` takes."""
        if path.suffix == ".safetensors":
            found = list(load_directions(self.model, path).values())
        else:
            found = import_directions(self.model, path, path.stem)
        if len(found) > most:
            raise FileError(path, f"holds {len(found)} directions; there is room for {most} more")
        for direction in found:
            if direction.name in self.directions | session.directions:
                raise FileError(path, f"there is already a direction named {direction.name}")
        session.directions |= {direction.name: direction for direction in found}
        session.imported |= {direction.name: path for direction in found}
        return found

    # Inversion.

    def invert(self, session: Session, crop: Crop, settings: InversionSettings) -> Iterator[Forming]:
        """Invert a picture; the last one yielded has the code, which is in the session then.

        `session.stop` ends the steps and keeps what is there. Raises Stopped if that was before the first.
        """
        session.stop.clear()
        news: queue.Queue[Forming | BaseException] = queue.Queue()

        def work() -> None:
            try:
                while not self._inverting.acquire(timeout=0.2):
                    news.put(Forming(waiting=True))
                    if session.stop.is_set():
                        raise Stopped("stopped before it began")
                try:
                    news.put(Forming(subject=self._inverted(session, crop, settings, news)))
                finally:
                    self._inverting.release()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                news.put(error)

        thread = threading.Thread(target=work, name="wrangan-inversion", daemon=True)
        thread.start()
        try:
            while True:
                item = news.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.subject is not None:
                    return
        finally:
            session.stop.set()  # where nobody waits any more: the tab is gone
            thread.join()

    def _inverted(
        self,
        session: Session,
        crop: Crop,
        settings: InversionSettings,
        news: "queue.Queue[Forming | BaseException]",
    ) -> Subject:
        inverter: Inverter = self._inverter(settings)
        photographs = inverter.load_photo(crop.picture)[None]
        began = time.perf_counter()
        news.put(Forming())
        planned = inverter.within(photographs)
        steps, step, shown, pause = planned.settings.total_steps, 0, 0.0, _SECONDS_BETWEEN
        started = time.perf_counter()

        def on_step(number: int) -> None:
            nonlocal step
            step = number
            left = (time.perf_counter() - started) / step * (steps - step)
            news.put(Forming(step, steps, left))

        def watch(draw: Callable[[int], Tensor]) -> bool:
            nonlocal shown, pause
            now = time.perf_counter()
            if now - shown >= pause:
                image = to_pillow(draw(min(FORMING_SIDE, self.model.resolution))[0])
                shown = time.perf_counter()
                pause = max(_SECONDS_BETWEEN, 6 * (shown - now))
                news.put(Forming(step, steps, (shown - started) / step * (steps - step), image))
            return not session.stop.is_set()

        (result,) = planned.watched(watch).invert(photographs, on_step)
        if isinstance(result, WranganError):
            raise result
        code = described(result, crop.picture, time.perf_counter() - began, {"batch": 1})
        return self._subject(session, crop, settings, code, stopped=step < steps and session.stop.is_set())

    def _subject(
        self, session: Session, crop: Crop, settings: InversionSettings, code: Code, stopped: bool
    ) -> Subject:
        name = session.free_name(crop.name)
        if name != crop.name:
            name = session.free_name(f"{crop.name}-{settings.method}")
        if stopped:
            done = code.info["steps"]
            code = replace(code, info={**code.info, "stopped": done})
            subject = Subject(
                name, code, crop, note=f"stopped after {done} steps; download its code to keep it"
            )
        else:
            folder = "codes" + name.removeprefix(crop.name)
            made = lines.inverted(session, crop, self.model.name, settings, folder)
            subject = Subject(name, code, crop, *made)
        session.add(subject)
        return subject

    # Images.

    def moves(self, session: Session) -> list[Move]:
        """The edits that the sliders ask for: the model's directions in its order, then imported ones."""
        known = {**self.directions, **session.directions}
        return [Move(known[name], session.strengths[name]) for name in known if session.strengths.get(name)]

    def edited(self, session: Session) -> Code:
        """The code of this tab with its edits."""
        subject, moves = _current(session), self.moves(session)
        return edit_code(subject.code, moves, self._rows) if moves else subject.code

    def rendered(self, code: Code) -> Image.Image:
        """The image of a code, 8-bit RGB."""
        return checked_pillow(Path("image"), render(self.model, [code])[0])

    def original(self, session: Session, inverted: bool) -> Image.Image:
        """What an edit is compared with: the picture that was inverted; with `inverted`, or where there is
        none, the code's unedited image."""
        subject = _current(session)
        if inverted or subject.crop is None:
            return self.rendered(subject.code)
        return open_image(subject.crop.picture, self.model.resolution)

    def between(self, first: Subject, second: Subject, fraction: float) -> Image.Image:
        """The image at this fraction, 0…1, of the way from one code to another."""
        return self.rendered(code_between([first.code, second.code], fraction, self._rows))

    # Files to download, in the session's folder.

    def save_edit(self, session: Session) -> Path:
        """The edited image at full size, as `wrangan edit` writes it."""
        out = self._out(session, f"{edit_name(session)}.png")
        save_pillow(out, self.rendered(self.edited(session)), edited=True)
        return out

    def save_code(self, session: Session, edited: bool = False) -> Path:
        """The code's file, or that of the edited code, as `wrangan edit --save-code` writes it."""
        subject = _current(session)
        name = edit_name(session) if edited else subject.name
        out = self._out(session, name + SUFFIX)
        save_code(out, self.edited(session) if edited else subject.code)
        return out

    def save_paste(self, session: Session, feather: float, keep_detail: bool) -> Path:
        """The photograph with the edited face in it, as `wrangan paste` writes it."""
        crop = _current(session).crop
        if crop is None or crop.transform is None:
            raise UsageError("only a face that was found in a photograph can be pasted back into it")
        out = self._out(session, f"{edit_name(session)}-pasted.png")
        align_photos.paste(self.save_edit(session), crop.transform, crop.photo, out, feather, keep_detail)
        return out

    def save_way(self, session: Session, names: Sequence[str], steps: int, fps: float, suffix: str) -> Path:
        """The way between codes as .mp4 or .gif, as `wrangan interpolate` writes it."""
        out = self._out(session, "-".join(names) + suffix)
        codes = [session.subjects[name].code for name in names]
        if suffix == ".mp4":
            animation.check_mp4()
        images = render_way(self.model, codes, steps, side=self.film_side)
        animation.save_animation(out, (checked_pillow(out, image) for image in images), fps)
        return out

    def save_strip(self, session: Session, direction: str, span: Span, steps: int) -> Path:
        """The code over a range of strengths in a row, the other sliders held, as `wrangan edit` draws it."""
        subject = _current(session)
        known = {**self.directions, **session.directions}
        edits: list[Move | Sweep] = [*self._held(session, direction), Sweep(known[direction], span)]
        strip = strips.Strip(
            self.model, [strips.Subject(subject.name, subject.code)], edits, steps, side=self.strip_side
        )
        out = self._out(session, f"{subject.name}-{direction}.png")
        save_pillow(out, strips.render_strip(strip, out), edited=True)
        return out

    def _held(self, session: Session, direction: str) -> list[Move]:
        return [move for move in self.moves(session) if move.direction.name != direction]

    @property
    def film_side(self) -> int:
        """Side in px of films."""
        return min(FILM_SIDE, self.model.resolution)

    @property
    def strip_side(self) -> int:
        """Side in px of the pictures of a strip."""
        return min(FORMING_SIDE, self.model.resolution)

    def _out(self, session: Session, name: str) -> Path:
        return session.folder / "made" / name

    # The commands that make the same.

    def lines_of_edit(self, session: Session, feather: float = 0.1, keep_detail: bool = False) -> list[str]:
        """From the photograph to what is shown, and back into the photograph."""
        subject, moves = _current(session), self.moves(session)
        made = list(subject.lines)
        if not moves:
            return made or self._lines_of_random(subject)
        out = f"{edit_name(session)}.png"
        made += lines.edited(subject, moves, session.imported, self.model.name, out)
        crop = subject.crop
        if crop is not None and crop.transform is not None:
            target = f"{edit_name(session)}-pasted.png"
            made.append(lines.pasted(session, crop, out, target, feather, keep_detail))
        return made

    def _lines_of_random(self, subject: Subject) -> list[str]:
        about = subject.code.info
        if about.get("method") != "random":
            return []
        words = ["--seeds", about["seed"], f"--truncation={about['truncation']:g}"]
        words += [*lines.of_model(self.model.name), "--out", f"{subject.name}.png"]
        return [lines.command("generate", *words)]

    def line_of_way(self, names: Sequence[str], steps: int, fps: float, out: str) -> str:
        """The command of `save_way`, with the codes' downloaded files."""
        words: list[object] = [*(f"{name}{SUFFIX}" for name in names), "--steps", steps, f"--fps={fps:g}"]
        words += ["--side", self.film_side, *lines.of_model(self.model.name), "--out", out]
        return lines.command("interpolate", *words)

    def line_of_strip(self, session: Session, direction: str, span: Span, steps: int, out: str) -> str:
        """The command of `save_strip`, with the code's file; none where a direction is a file's."""
        subject, held = _current(session), self._held(session, direction)
        if session.imported.keys() & {direction, *(move.direction.name for move in held)}:
            return ""
        words: list[object] = [subject.file or f"{subject.name}{SUFFIX}", *lines.of_moves(held)]
        words += ["--direction", direction, f"--strength={span.first:g}:{span.last:g}", "--steps", steps]
        words += ["--side", self.strip_side, *lines.of_model(self.model.name), "--out", out]
        return lines.command("edit", *words)


def edit_name(session: Session) -> str:
    """Stem of the files of an edit."""
    return f"{_current(session).name}-edited"


def _current(session: Session) -> Subject:
    if session.current is None:
        raise UsageError(
            "there is no face to edit yet: invert a photograph, open a code or start with a random face"
        )
    return session.current
