"""Photos in chunks: read one, keep what became of it in a part file, and read that again.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from portrait360.data.job_files import part_file
from portrait360.data.store import Store, open_store
from portrait360.photos.outcome import PersonOutcome, PhotoError, PhotoFile, PhotoOutcome
from portrait360.photos.quality import REASONS, PhotoLimits
from portrait360.types import DatasetError, Portrait360Error

THUMBNAIL = 96
"""Longer side of the small pictures of the report, pixels."""
UNREADABLE = "unreadable"

_OUTCOMES = "outcomes.json"
_LARGEST_CHUNK = 16

PhotoReader = Callable[[PhotoFile], PhotoOutcome]
"""What became of a photo. It must depend on the photo only."""

WorkerFactory = Callable[[int, PhotoLimits], PhotoReader]
"""Makes the reader inside a process, of resolution and limits; picklable (a class or function of a module)."""


@dataclass(frozen=True)
class Chunk:
    """Photos that one process reads one after the other. `died`: names of those that ended the process twice."""

    number: int
    files: tuple[PhotoFile, ...]
    died: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PhotoJob:
    """What is read, and where its parts lie."""

    parts: Path
    files: tuple[PhotoFile, ...]
    resolution: int
    limits: PhotoLimits

    @property
    def chunk_size(self) -> int:
        """By the number of photos alone, as the number of workers may change on resuming."""
        return max(1, min(_LARGEST_CHUNK, len(self.files) // 32))

    @property
    def chunks(self) -> int:
        return -(-len(self.files) // self.chunk_size)

    def chunk(self, number: int, died: frozenset[str] = frozenset()) -> Chunk:
        """The photos of a chunk."""
        first = number * self.chunk_size
        return Chunk(number, self.files[first : first + self.chunk_size], died)

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


class ChunkReader:
    """Reads chunks, in a process of its own."""

    def __init__(self, factory: WorkerFactory, resolution: int, limits: PhotoLimits) -> None:
        self._read = factory(resolution, limits)

    def read(self, chunk: Chunk, begun: Callable[[int], None] = lambda index: None) -> dict[str, bytes] | Failed:
        """The members of a chunk's part file.

        A photo that raises an error is an unreadable one, as the thousands after it shall not wait for it; what the
        user can mend (a model that is missing, say) ends the job.

        Args:
            chunk: what to read.
            begun: told the index of each photo in the chunk before it is read.
        """
        members: dict[str, bytes] = {}
        entries = []
        for index, file in enumerate(chunk.files):
            begun(index)
            try:
                outcome = self._outcome(file, chunk)
                entries.append(_to_json(outcome))
                members.update(_pictures(index, outcome))
            except PhotoError as error:
                entries.append(_to_json(PhotoOutcome(file.name, error.reason, error.message)))
            except Portrait360Error as error:
                return Failed(error.message, error.hint, type(error), "")
        members[_OUTCOMES] = json.dumps(entries).encode()
        return members

    def _outcome(self, file: PhotoFile, chunk: Chunk) -> PhotoOutcome:
        if file.name in chunk.died:
            return PhotoOutcome(file.name, UNREADABLE, "the process died while reading it, twice.")
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
                expected |= {_member(index, person, kind) for kind in ("image.webp", "mask.png", "small.webp")}
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
        image = self.store.read(_member(self.index, person, "image.webp"))
        return image, self.store.read(_member(self.index, person, "mask.png"))

    def thumbnail(self, person: int) -> bytes:
        """A small WebP of an accepted person."""
        return self.store.read(_member(self.index, person, "small.webp"))


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


def _member(index: int, person: int, kind: str) -> str:
    return f"{index:04d}-{person:02d}.{kind}"


def _pictures(index: int, outcome: PhotoOutcome) -> dict[str, bytes]:
    members = {}
    for number, person in enumerate(outcome.people):
        if person.reason is None:
            assert person.image is not None
            assert person.mask is not None
            members[_member(index, number, "image.webp")] = person.image
            members[_member(index, number, "mask.png")] = person.mask
            members[_member(index, number, "small.webp")] = _small(person.image)
    return members


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
