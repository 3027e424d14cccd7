"""One photo from file to outcome: read, find persons, fit, crop, mask, judge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from portrait360.checkpoint import load_encoder
from portrait360.data import layout
from portrait360.geometry.body import load_body
from portrait360.photos.crop import crop_square
from portrait360.photos.fit import Fit, fit_person, largest_turn
from portrait360.photos.landmark_model import load_landmark_model
from portrait360.photos.landmarks import LEFT_SHOULDER, RIGHT_SHOULDER, Detection, Detector
from portrait360.photos.matte import MattingModel, SelfieMatte, person_only
from portrait360.photos.outcome import PersonOutcome, PhotoError, PhotoFile, PhotoOutcome
from portrait360.photos.quality import PhotoLimits, QualityModel, judge, measure_picture, perceptual_hash
from portrait360.photos.reading import read_photo

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""
_HEAD_PLACE = (0.5, 0.5)
"""Where a portrait's crop shows the head's joint: cameras look at it."""


class PhotoWorker:
    """Callable: what became of a photo. Networks load at the first call, so that workers travel between processes.

    Args:
        resolution: side of the crops in pixels.
        limits: when to reject.
        matting: a matting network in place of mediapipe's segmentation.
        quality: a quality network; `limits.least_quality` says what is enough.
    """

    def __init__(
        self,
        resolution: int,
        limits: PhotoLimits | None = None,
        *,
        matting: MattingModel | None = None,
        quality: QualityModel | None = None,
    ) -> None:
        self.resolution, self.limits = resolution, limits or PhotoLimits()
        self.matting, self.quality = matting, quality
        self._parts: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_parts": None}

    def _load(self) -> tuple[Any, ...]:
        if self._parts is None:
            torch.set_num_threads(1)  # each process has a core
            self._parts = (
                Detector(), load_encoder()[0].eval(), load_landmark_model(), load_body(), self.matting or SelfieMatte(),
            )  # fmt: skip
        return self._parts

    def __call__(self, file: PhotoFile) -> PhotoOutcome:
        try:
            photo = read_photo(file.path)
        except PhotoError as error:
            return PhotoOutcome(file.name, error.reason, error.message)
        size = (photo.shape[1], photo.shape[0])
        people = self._load()[0].find(photo)
        if not people:
            return PhotoOutcome(file.name, "no person", "Nobody was found.", size)
        boxes = [person.head_box() for person in people]
        outcomes = tuple(
            self._person(photo, person, boxes[:i] + boxes[i + 1 :]) for i, person in enumerate(people)
        )  # fmt: skip
        return PhotoOutcome(file.name, size=size, people=outcomes)

    def fit(self, photo: UInt8[ndarray, "H W 3"]) -> list[tuple[Detection, Fit]]:
        """The persons of a photo, the largest head first."""
        detector, encoder, model, body, _ = self._load()
        return [(person, fit_person(photo, person, encoder, model, body)) for person in detector.find(photo)]

    def mask(self, image: UInt8[ndarray, "R R 3"]) -> UInt8[ndarray, "R R"]:
        """255 where a crop shows the person in its middle."""
        opacity = person_only(self._load()[4](image), _HEAD_PLACE)
        return (np.clip(opacity, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    def _person(self, photo: UInt8[ndarray, "H W 3"], person: Detection, others: list[Box]) -> PersonOutcome:
        _, encoder, model, body, _ = self._load()
        try:
            fit = fit_person(photo, person, encoder, model, body)
            image, inside = crop_square(photo, fit.centre, fit.side, self.resolution)
        except PhotoError as error:
            return PersonOutcome(error.reason, error.message)
        mask = self.mask(image)
        measures = measure_picture(image, mask, inside, fit.side)
        measures |= {
            "confidence": fit.confidence,
            "fit_error": fit.fit_error,
            "turn": math.degrees(largest_turn(fit.body_pose.numpy())),
            "head_outside": outside_share(person.head_box(), (photo.shape[1], photo.shape[0])),
            "shoulders_outside": _shoulders_outside(person, (photo.shape[1], photo.shape[0])),
            "overlap": _overlap(fit, others),
        }
        if self.quality is not None:
            measures["quality"] = float(self.quality(image))
        crop = (*fit.centre, fit.side)
        camera, pose = fit.camera.numpy(), fit.body_pose.numpy()
        verdict = judge(measures, self.limits)
        if verdict is not None:
            reason, detail = verdict
            return PersonOutcome(reason, detail, crop, measures, camera, pose)
        return PersonOutcome(
            None, "", crop, measures, camera, pose,
            layout.encode_image(image), layout.encode_mask(mask), perceptual_hash(image),
        )  # fmt: skip


def outside_share(box: Box, size: tuple[int, int]) -> float:
    """Share of a box that lies outside of a picture of this width and height."""
    return 1.0 - _common(box, (0.0, 0.0, float(size[0]), float(size[1]))) / max(_area(box), 1e-9)


def _area(box: Box) -> float:
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)


def _common(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _shoulders_outside(person: Detection, size: tuple[int, int]) -> float:
    """How many of the two shoulders are beyond the edges of the photo."""
    points = person.points[[LEFT_SHOULDER, RIGHT_SHOULDER]]
    return float(((points < 0) | (points > np.array(size))).any(axis=1).sum())


def _overlap(fit: Fit, others: list[Box]) -> float:
    """Largest share of the crop's middle half that another person's head covers."""
    half = fit.side / 4.0
    x, y = fit.centre
    middle = (x - half, y - half, x + half, y + half)
    return max((_common(middle, head) / _area(middle) for head in others), default=0.0)
