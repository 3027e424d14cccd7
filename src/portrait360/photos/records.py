"""What became of photos: the words in which the steps of `portrait360.photos` talk to each other, and their files.

Photos go in chunks: read them one by one, keep what became of a chunk in a part file, and read that again.

A part file is a zip of one chunk::

    outcomes.json              every photo of the chunk, in order, without bytes
    0003-00.image.webp         the crop of person 0 in photo 3 of the chunk, as it goes into the dataset
    0003-00.mask.png           its mask
    0003-00.small.webp         at most THUMBNAIL pixels, for the report
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from portrait360.data.store import Store, open_store
from portrait360.photos.gates import REASONS
from portrait360.types import DatasetError, Portrait360Error


@dataclass(frozen=True)
class PhotoFile:
    """A file of the folder: where it is, and its name in the report (relative to the folder, with slashes)."""

    path: Path
    name: str

    def __str__(self) -> str:
        return self.name


class PhotoError(Portrait360Error):
    """A photo, or a person in it, that cannot be used. `reason`: one of `gates.REASONS`; the message says more."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PersonOutcome:
    """One person in a photo, accepted (`reason` None) or not."""

    reason: str | None
    detail: str
    """A sentence that says why it was rejected, with the number and the threshold; empty when accepted."""
    crop: tuple[float, float, float] | None = None
    """Centre (right, down) and side of the square crop, in pixels of the upright photo."""
    measures: dict[str, float] = field(default_factory=dict)
    """What the gates decided by (`gates`)."""
    camera: Float[ndarray, " 25"] | None = None
    body_pose: Float[ndarray, " 6"] | None = None
    """Neck, then head axis-angle, radians."""
    image: bytes | None = None
    mask: bytes | None = None
    """Encoded by `data.layout`; None unless accepted."""
    hash: int | None = None
    """64-bit perceptual hash of the crop, to find the same image twice."""


@dataclass(frozen=True)
class PhotoOutcome:
    """One file of the folder."""

    name: str
    reason: str | None = None
    """Why nobody in it can be used, if that was known before looking at persons: unreadable, no person."""
    detail: str = ""
    size: tuple[int, int] | None = None
    """Width and height of the upright photo."""
    people: tuple[PersonOutcome, ...] = ()
    turned: int = 0
    """Degrees by which the photo was turned counter-clockwise, because it was not upright."""


# ---- what is kept of them ----

THUMBNAIL = 96
"""Longer side of the small images of the report, pixels."""
_OUTCOMES = "outcomes.json"
_IMAGE, _MASK, _SMALL = "image.webp", "mask.png", "small.webp"


@dataclass(frozen=True)
class PhotoRecord:
    """What a part file keeps of a photo: its entry in outcomes.json, and images by name, less the photo's index."""

    entry: dict[str, Any]
    images: dict[str, bytes]


def record(outcome: PhotoOutcome) -> PhotoRecord:
    """What is kept of an outcome."""
    return PhotoRecord(_to_json(outcome), _images(outcome))


def part_members(records: Sequence[PhotoRecord]) -> dict[str, bytes]:
    """The members of the part file of a chunk with these photos, in order."""
    members = {
        _member(index, name): content for index, kept in enumerate(records) for name, content in kept.images.items()
    }
    return {**members, _OUTCOMES: json.dumps([kept.entry for kept in records]).encode()}


@dataclass(frozen=True)
class KeptPhoto:
    """A photo out of a part file; its people come without images."""

    outcome: PhotoOutcome
    store: Store
    index: int

    def encoded(self, person: int) -> tuple[bytes, bytes]:
        """Image and mask of an accepted person, encoded as in the dataset."""
        return self._read(person, _IMAGE), self._read(person, _MASK)

    def thumbnail(self, person: int) -> bytes:
        """A small WebP of an accepted person."""
        return self._read(person, _SMALL)

    def _read(self, person: int, kind: str) -> bytes:
        return self.store.read(_member(self.index, _name(person, kind)))


def read_part(path: Path) -> list[KeptPhoto]:
    """The photos of a part file, in order. Raises DatasetError when it is missing or broken."""
    store = open_store(path)
    return [KeptPhoto(outcome, store, index) for index, outcome in enumerate(_outcomes(store))]


def is_whole(path: Path, names: Sequence[str]) -> bool:
    """Whether a part file is there and holds the photos with these names."""
    try:
        photos = read_part(path)
        found = set(open_store(path).names())
    except DatasetError:
        return False
    expected = {_OUTCOMES}
    for photo in photos:
        for person, outcome in enumerate(photo.outcome.people):
            if outcome.reason is None:
                expected |= {_member(photo.index, _name(person, kind)) for kind in (_IMAGE, _MASK, _SMALL)}
    return found == expected and [photo.outcome.name for photo in photos] == list(names)


def check_outcome(outcome: PhotoOutcome, file: PhotoFile) -> None:
    """Refuse what would be lost or break the dataset: a mistake in a reader, not in a photo."""
    where = f"the outcome of {file.name}"
    reasons = [outcome.reason, *(person.reason for person in outcome.people)]
    unknown = [reason for reason in reasons if reason is not None and reason not in REASONS]
    if outcome.name != file.name or unknown or (outcome.reason is None and not outcome.people):
        raise DatasetError(f"{where} is incomplete: name {outcome.name}, reasons {reasons}.")
    for person in outcome.people:
        if person.reason is not None:
            continue
        if None in (person.image, person.mask) or person.camera is None or person.body_pose is None:
            raise DatasetError(f"{where} lacks an image or a label.")
        if not (np.isfinite(person.camera).all() and np.isfinite(person.body_pose).all()):
            raise DatasetError(f"{where} has a label that is not finite.")


def _member(index: int, name: str) -> str:
    return f"{index:04d}-{name}"


def _name(person: int, kind: str) -> str:
    return f"{person:02d}.{kind}"


def _images(outcome: PhotoOutcome) -> dict[str, bytes]:
    images = {}
    for number, person in enumerate(outcome.people):
        if person.reason is None:
            assert person.image is not None
            assert person.mask is not None
            images[_name(number, _IMAGE)] = person.image
            images[_name(number, _MASK)] = person.mask
            images[_name(number, _SMALL)] = _small(person.image)
    return images


def _small(image: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(image)) as whole:
        small = whole.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=None)
    small.save(buffer, "WEBP", quality=70)
    return buffer.getvalue()


def _to_json(outcome: PhotoOutcome) -> dict[str, Any]:
    people = []
    for person in outcome.people:
        people.append(
            {
                "reason": person.reason,
                "detail": person.detail,
                "crop": None if person.crop is None else [float(value) for value in person.crop],
                "measures": {name: float(value) for name, value in person.measures.items()},
                "camera": _numbers(person.camera),
                "body_pose": _numbers(person.body_pose),
                "hash": None if person.hash is None else int(person.hash),
            }
        )
    size = None if outcome.size is None else [int(side) for side in outcome.size]
    return {
        "name": outcome.name,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "size": size,
        "turned": outcome.turned,
        "people": people,
    }


def _numbers(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else np.asarray(values, np.float32).tolist()


def _outcomes(store: Store) -> list[PhotoOutcome]:
    """Raises DatasetError when they are broken."""
    try:
        return [_from_json(entry) for entry in json.loads(store.read(_OUTCOMES))]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{store.path} holds no outcomes.") from error


def _from_json(entry: dict[str, Any]) -> PhotoOutcome:
    people = []
    for person in entry["people"]:
        arrays = {
            name: None if person[name] is None else np.asarray(person[name], np.float32)
            for name in ("camera", "body_pose")
        }
        crop = None if person["crop"] is None else tuple(person["crop"])
        people.append(PersonOutcome(**{**person, **arrays, "crop": crop}))
    size = None if entry["size"] is None else tuple(entry["size"])
    return PhotoOutcome(entry["name"], entry["reason"], entry["detail"], size, tuple(people), int(entry["turned"]))
