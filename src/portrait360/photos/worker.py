"""One photo from file to outcome: read, find persons, fit, crop, mask, accept or reject."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from portrait360.data import layout
from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import PortraitEncoder
from portrait360.geometry.body import BodyTemplate, load_body
from portrait360.geometry.cameras import project
from portrait360.geometry.silhouette import body_silhouette
from portrait360.photos.body import load_user_body
from portrait360.photos.crop import Square
from portrait360.photos.dedup import perceptual_hash
from portrait360.photos.detect import Detection, Detector
from portrait360.photos.fit import Fit, fit_person, largest_turn
from portrait360.photos.gates import PhotoLimits, rejection
from portrait360.photos.landmark_model import LandmarkModel, load_landmark_model
from portrait360.photos.matte import (
    MattingModel,
    SelfieMatte,
    beyond_share,
    mirrored_opacity,
    person_only,
    uncovered_share,
    wider_opacity,
    without_others,
)
from portrait360.photos.measures import measure_image
from portrait360.photos.networks import QualityModel, UserMatting, UserQuality
from portrait360.photos.outline import find_by_outline
from portrait360.photos.reading import read_photo
from portrait360.photos.records import PersonOutcome, PhotoError, PhotoFile, PhotoOutcome
from portrait360.photos.upright import UprightNetwork, load_upright, turn_probabilities, turned, with_face
from portrait360.photos.user_files import UserFile

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""
_HEAD_PLACE = (0.5, 0.5)
"""Where a portrait's crop shows the head's joint: the cameras' target."""
_WELL_COVERED = 0.03
"""Share of the body that the mask may miss before the crop is segmented again."""
_A_LITTLE_WIDER = 1.3
PERHAPS_UPRIGHT, CLEARLY_UPRIGHT = 0.5, 0.9
"""Probabilities that a person is upright: below the first one other turns are tried, from the second one on taken."""
_UNEXPLAINED = ("low confidence", "bad fit")
"""Reasons for which other turns are tried too."""


@dataclass(frozen=True)
class Cut:
    """A person's square of a photo."""

    image: UInt8[ndarray, "R R 3"]
    inside: Float[ndarray, "R R"]
    """1 where it shows the photo, 0 in the padding."""
    mask: UInt8[ndarray, "R R"]
    """255 where it shows the person in its middle."""
    uncovered: float
    """Share of the fitted body that the mask leaves out."""
    beyond: float
    """Share of the mask that lies too far from the fitted body to be the person's."""


@dataclass(frozen=True)
class Examined:
    """A person of a photo."""

    fit: Fit
    cut: Cut
    measures: dict[str, float]
    """What the gates decide by (`gates`)."""
    rejected: tuple[str, str] | None
    """Reason and sentence; None: accepted."""
    has_face: bool
    """Whether a face mesh was found."""


@dataclass(frozen=True)
class Networks:
    """Networks and bodies that a worker has in memory."""

    detector: Detector
    encoder: PortraitEncoder
    landmarks: LandmarkModel
    packaged: BodyTemplate
    user: BodyTemplate | None
    """The body in place of the packaged one."""
    matte: SelfieMatte
    upright: UprightNetwork


@dataclass(frozen=True)
class Examination:
    """A photo the right way up, and the people in it."""

    photo: UInt8[ndarray, "H W 3"]
    turned: int
    """Degrees by which it was turned counter-clockwise."""
    people: list[Examined | PhotoError]
    """The largest head first; the error where there is no crop."""


class PhotoWorker:
    """Callable: what became of a photo. Networks load in `prepare` or at the first call, so that workers travel between
    processes.

    Args:
        resolution: side of the crops in pixels.
        limits: when to reject.
        matting: a matting network in place of mediapipe's segmentation.
        quality: a quality network; `limits.least_quality` is what is enough.
        body: an SMPL file; body poses are then in its terms (`body`).
    """

    def __init__(
        self,
        resolution: int,
        limits: PhotoLimits | None = None,
        *,
        matting: MattingModel | None = None,
        quality: QualityModel | None = None,
        body: UserFile | None = None,
    ) -> None:
        self.resolution, self.limits = resolution, limits or PhotoLimits()
        self.matting, self.quality, self.body = matting, quality, body
        self._loaded: Networks | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def networks(self) -> Networks:
        """What is loaded at the first call."""
        if self._loaded is None:
            packaged = load_body()
            user = None if self.body is None else load_user_body(self.body, packaged).body
            encoder, landmarks = load_encoder()[0].eval(), load_landmark_model()
            self._loaded = Networks(Detector(), encoder, landmarks, packaged, user, SelfieMatte(), load_upright())
        return self._loaded

    def prepare(self) -> None:
        """Load the networks now."""
        self.networks()
        for network in (self.matting, self.quality):
            if isinstance(network, (UserMatting, UserQuality)):
                network.prepare()

    def __call__(self, file: PhotoFile) -> PhotoOutcome:
        try:
            photo = read_photo(file.path)
        except PhotoError as error:
            return PhotoOutcome(file.name, error.reason, error.message)
        found = self.look(photo)
        size = (found.photo.shape[1], found.photo.shape[0])
        if not found.people:
            return PhotoOutcome(file.name, "no person", "Nobody was found.", size)
        people = tuple(_outcome(person) for person in found.people)
        return PhotoOutcome(file.name, size=size, people=people, turned=found.turned)

    def look(self, photo: UInt8[ndarray, "H W 3"]) -> Examination:
        """The people of a photo, which is turned first where it clearly is not upright.

        Where nobody is found, or the first person may not be upright, the other turns are tried; one is taken in which
        somebody is accepted who clearly is.
        """
        people = self.examine(photo)
        first = people[0] if people else None
        if isinstance(first, Examined) and _may_be_upright(first):
            return Examination(photo, 0, people)
        for degrees in (180, 90, 270):
            other = turned(photo, degrees)
            there = self.examine(other)
            if there and _is_clear(there[0]):
                return Examination(other, degrees, there)
        return Examination(photo, 0, people)

    def fit(self, photo: UInt8[ndarray, "H W 3"]) -> list[tuple[Detection, Fit]]:
        """The persons of a photo, the largest head first."""
        return [(person, self._fit(photo, person)) for person in self._find(photo)]

    def _find(self, photo: UInt8[ndarray, "H W 3"]) -> list[Detection]:
        loaded = self.networks()
        people = loaded.detector.find(photo)
        if not people:
            person = find_by_outline(photo, loaded.encoder, loaded.packaged, loaded.matte)
            people = [] if person is None else [person]
        return people

    def _fit(self, photo: UInt8[ndarray, "H W 3"], person: Detection) -> Fit:
        loaded = self.networks()
        bodies = (loaded.packaged, None) if loaded.user is None else (loaded.user, loaded.packaged)
        return fit_person(photo, person, loaded.encoder, loaded.landmarks, *bodies, matte=loaded.matte)

    def cut(self, photo: UInt8[ndarray, "H W 3"], fit: Fit) -> Cut:
        """A person's image and mask.

        Segmentation fails now and then, by chance: where the mask misses the body, the crop is segmented again, with
        more around it and mirrored, and the mask that covers the body best is taken.

        Raises:
            PhotoError: the crop is none.
        """
        # Cut the square, and render the fitted body.
        crop, loaded = fit.square.of(photo, self.resolution), self.networks()
        image, inside = crop.image, crop.inside
        matting = self.matting or loaded.matte
        silhouette = body_silhouette(loaded.packaged, fit.camera, fit.body_pose)  # SMPL rests with its arms spread

        # Take the first mask that covers the body, or else the best one.
        tries: list[Callable[[], Float[ndarray, "R R"]]] = [
            lambda: matting(image),
            lambda: wider_opacity(crop, matting),
            lambda: mirrored_opacity(image, matting),
            lambda: wider_opacity(crop, matting, _A_LITTLE_WIDER),
        ]
        best = None
        for segment in tries:
            mask = without_others(_mask(segment()), silhouette)
            uncovered = uncovered_share(silhouette, mask, inside)
            if best is None or uncovered < best.uncovered:
                best = Cut(image, inside, mask, uncovered, beyond_share(mask, silhouette))
            if uncovered <= _WELL_COVERED:
                break
        assert best is not None
        return best

    def examine(self, photo: UInt8[ndarray, "H W 3"]) -> list[Examined | PhotoError]:
        """Each person of a photo, the largest head first; the error where there is no crop."""
        people = self._find(photo)
        boxes = [person.head_box() for person in people]
        found: list[Examined | PhotoError] = []
        for i, person in enumerate(people):
            try:
                found.append(self._examine(photo, person, boxes[:i] + boxes[i + 1 :]))
            except PhotoError as error:
                found.append(error)
        return found

    def _examine(self, photo: UInt8[ndarray, "H W 3"], person: Detection, others: list[Box]) -> Examined:
        fit = self._fit(photo, person)
        cut = self.cut(photo, fit)

        # Is it upright?
        upright = float(turn_probabilities(self.networks().upright, cut.image, cut.mask)[0])
        if person.mesh is not None:
            upright = with_face(upright, fit.fit_error)

        # Measure the crop and how it lies in the photo.
        size = (photo.shape[1], photo.shape[0])
        measures = measure_image(cut.image, cut.mask, cut.inside, fit.square.side)
        measures |= {
            "upright": upright,
            "confidence": fit.confidence,
            "fit_error": fit.fit_error,
            "turn": math.degrees(largest_turn(fit.body_pose.numpy())),
            "head_outside": outside_share(person.head_box(), size),
            "shoulders_outside": shoulders_outside(fit, self.networks().landmarks, size),
            "overlap": _overlap(fit.square, others),
            "uncovered": cut.uncovered,
            "beyond": cut.beyond,
        }
        if fit.covered is not None:
            measures["covered"] = fit.covered
        if self.quality is not None:
            measures["quality"] = float(self.quality(cut.image))
        return Examined(fit, cut, measures, rejection(measures, self.limits), person.mesh is not None)


def _may_be_upright(person: Examined) -> bool:
    """Whether other turns need not be tried."""
    explained = person.rejected is None or person.rejected[0] not in _UNEXPLAINED
    return explained and person.measures["upright"] >= PERHAPS_UPRIGHT


def _is_clear(person: Examined | PhotoError) -> bool:
    """Whether a person is accepted and clearly upright."""
    if isinstance(person, PhotoError):
        return False
    return person.rejected is None and person.measures["upright"] >= CLEARLY_UPRIGHT


def _outcome(person: Examined | PhotoError) -> PersonOutcome:
    """What the report and the dataset keep of a person."""
    if isinstance(person, PhotoError):
        return PersonOutcome(person.reason, person.message)
    fit, cut = person.fit, person.cut
    found = PersonOutcome(None, "", fit.square.numbers, person.measures, fit.camera.numpy(), fit.body_pose.numpy())
    if person.rejected is not None:
        reason, detail = person.rejected
        return replace(found, reason=reason, detail=detail)
    image, mask = layout.encode_image(cut.image), layout.encode_mask(cut.mask)
    return replace(found, image=image, mask=mask, hash=perceptual_hash(cut.image))


def _mask(opacity: Float[ndarray, "R R"]) -> UInt8[ndarray, "R R"]:
    return (np.clip(person_only(opacity, _HEAD_PLACE), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def outside_share(box: Box, size: tuple[int, int]) -> float:
    """Share of a box that lies outside of an image of this width and height."""
    return 1.0 - _common(box, (0.0, 0.0, float(size[0]), float(size[1]))) / max(_area(box), 1e-9)


def _area(box: Box) -> float:
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)


def _common(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def shoulders_outside(fit: Fit, model: LandmarkModel, size: tuple[int, int]) -> float:
    """How many of the two shoulders are beyond the edges of a photo of this width and height."""
    places = project(fit.camera[None], model.shoulder_places[None])[0][0].numpy()
    points = fit.square.points(places)
    return float(((points < 0) | (points > np.array(size))).any(axis=1).sum())


def _overlap(square: Square, others: list[Box]) -> float:
    """Largest share of the crop's middle half that another person's head covers."""
    half = square.side / 4.0
    x, y = square.centre
    middle = (x - half, y - half, x + half, y + half)
    return max((_common(middle, head) / _area(middle) for head in others), default=0.0)
