"""From the codes of a clip to a clip: the aligned face alone, or pasted back into the clip."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.data.ffmpeg import add_sound, check_film, film, logger, probe, read_frames
from wrangan_cli.engine.data.images import to_pillow, to_uint8
from wrangan_cli.engine.data.marks import MARK
from wrangan_cli.engine.editing.directions import Move, edit_code
from wrangan_cli.engine.editing.interpolation import interpolate_codes
from wrangan_cli.engine.faces.alignment import Points, paste_back
from wrangan_cli.engine.models.codes import Code, load_code, render
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import reduced
from wrangan_cli.engine.video.flicker import change, flicker
from wrangan_cli.engine.video.record import ClipRecord, check_finished, frame_file, load_record, save_record

OnFrame = Callable[[int, int], None]
"""Progress: (frames done, frames in all; 0: unknown)."""


class ClipCodes:
    """The codes of a completely inverted clip, with its model.

    Raises FileError: not such a folder, not finished, or made with another model.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        self.folder, self.model = folder, model
        self.record: ClipRecord = load_record(folder)
        check_finished(folder, self.record)

    def code(self, number: int, moves: Sequence[Move]) -> Code:
        """The code of a frame, moved along directions."""
        code = load_code(frame_file(self.folder, number), self.model)
        return edit_code(code, moves, self.model.generator.config.num_latents) if moves else code

    def image(self, code: Code) -> Tensor:
        """Its image (3, R, R), not clipped, on the CPU. WranganError if it is not finite."""
        image = render(self.model, [code])[0].cpu()
        if not image.isfinite().all():
            raise WranganError(f"{self.folder}: an image has values that are not finite")
        return image

    def save_aligned(self, out: Path, moves: Sequence[Move], on_frame: OnFrame) -> dict[str, float]:
        """Write the faces of all frames as an .mp4, at the clip's frame rate divided by `every`; returns the
        flicker, which is also stored in the clip's record."""
        check_film(out)
        record, changes, before = self.record, [], None
        every = record.numbers[1] - record.numbers[0] if len(record.numbers) > 1 else 1
        with film(out, record.facts.fps / every, comment=MARK) as write:
            for index, number in enumerate(record.numbers):
                image = self.image(self.code(number, moves))
                write(to_uint8(image).permute(1, 2, 0).contiguous().numpy())
                small = reduced(image[None], record.side)[0]
                if before is not None:
                    changes.append(change(before, small))
                before = small
                on_frame(index + 1, len(record.numbers))
        given = record.flicker or {"input": 0.0}
        figures = flicker([given["input"]] if changes else [], changes)
        record.edits["-".join(move.label for move in moves) or "none"] = figures
        save_record(self.folder, record)
        return figures

    def drawn(self, moves: Sequence[Move]) -> Iterator[tuple[int, Code, Points]]:
        """Every frame of the clip from the first to the last inverted one: number, code, and the
        corners (4, 2) of its place. Frames in between are interpolated."""
        numbers, quads = self.record.numbers, self.record.quads
        latents = self.model.generator.config.num_latents
        current = self.code(numbers[0], moves)
        for index, (start, end) in enumerate(itertools.pairwise(numbers)):
            after = self.code(end, moves)
            between = [current]
            if end - start > 1:
                between = [*interpolate_codes([current, after], end - start + 1, latents)][:-1]
            for step, code in enumerate(between):
                share = step / (end - start)
                yield start + step, code, (1 - share) * quads[index] + share * quads[index + 1]
            current = after
        yield numbers[-1], current, quads[-1]

    def paste(
        self,
        clip: Path,
        out: Path,
        moves: Sequence[Move],
        feather: float,
        keep_detail: bool,
        on_frame: OnFrame,
    ) -> None:
        """Put the faces, moved along directions, back into the clip, with its sound, as an .mp4.

        feather, keep_detail: as `paste_back` takes them; the mask is the same in every frame's square.
        Frames without a code are unchanged. Raises UsageError for a bad feather or suffix, FileError
        if the clip is not the one that was inverted.
        """
        check_film(out)
        if not 0 <= feather <= 0.5:
            raise UsageError(f"feather {feather}: expected 0 to 0.5 of the frame's side")
        if out.resolve() == clip.resolve():
            raise FileError(out, "is an input: it would be overwritten")
        facts, record = probe(clip), self.record
        if sha256(clip) != record.sha256:
            raise FileError(clip, f"not the clip of {self.folder} ({record.source}, by sha256)")
        if facts.width % 2 or facts.height % 2:
            logger.warning("%s: an odd side is extended by one px, since the format requires even sides", out)
        out.parent.mkdir(parents=True, exist_ok=True)
        waiting = self.drawn(moves)
        following = next(waiting, None)
        # Beside the result: a clip may be too large for the system's temporary folder.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".wrangan-") as folder:
            silent = Path(folder) / "silent.mp4"
            with film(silent, facts.fps, facts.matrix, comment=MARK) as write:
                for number, pixels in read_frames(clip, facts):
                    if following is not None and following[0] == number:
                        _, code, quad = following
                        face = to_pillow(self.image(code))
                        pasted = paste_back(Image.fromarray(pixels), face, quad, feather, keep_detail)
                        pixels = np.asarray(pasted)
                        following = next(waiting, None)
                    write(pixels)
                    on_frame(number + 1, 0)
            add_sound(silent, clip, out)
