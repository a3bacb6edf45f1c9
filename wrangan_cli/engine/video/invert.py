"""Inversion of a clip into a folder of codes: follow the face, fit the key frames, then each frame."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.number_lists import parse_numbers
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.data.ffmpeg import probe, read_frames
from wrangan_cli.engine.data.images import to_tensor
from wrangan_cli.engine.faces.align_photos import AUTO_SIDES
from wrangan_cli.engine.faces.alignment import crop_quad, quad_side
from wrangan_cli.engine.inversion.clip import ClipInverter
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.shared_offsets import (
    LEFT,
    RIGHT,
    SHARED_FILE,
    Factors,
    Shared,
    factors_of,
    load_shared,
    save_shared,
)
from wrangan_cli.engine.video.flicker import change, flicker
from wrangan_cli.engine.video.record import (
    FILE,
    QUAD_DIGITS,
    SUFFIX,
    ClipRecord,
    frame_file,
    load_record,
    save_record,
)
from wrangan_cli.engine.video.settings import ClipSettings
from wrangan_cli.engine.video.track import Detect, follow, seen_span, smooth_quads

SAVED_EVERY = 25
"""Number of frames searched between two saves of the landmarks found."""
MOST_FRAMES = 10_000_000

Tell = Callable[[str, int, int], None]
"""Progress: (current task, count done, total count; 0: unknown)."""


@dataclass(frozen=True)
class FrameDone:
    """The result for one frame."""

    w: Tensor
    factors: Factors
    info: dict[str, Any]


class ClipRun:
    """The inversion of one clip into the folder `out`; an interrupted run there is continued.

    frames: such as `0-99`, numbered from 0; empty: all. Raises FileError for a clip that cannot be read,
    and for a folder with codes of another clip, model or settings (unless overwrite);
    UsageError if frames are not a range.
    """

    def __init__(
        self,
        clip: Path,
        out: Path,
        model: Model,
        settings: ClipSettings,
        frames: str = "",
        overwrite: bool = False,
    ) -> None:
        self.clip, self.out, self.model, self.settings = clip, out, model, settings
        self.span = parse_span(frames)
        facts = probe(clip)
        made = ClipRecord(
            clip.name, sha256(clip), facts, model.name, model.sha256, dataclasses.asdict(settings), frames
        )
        self.record = self._begun(made, overwrite)

    def _begun(self, made: ClipRecord, overwrite: bool) -> ClipRecord:
        """The record in the folder if it is of this run, else the new one in an empty folder."""
        if (self.out / FILE).exists():
            if not overwrite:
                found = load_record(self.out)
                self._check_same(found, made)
                return found
            for path in [*self.out.glob(f"frame-*{SUFFIX}"), self.out / SHARED_FILE]:
                path.unlink(missing_ok=True)
        elif self.out.is_dir() and any(path.suffix == SUFFIX for path in self.out.iterdir()):
            raise FileError(self.out, "holds other codes: give another folder as --out")
        save_record(self.out, made)
        return made

    def _check_same(self, found: ClipRecord, made: ClipRecord) -> None:
        what = {"sha256": "another clip", "model_sha256": "another model", "frames": "other frames"}
        for name, other in what.items():
            if getattr(found, name) != getattr(made, name):
                raise FileError(self.out, f"made from {other}; use --overwrite to invert again")
        for name, wanted in made.settings.items():
            there = found.settings.get(name)
            if there != wanted:
                cause = f"made with {name} {there!r}, not {wanted!r}; use --overwrite to invert again"
                raise FileError(self.out, cause)

    def find_face(self, detector: Callable[[], Detect], tell: Tell) -> None:
        """Follow the face and determine the crop of each frame, unless known. FileError: no face."""
        record, settings = self.record, self.settings
        if record.numbers:
            return
        fps, (first, last) = float(record.facts.fps), self.span
        total = 0 if last is None else last - first + 1
        read = unsaved = 0

        def frames() -> Iterator[tuple[int, Any]]:
            nonlocal read
            for number, pixels in read_frames(self.clip, record.facts, first, last):
                yield number, pixels
                read += 1
                tell("finding the face", read, total)

        def note(number: int, points: list[list[float]] | None) -> None:
            nonlocal unsaved
            record.found[number] = points
            unsaved += 1
            if unsaved == SAVED_EVERY:
                save_record(self.out, record)
                unsaved = 0

        try:
            ending = follow(
                frames(), detector(), fps, settings.every, settings.face, dict(record.found), note
            )
        finally:
            if unsaved:
                save_record(self.out, record)
        if read == 0 and ending is None:
            raise FileError(self.clip, f"has no frame {first}")
        numbers = seen_span(record.found, settings.every, None if ending is None else ending.frame)
        if not numbers:
            asked = "no face found" if settings.face == 1 else f"no frame shows {settings.face} faces"
            raise FileError(self.clip, asked)
        # Rounded as in the record, so that a continued run cuts out the same squares.
        record.quads = smooth_quads(record.found, numbers, settings.smoothing, fps).round(QUAD_DIGITS)
        median = float(np.median([quad_side(quad) for quad in record.quads]))
        side = settings.size or min(max(round(median), AUTO_SIDES[0]), AUTO_SIDES[1])
        record.side = min(side, self.model.resolution)
        seen = [number for number in numbers if record.found[number] is not None]
        places = np.linspace(0, len(seen) - 1, min(settings.key_frames, len(seen))).round().astype(int)
        record.key_frames = [seen[place] for place in sorted(set(places.tolist()))]
        if ending is not None:
            record.ended = f"{ending.cause} at frame {ending.frame} ({ending.frame / fps:.2f} s)"
        record.numbers = numbers
        save_record(self.out, record)

    def crops(self, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
        """The aligned frames of these numbers, in order: (3, S, S) in [-1, 1]."""
        quads = dict(zip(self.record.numbers, self.record.quads, strict=True))
        picked = set(wanted)
        for number, pixels in read_frames(self.clip, self.record.facts, min(wanted), max(wanted)):
            if number in picked:
                yield number, to_tensor(crop_quad(Image.fromarray(pixels), quads[number], self.record.side))

    def fit_key_frames(self, inverter: ClipInverter, tell: Tell) -> Shared:
        """The ε of the clip, optimised or read."""
        path = self.out / SHARED_FILE
        if not path.exists():
            images = [image for _, image in self.crops(self.record.key_frames)]
            total = inverter.inverter.settings.loop_steps
            w, epsilon = inverter.fit_key_frames(images, lambda step: tell("key frames", step, total))
            about = {
                "model": self.model.name,
                "model_sha256": self.model.sha256,
                "source": self.record.source,
            }
            save_shared(path, epsilon, w, {**about, "key_frames": self.record.key_frames})
        shared = load_shared(path)
        weights = {name: weight.shape for name, weight in self.model.generator.random_weights().items()}
        fits = {name: value.shape for name, value in shared.epsilon.items()} == weights
        if not fits or shared.w.shape[1:] != self.model.w_mean.shape[-1:]:
            raise FileError(path, f"does not fit {self.model.name}; use --overwrite to invert again")
        return shared

    def fit_frames(self, inverter: ClipInverter, shared: Shared, tell: Tell) -> Iterator[FrameDone]:
        """The code of each frame, in order; existing ones are read."""
        numbers = self.record.numbers
        done: list[FrameDone] = []
        for number in numbers:
            found = self._stored(number, shared)
            if found is None:
                break
            done.append(found)
            yield found
        tell("frames", len(done), len(numbers))
        if len(done) == len(numbers):
            return
        side = self.record.side
        last = done[-1] if done else None
        before: tuple[Tensor, Tensor] | None = None
        for number, image in self.crops(numbers[max(0, len(done) - 1) :]):
            if last is not None and before is None:  # the neighbour was done by an earlier run
                before = image, inverter.rendered(last.w, shared.epsilon, last.factors, side)
                continue
            w = shared.w[0] if last is None else last.w
            shapes = {name: value.shape for name, value in shared.epsilon.items()}
            factors = inverter.initial_factors(shapes) if last is None else last.factors
            started = time.perf_counter()
            fit = inverter.fit_frame(image, shared.epsilon, w, factors, lambda _: None)
            rendered = inverter.rendered(fit.w, shared.epsilon, fit.factors, side)
            info = self._info(number, inverter, shared, fit.distortion, time.perf_counter() - started)
            if before is not None:
                info["change"] = {"input": change(before[0], image), "output": change(before[1], rendered)}
            tensors = {"w": fit.w}
            for name, (left, right) in fit.factors.items():
                tensors |= {LEFT + name: left, RIGHT + name: right}
            write_tensors(frame_file(self.out, number), tensors, {"kind": "code", **info})
            last, before = FrameDone(fit.w, fit.factors, info), (image, rendered)
            done.append(last)
            tell("frames", len(done), len(numbers))
            yield last
        if len(done) < len(numbers):
            raise FileError(
                self.clip, f"ends before frame {numbers[len(done)]}, which an earlier run has read"
            )

    def finish(self, done: list[FrameDone]) -> dict[str, float]:
        """The flicker of the whole clip; also stored in its record."""
        changes = [frame.info["change"] for frame in done if "change" in frame.info]
        figures = flicker([c["input"] for c in changes], [c["output"] for c in changes])
        if self.record.flicker != figures:
            self.record.flicker = figures
            save_record(self.out, self.record)
        return figures

    def _stored(self, number: int, shared: Shared) -> FrameDone | None:
        path = frame_file(self.out, number)
        if not path.exists():
            return None
        tensors, info = read_tensors(path)
        link = info.get("shared")
        if not isinstance(link, dict) or link.get("sha256") != shared.sha256 or "w" not in tensors:
            raise FileError(path, "not a frame of this clip; use --overwrite to invert again")
        return FrameDone(tensors["w"], factors_of(tensors), info)

    def _info(
        self,
        number: int,
        inverter: ClipInverter,
        shared: Shared,
        distortion: dict[str, float],
        seconds: float,
    ) -> dict[str, Any]:
        whole, perceptual = inverter.inverter, inverter.inverter.perceptual
        return {
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "method": whole.settings.method,
            "settings": dataclasses.asdict(whole.settings),
            "clip_settings": self.record.settings,
            "perceptual": None if perceptual is None else perceptual.name,
            "seed": whole.settings.seed,
            "side": self.record.side,
            "steps": inverter.frame_settings.loop_steps,
            "source": self.record.source,
            "source_sha256": self.record.sha256,
            "frame": number,
            "seconds": round(seconds, 3),
            "shared": {"file": SHARED_FILE, "sha256": shared.sha256},
            "distortion": {"after": distortion},
        }


def load_clip_inverter(model: Model, settings: ClipSettings) -> ClipInverter:
    """Model, encoder and loss for a clip. Raises as Inverter.load does."""
    if not model.generator.random_weights():
        raise UsageError(f"model {model.name} has no random layers, which the clip's ε needs")
    inverter = Inverter.load(model, settings.inversion)
    return ClipInverter(
        inverter, settings.frame_epsilon, settings.frame_steps, settings.frame_lr, settings.frame_alpha
    )


def parse_span(text: str) -> tuple[int, int | None]:
    """`0-99` → (0, 99), `7` → (7, 7), empty → (0, None): numbers of the first and the last frame.
    UsageError for anything else."""
    if not text.strip():
        return 0, None
    example = "a range such as 0-99"
    if text.count("-") > 1 or not all(part.strip().isdecimal() for part in text.split("-")):
        raise UsageError(f"frames {text[:60]!r}: expected {example}")
    ends = [parse_numbers(part, "frames", 0, MOST_FRAMES, 1, example)[0] for part in text.split("-")]
    if ends[0] > ends[-1]:
        raise UsageError(f"frames {text[:60]!r}: expected {example}")
    return ends[0], ends[-1]
