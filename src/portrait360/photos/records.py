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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from portrait360.data.store import Store, open_store
from portrait360.photos.gates import REASONS, PhotoLimits
from portrait360.photos.user_files import UserFiles
from portrait360.runtime.job_files import part_file
from portrait360.types import DatasetError, Portrait360Error


@dataclass(frozen=True)
class PhotoFile:
    """A file of the folder: where it is, and its name in the report (relative to the folder, with slashes)."""

    path: Path
    name: str


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
    """What `quality` judged by."""
    camera: Float[ndarray, " 25"] | None = None
    body_pose: Float[ndarray, " 6"] | None = None
    """Neck, then head axis-angle, radians."""
    image: bytes | None = None
    mask: bytes | None = None
    """Encoded by `data.layout`; None unless accepted."""
    hash: int | None = None
    """64-bit perceptual hash of the crop, to find the same picture twice."""


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


# ---- chunks and their part files ----

THUMBNAIL = 96
"""Longer side of the small pictures of the report, pixels."""
UNREADABLE = "unreadable"
LONGEST_READING = 120.0
"""Seconds that a photo may take: hundreds of times what one takes, so that only those that never end are given up."""
_OUTCOMES = "outcomes.json"
_IMAGE, _MASK, _SMALL = "image.webp", "mask.png", "small.webp"
_LARGEST_CHUNK = 16
PhotoReader = Callable[[PhotoFile], PhotoOutcome]
"""What became of a photo. It must depend on the photo only. A reader may have a method `prepare`, called first: what it
takes to load networks does not count as a photo's time."""
WorkerFactory = Callable[[int, PhotoLimits], PhotoReader]
"""Makes the reader inside a process, of resolution and limits; picklable (a class or function of a module)."""


@dataclass(frozen=True)
class Chunk:
    """Photos whose outcomes lie in one part file."""

    number: int
    files: tuple[PhotoFile, ...]


@dataclass(frozen=True)
class PhotoJob:
    """What is read, and where its parts lie. `longest_reading`: seconds that a photo may take."""

    parts: Path
    files: tuple[PhotoFile, ...]
    resolution: int
    limits: PhotoLimits
    given: UserFiles = field(default_factory=UserFiles)
    longest_reading: float = LONGEST_READING

    @property
    def chunk_size(self) -> int:
        """By the number of photos alone, as the number of workers may change on resuming."""
        return max(1, min(_LARGEST_CHUNK, len(self.files) // 32))

    @property
    def chunks(self) -> int:
        return -(-len(self.files) // self.chunk_size)

    def chunk(self, number: int) -> Chunk:
        """The photos of a chunk."""
        first = number * self.chunk_size
        return Chunk(number, self.files[first : first + self.chunk_size])

    def part(self, number: int) -> Path:
        """The part file of a chunk."""
        return part_file(self.parts, number)


@dataclass(frozen=True)
class Failed:
    """A process has given up; `details` is the traceback, empty for errors that the user can mend."""

    message: str
    hint: str
    kind: type[Portrait360Error]
    details: str

    def error(self, then: str) -> Portrait360Error:
        """The error to raise; `then` says how to continue."""
        error = self.kind(self.message, f"{self.hint} {then}".strip())
        if self.details:
            error.add_note(self.details)
        return error


@dataclass(frozen=True)
class PhotoRecord:
    """What a part file keeps of a photo: its entry in outcomes.json, and pictures by name, less the photo's index."""

    entry: dict[str, Any]
    pictures: dict[str, bytes]


def record(outcome: PhotoOutcome) -> PhotoRecord:
    """What is kept of an outcome."""
    return PhotoRecord(_to_json(outcome), _pictures(outcome))


def part_members(records: Sequence[PhotoRecord]) -> dict[str, bytes]:
    """The members of the part file of a chunk with these photos, in order."""
    members = {
        _member(index, name): content for index, kept in enumerate(records) for name, content in kept.pictures.items()
    }
    return {**members, _OUTCOMES: json.dumps([kept.entry for kept in records]).encode()}


class GuardedReader:
    """A reader of photos in a process of its own: what fails is told, not raised.

    A photo that raises an error is an unreadable one, as the thousands after it shall not wait for it; what the
    user can mend (a model that is missing, say) ends the job.
    """

    def __init__(self, factory: WorkerFactory, resolution: int, limits: PhotoLimits) -> None:
        self._factory, self._resolution, self._limits = factory, resolution, limits

    def prepare(self) -> Failed | None:
        """Make the reader, before anything else; None when that went well."""
        try:
            self._read = self._factory(self._resolution, self._limits)
            prepare = getattr(self._read, "prepare", None)
            if prepare is not None:
                prepare()
        except Portrait360Error as error:
            return Failed(error.message, error.hint, type(error), "")
        except Exception as error:
            message = f"preparing to read photos failed: {type(error).__name__}: {error}"
            return Failed(message, "", DatasetError, traceback.format_exc())
        return None

    def read(self, file: PhotoFile) -> PhotoRecord | Failed:
        """What became of a photo."""
        try:
            return record(self._outcome(file))
        except PhotoError as error:
            return record(PhotoOutcome(file.name, error.reason, error.message))
        except Portrait360Error as error:
            return Failed(error.message, error.hint, type(error), "")

    def _outcome(self, file: PhotoFile) -> PhotoOutcome:
        try:
            outcome = self._read(file)
        except Portrait360Error:
            raise
        except MemoryError:
            return PhotoOutcome(file.name, UNREADABLE, "there is not enough memory to read it.")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}, line {last.lineno}"
            return PhotoOutcome(
                file.name, UNREADABLE, f"reading it failed: {type(error).__name__}: {error} ({where})."
            )  # fmt: skip
        _check(outcome, file)
        return outcome


def is_whole(job: PhotoJob, number: int) -> bool:
    """Whether the part of a chunk is there and holds its photos."""
    try:
        store = open_store(job.part(number))
        outcomes = _outcomes(store)
    except DatasetError:
        return False
    expected = {_OUTCOMES}
    for index, outcome in enumerate(outcomes):
        for person, found in enumerate(outcome.people):
            if found.reason is None:
                expected |= {_member(index, _name(person, kind)) for kind in (_IMAGE, _MASK, _SMALL)}
    names = [outcome.name for outcome in outcomes]
    return set(store.names()) == expected and names == [file.name for file in job.chunk(number).files]


@dataclass(frozen=True)
class KeptPhoto:
    """A photo out of a part file; its people come without pictures."""

    outcome: PhotoOutcome
    store: Store
    index: int

    def picture(self, person: int) -> tuple[bytes, bytes]:
        """Image and mask of an accepted person, encoded as in the dataset."""
        return self._read(person, _IMAGE), self._read(person, _MASK)

    def thumbnail(self, person: int) -> bytes:
        """A small WebP of an accepted person."""
        return self._read(person, _SMALL)

    def _read(self, person: int, kind: str) -> bytes:
        return self.store.read(_member(self.index, _name(person, kind)))


def read_photos(job: PhotoJob) -> Iterator[KeptPhoto]:
    """All photos of a job, in order. A broken part is deleted, so that the next run reads its photos again.

    Raises:
        DatasetError: a part is broken.
    """
    for number in range(job.chunks):
        try:
            store = open_store(job.part(number))
            for index, outcome in enumerate(_outcomes(store)):
                yield KeptPhoto(outcome, store, index)
        except DatasetError as error:
            job.part(number).unlink(missing_ok=True)
            raise DatasetError(
                f"the part {job.part(number)} was broken and is deleted.", "Run the same command again."
            ) from error


def _check(outcome: PhotoOutcome, file: PhotoFile) -> None:
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
            raise DatasetError(f"{where} lacks a picture or a label.")
        if not (np.isfinite(person.camera).all() and np.isfinite(person.body_pose).all()):
            raise DatasetError(f"{where} has a label that is not finite.")


def _member(index: int, name: str) -> str:
    return f"{index:04d}-{name}"


def _name(person: int, kind: str) -> str:
    return f"{person:02d}.{kind}"


def _pictures(outcome: PhotoOutcome) -> dict[str, bytes]:
    pictures = {}
    for number, person in enumerate(outcome.people):
        if person.reason is None:
            assert person.image is not None
            assert person.mask is not None
            pictures[_name(number, _IMAGE)] = person.image
            pictures[_name(number, _MASK)] = person.mask
            pictures[_name(number, _SMALL)] = _small(person.image)
    return pictures


def _small(image: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(image)) as picture:
        small = picture.convert("RGB")
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
    return PhotoOutcome(entry["name"], entry["reason"], entry["detail"], size, tuple(people))
