"""From photographs to a folder of aligned faces, each with the data that paste-back needs."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.names import same_file_key
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.data.image_writing import save_pillow
from wrangan_cli.engine.faces.alignment import (
    SUFFIX,
    Points,
    Transform,
    crop_quad,
    load_transform,
    paste_back,
    quad_side,
    save_transform,
)
from wrangan_cli.engine.faces.detection import MIN_CONFIDENCE, FaceDetector

logger = logging.getLogger("wrangan")

AUTO_SIDES = (256, 1024)
"""Minimum and maximum side in px when the size follows from the face: the usual sizes of the field."""


@dataclass(frozen=True)
class AlignedFace:
    """One aligned face on disk."""

    image: Path
    transform_file: Path
    transform: Transform

    @property
    def record(self) -> dict[str, object]:
        """Its record for `--json`."""
        return {
            "transform": str(self.transform_file),
            "photo": self.transform.photo,
            "face": self.transform.face,
            "faces": self.transform.faces,
            "confidence": round(self.transform.confidence, 4),
            "frame": round(quad_side(self.transform.quad), 1),
        }


def check_alignment(size: int | None, max_faces: int | None, min_confidence: float) -> None:
    """UsageError for settings of an alignment that are out of range (see PhotoAligner)."""
    if size is not None and not 16 <= size <= 4096:
        raise UsageError(f"size {size}: expected 16 to 4096 px")
    if max_faces is not None and max_faces < 1:
        raise UsageError(f"max-faces {max_faces}: expected 1 or more")
    if not 0 <= min_confidence <= 1:
        raise UsageError(f"min-confidence {min_confidence}: expected 0 to 1")


def face_side(quad: Points, size: int | None = None) -> int:
    """Side in px of the aligned image of a face with this frame: `size`, or the side of the frame in the
    photograph, within AUTO_SIDES."""
    if size is not None:
        return size
    least, most = AUTO_SIDES
    return min(max(round(quad_side(quad)), least), most)


class PhotoAligner:
    """Aligns the faces of one photograph after another into one folder.

    A photograph `a.jpg` gives `a.png` for its largest face, `a-2.png` for the next and so
    on, each with its transform in `a.align.json`. size: side of the aligned images in px;
    None: for each the side of its frame in the photograph, within AUTO_SIDES.
    max_faces: maximum number of faces per photograph, largest first (None: all). overwrite: align
    again if outputs exist. Raises UsageError for settings out of range, WranganError if the detector's
    package is missing.
    """

    def __init__(
        self,
        out: Path,
        size: int | None = None,
        max_faces: int | None = None,
        min_confidence: float = MIN_CONFIDENCE,
        overwrite: bool = False,
    ) -> None:
        check_alignment(size, max_faces, min_confidence)
        self.out = out
        self.size = size
        self.max_faces = max_faces
        self.min_confidence = min_confidence
        self.overwrite = overwrite
        self._claims: dict[Path, Path] = {}
        self._photos: set[Path] = set()
        self._detector = FaceDetector(min_confidence)

    def reserve(self, photos: Iterable[Path]) -> dict[Path, FileError]:
        """Reserve the first output of every photograph, so that no second face of another one takes it.

        Returns the photographs that cannot be aligned because another one writes the same file.
        """
        photos = list(photos)
        self._photos = {photo.resolve() for photo in photos}
        refused = {}
        for photo in photos:
            try:
                self._claim(photo, 1)
            except FileError as error:
                refused[photo] = error
        return refused

    def align(self, photo: Path) -> list[AlignedFace]:
        """The aligned faces of one photograph, largest first; none if there is no face.

        Raises FileError for a photograph that cannot be read and outputs that exist
        already, overwrite the photograph, or belong to another photograph of this run.
        """
        self._claim(photo, 1)
        if not photo.is_file():
            raise FileError(photo, "no such file")
        digest = sha256(photo)
        if not self.overwrite and (done := self._done(photo, digest)):
            return done
        picture = open_image(photo)
        faces = self._detector.detect(picture)
        kept = faces[: self.max_faces]
        outputs = [self._claim(photo, number) for number in range(1, len(kept) + 1)]
        for image in outputs:
            self._refuse_existing(photo, image, digest)
        aligned = []
        for number, (face, image) in enumerate(zip(kept, outputs, strict=True), start=1):
            transform = Transform(
                quad=face.quad,
                photo=photo.name,
                photo_sha256=digest,
                photo_size=picture.size,
                size=self._side(face.quad),
                confidence=face.confidence,
                face=number,
                faces=len(faces),
                min_confidence=self.min_confidence,
            )
            save_pillow(image, crop_quad(picture, face.quad, self._side(face.quad)))
            # Last, so that an image without its transform counts as missing.
            save_transform(_transform_file(image), transform)
            aligned.append(AlignedFace(image, _transform_file(image), transform))
            if face.unsure:
                logger.warning("%s: tilted by more than 45°, the frame may be off", image)
        return aligned

    def _output(self, photo: Path, number: int) -> Path:
        return self.out / (f"{photo.stem}.png" if number == 1 else f"{photo.stem}-{number}.png")

    def _claim(self, photo: Path, number: int) -> Path:
        image = self._output(photo, number)
        owner = self._claims.setdefault(same_file_key(image), photo)
        if owner != photo:
            raise FileError(photo, f"would write {image}, as {owner} does")
        if image.resolve() in self._photos | {photo.resolve()}:
            raise FileError(photo, f"would overwrite the photograph {image}: choose another --out")
        return image

    def _done(self, photo: Path, digest: str) -> list[AlignedFace]:
        """The outputs of an earlier run with these settings, if they are complete; else []."""
        aligned: list[AlignedFace] = []
        number = total = 1
        while number <= total:
            image = self._output(photo, number)
            transform = _existing(image)
            if transform is None or not self._same(transform, digest):
                return []
            total = min(transform.faces, self.max_faces or transform.faces)
            aligned.append(AlignedFace(image, _transform_file(image), transform))
            number += 1
        return aligned

    def _same(self, transform: Transform, digest: str) -> bool:
        settings = (transform.size, transform.min_confidence)
        wanted = (self._side(transform.quad), self.min_confidence)
        return transform.photo_sha256 == digest and settings == wanted

    def _side(self, quad: Points) -> int:
        return face_side(quad, self.size)

    def _refuse_existing(self, photo: Path, image: Path, digest: str) -> None:
        if self.overwrite or not image.exists():
            return
        transform = _existing(image)
        if transform is None or not self._same(transform, digest):
            raise FileError(
                photo, f"{image} exists already, from another photograph or other settings (use --overwrite)"
            )


def paste(
    edited: Path,
    transform_file: Path,
    photo: Path,
    out: Path,
    feather: float = 0.1,
    keep_detail: bool = False,
) -> None:
    """Put an edited aligned face back into its photograph and write that to `out`.

    Raises FileError: files that cannot be read, a photograph that is not the one of the
    transform, an edited image that is not square, an output that is one of the inputs.
    UsageError: feather not in 0…0.5.
    """
    check_feather(feather)
    transform = load_transform(transform_file)
    if out.resolve() in {edited.resolve(), photo.resolve()}:
        raise FileError(out, "is an input: it would be overwritten")
    picture, face = open_image(photo), open_image(edited)
    if sha256(photo) != transform.photo_sha256:
        raise FileError(photo, f"not the photograph of {transform_file} ({transform.photo}, by sha256)")
    check_square(edited, face)
    save_pillow(out, paste_back(picture, face, transform.quad, feather, keep_detail), edited=True)


def check_feather(feather: float) -> None:
    """UsageError unless it is 0 to 0.5."""
    if not 0 <= feather <= 0.5:
        raise UsageError(f"feather {feather}: expected 0 to 0.5 of the frame's side")


def check_square(path: Path, face: Image.Image) -> None:
    """FileError about `path` for a picture that cannot be an aligned face."""
    if face.width != face.height:
        raise FileError(path, f"not an aligned face: {face.width} × {face.height} px is not square")


def _transform_file(image: Path) -> Path:
    return image.with_name(image.stem + SUFFIX)


def _existing(image: Path) -> Transform | None:
    """The transform of an existing aligned image; None if either is missing or broken."""
    if not image.is_file():
        return None
    try:
        return load_transform(_transform_file(image))
    except FileError:
        return None
