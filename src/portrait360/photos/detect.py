"""Persons in a photo and their landmarks by mediapipe's networks.

The networks come inside mediapipe's wheel. Pose landmarks are 33 per person, face meshes (478 points) come where a face
shows. Both are in pixels of the photo, right and down.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from portrait360.photos.crop import Square
from portrait360.photos.records import PhotoError
from portrait360.types import InputError

NOSE, LEFT_EAR, RIGHT_EAR, LEFT_SHOULDER, RIGHT_SHOULDER = 0, 7, 8, 11, 12
HEAD_POINTS = tuple(range(11))
"""Pose landmarks on the head: nose, eyes, ears, corners of the mouth."""
UPPER_POINTS = tuple(range(13))
"""The same and the shoulders: what a portrait's crop shows."""

_SILENCE = threading.RLock()
_MOST_PEOPLE = 8
_LEAST_DETECTION = 0.4
_AROUND_FACE = 7.0
"""Side of the square in which a face's owner is looked for, in units of the face's larger side."""
_AROUND_HEAD = 3.5
"""Side of the square in which a head's face mesh is looked for, in units of the spread of its pose landmarks."""
_PART_SIDE = 384
_MOST_STEPS = 8
"""Photos along which more squares would lie are not searched in such detail: those are panoramas."""


@dataclass(frozen=True)
class Detection:
    """One person: pose landmarks, or, where only the outline was found (`outline`), a first crop and a head."""

    points: Float[ndarray, "33 2"] | None
    mesh: Float[ndarray, "478 2"] | None
    square: Square | None = None
    """A first crop."""
    head: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of the head."""

    def head_box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the head, skull and chin included, pixels.

        A square of twice the spread of the landmarks of the face about their middle: they reach from ear to ear and
        from the eyes to the mouth, at least one of which shows from every side.
        """
        if self.points is None:
            assert self.head is not None
            return self.head
        points = self.points[list(HEAD_POINTS)]
        low, high = points.min(axis=0), points.max(axis=0)
        half = 1.1 * float((high - low).max())
        x, y = (low + high) / 2.0
        return x - half, y - half, x + half, y + half


class Detector:
    """Finds persons; the networks load at the first photo.

    Raises InputError when mediapipe is not installed.
    """

    def __init__(self) -> None:
        self._networks: tuple[Any, Any, Any] | None = None

    def _load(self) -> tuple[Any, Any, Any]:
        if self._networks is None:
            with quietly():
                networks = solutions()
                self._networks = (
                    networks.pose.Pose(
                        static_image_mode=True, model_complexity=1, min_detection_confidence=_LEAST_DETECTION
                    ),
                    networks.face_detection.FaceDetection(model_selection=1, min_detection_confidence=_LEAST_DETECTION),
                    networks.face_mesh.FaceMesh(
                        static_image_mode=True, refine_landmarks=True, min_detection_confidence=_LEAST_DETECTION
                    ),
                )
                for network in self._networks:  # they load on threads of their own; an image waits for them
                    network.process(np.zeros((64, 64, 3), np.uint8))
        return self._networks

    def find(self, photo: UInt8[ndarray, "H W 3"]) -> list[Detection]:
        """Persons from the largest head to the smallest: the one that stands out, and the owners of other faces."""
        found = []
        first = self._pose(photo)
        if first is not None:
            found.append(first)
        for middle, size in self._faces(photo):
            if len(found) < _MOST_PEOPLE and not any(_holds(points, middle) for points in found):
                x, y = middle + np.array([0.0, 0.15 * _AROUND_FACE * size])
                person = self._pose_around(photo, Square((float(x), float(y)), _AROUND_FACE * size))
                if person is not None and _holds(person, middle):
                    found.append(person)
        people = [Detection(points, self._mesh(photo, points)) for points in found]
        return sorted(people, key=lambda person: person.head_box()[0] - person.head_box()[2])

    def _pose(self, photo: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "33 2"] | None:
        with quietly():
            result = self._load()[0].process(photo)
        if result.pose_landmarks is None:
            return None
        landmarks = result.pose_landmarks.landmark
        size = np.array([photo.shape[1], photo.shape[0]], np.float64)
        return np.array([[p.x, p.y] for p in landmarks]) * size

    def _pose_around(self, photo: UInt8[ndarray, "H W 3"], square: Square) -> Float[ndarray, "33 2"] | None:
        part = _part(photo, square)
        points = None if part is None else self._pose(part)
        return None if points is None else square.points(points / _PART_SIDE)

    def _faces(self, photo: UInt8[ndarray, "H W 3"]) -> list[tuple[np.ndarray, float]]:
        """Middle and larger side of faces, pixels; one face may come several times, as parts of the photo overlap."""
        faces = []
        for left, top, side in search_squares(photo.shape[1], photo.shape[0]):
            part = np.ascontiguousarray(photo[top : top + side, left : left + side])
            with quietly():
                result = self._load()[1].process(part)
            for detection in result.detections or []:
                box = detection.location_data.relative_bounding_box
                size = np.array([box.width * part.shape[1], box.height * part.shape[0]])
                corner = np.array([left + box.xmin * part.shape[1], top + box.ymin * part.shape[0]])
                faces.append((corner + size / 2.0, float(size.max())))
        return faces

    def _mesh(self, photo: UInt8[ndarray, "H W 3"], points: Float[ndarray, "33 2"]) -> np.ndarray | None:
        """The mesh of the face on this person's head, which is looked for close by: it may be small in the photo."""
        head = points[list(HEAD_POINTS)]
        low, high = head.min(axis=0), head.max(axis=0)
        x, y = (low + high) / 2.0
        square = Square((float(x), float(y)), _AROUND_HEAD * max(float((high - low).max()), 1.0))
        part = _part(photo, square)
        if part is None:
            return None
        with quietly():
            result = self._load()[2].process(part)
        for face in result.multi_face_landmarks or []:
            mesh = square.points(np.array([[p.x, p.y] for p in face.landmark]))
            if _holds(points, (mesh.min(axis=0) + mesh.max(axis=0)) / 2.0):
                return mesh
        return None


def _part(photo: UInt8[ndarray, "H W 3"], square: Square) -> UInt8[ndarray, "S S 3"] | None:
    """A square of the photo for a network; None where landmarks lie outside of the photo."""
    try:
        return square.of(photo, _PART_SIDE).image
    except PhotoError:
        return None


def search_squares(width: int, height: int) -> list[tuple[int, int, int]]:
    """Left, top and side of the squares in which faces are looked for: the network finds no face of less than
    a fifteenth of its input. As large as the photo, as its shorter side (half over the next), and as half of that.
    """
    longer, shorter = max(width, height), min(width, height)
    squares = {(0, 0, longer)}
    for side, step in ((shorter, shorter / 2.0), (max(shorter // 2, 1), max(shorter // 2, 1))):
        steps = [math.ceil((length - side) / step) + 1 for length in (width, height)]
        if max(steps) <= _MOST_STEPS:
            lefts, tops = (np.linspace(0, n - side, k).astype(int) for n, k in zip((width, height), steps, strict=True))
            squares |= {(int(left), int(top), side) for left in lefts for top in tops}
    return sorted(squares, key=lambda square: -square[2])


def _holds(points: Float[ndarray, "33 2"], place: Float[ndarray, " 2"]) -> bool:
    """Whether a place lies on the head that these landmarks belong to."""
    head = points[list(HEAD_POINTS)]
    spread = float((head.max(axis=0) - head.min(axis=0)).max())
    return float(np.abs(head.mean(axis=0) - place).max()) < max(spread, 1.0)


def no_mediapipe() -> InputError:
    """The error where mediapipe is missing."""
    install = 'Install it: pip install "portrait360[photos]"'
    if sys.version_info >= (3, 13):
        install += ", in an environment of Python 3.11 or 3.12: it has no build for later ones."
    return InputError("reading photos needs mediapipe, which is not installed.", install)


def solutions() -> Any:
    """mediapipe's networks. Raises InputError when it is not installed."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        import mediapipe
    except ImportError as error:
        raise no_mediapipe() from error
    return mediapipe.solutions


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what mediapipe's C++ parts write to standard error off the terminal; for one call of mediapipe at a time.

    They have no switch, so the process's descriptor of standard error points elsewhere during the block. Threads wait
    for each other, since the second one would take the first one's silence for what to restore.
    """
    with _SILENCE, open(os.devnull, "w") as silent:
        kept = os.dup(2)
        try:
            os.dup2(silent.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
