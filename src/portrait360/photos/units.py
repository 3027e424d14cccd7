"""The units of work of `dataset photos`: photos, read in processes, whose outcomes lie in part files (`records`)."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from portrait360.photos.gates import PhotoLimits
from portrait360.photos.records import (
    KeptPhoto,
    PhotoError,
    PhotoFile,
    PhotoOutcome,
    PhotoRecord,
    check_outcome,
    is_whole,
    part_members,
    read_part,
    record,
)
from portrait360.photos.user_files import UserFiles
from portrait360.runtime.jobs import Job, broken_part
from portrait360.types import DatasetError, Portrait360Error

UNREADABLE = "unreadable"
LONGEST_READING = 120.0
"""Seconds that a photo may take: hundreds of times what one takes, so that only those that never end are given up."""
PhotoReader = Callable[[PhotoFile], PhotoOutcome]
"""What became of a photo. It must depend on the photo only. A reader may have a method `prepare`, called first: what it
takes to load networks does not count as a photo's time."""
WorkerFactory = Callable[[int, PhotoLimits], PhotoReader]
"""Makes the reader inside a process, of resolution and limits; picklable (a class or function of a module)."""


@dataclass(frozen=True)
class PhotoJob(Job[PhotoFile, PhotoRecord]):
    """What is read, and where its parts lie. `longest`: seconds that a photo may take."""

    verb: ClassVar[str] = "reading"
    noun: ClassVar[str] = "photos"
    largest_chunk: ClassVar[int] = 16
    tries: ClassVar[int] = 2

    parts: Path
    files: tuple[PhotoFile, ...]
    resolution: int
    limits: PhotoLimits
    factory: WorkerFactory
    given: UserFiles = field(default_factory=UserFiles)
    longest: float = LONGEST_READING

    @property
    def units(self) -> tuple[PhotoFile, ...]:
        return self.files

    def worker(self) -> GuardedReader:
        return GuardedReader(self.factory, self.resolution, self.limits)

    def members(self, results: Sequence[PhotoRecord]) -> dict[str, bytes]:
        return part_members(results)

    def is_whole(self, number: int) -> bool:
        return is_whole(self.part(number), [file.name for file in self.chunk(number)])

    def given_up(self, unit: PhotoFile, failures: Sequence[str]) -> PhotoRecord:
        first, second = failures
        detail = f"{first}, twice." if first == second else f"{first}; the second time, {second}."
        return record(PhotoOutcome(unit.name, UNREADABLE, detail))


class GuardedReader:
    """Reads single photos in a process of its own (`UnitWorker`).

    A photo that raises an error is an unreadable one, as the thousands after it shall not wait for it; what the
    user can mend (a model that is missing, say) ends the job.
    """

    def __init__(self, factory: WorkerFactory, resolution: int, limits: PhotoLimits) -> None:
        self._factory, self._resolution, self._limits = factory, resolution, limits
        self._read: PhotoReader | None = None

    def prepare(self) -> None:
        self._read = self._factory(self._resolution, self._limits)
        prepare = getattr(self._read, "prepare", None)
        if prepare is not None:
            prepare()

    def describe(self, unit: PhotoFile) -> str:
        return f"reading {unit.name}"

    def __call__(self, unit: PhotoFile) -> PhotoRecord:
        try:
            return record(self._outcome(unit))
        except PhotoError as error:
            return record(PhotoOutcome(unit.name, error.reason, error.message))

    def _outcome(self, file: PhotoFile) -> PhotoOutcome:
        assert self._read is not None
        try:
            outcome = self._read(file)
        except Portrait360Error:
            raise
        except MemoryError:
            return PhotoOutcome(file.name, UNREADABLE, "there is not enough memory to read it.")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}, line {last.lineno}"
            sentence = f"reading it failed: {type(error).__name__}: {error} ({where})."
            return PhotoOutcome(file.name, UNREADABLE, sentence)
        check_outcome(outcome, file)
        return outcome


def read_photos(job: PhotoJob) -> Iterator[KeptPhoto]:
    """All photos of a job, in order. A broken part is deleted, so that the next run reads its photos again.

    Raises:
        DatasetError: a part is broken.
    """
    for number in range(job.chunks):
        try:
            yield from read_part(job.part(number))
        except DatasetError as error:
            raise broken_part(job.part(number)) from error
