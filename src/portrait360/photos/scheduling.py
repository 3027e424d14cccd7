"""Hand the photos of a job out to processes, one at a time, and write the part of a chunk when all its photos are read.

Engines say how processes are started, spoken to and ended (`Crew`); the rest is here, so that each gives the same
dataset. A photo that ends its process, or keeps it too long, is tried once more and then given up: it costs itself, not
the job.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from portrait360.photos.records import (
    UNREADABLE,
    Failed,
    PhotoFile,
    PhotoJob,
    PhotoOutcome,
    PhotoRecord,
    part_members,
    record,
)
from portrait360.runtime.job_files import has_parts, write_part
from portrait360.runtime.progress import Progress
from portrait360.types import DatasetError

TRIES = 2
"""A photo that ended or kept so many processes is not read again."""
MOST_FAILURES = 20
"""So many tries that failed so one after the other, no photo read in between, are no fault of the photos."""
STEP = 1.0
"""Seconds after which the clock is looked at, when nothing happens."""

P = TypeVar("P")


class ProcessDiedError(Exception):
    """A process has ended where an answer was expected; the message says how, in a few words."""


class Crew(ABC, Generic[P]):
    """The processes of an engine, each with a `GuardedReader`."""

    @abstractmethod
    def start(self) -> P:
        """A new process, which prepares its reader."""

    @abstractmethod
    def give(self, process: P, file: PhotoFile) -> None:
        """Have it read a photo."""

    @abstractmethod
    def ready(self, processes: Sequence[P], seconds: float) -> Sequence[P]:
        """Wait until some of these, all of which prepare or read, have an answer or have died, `seconds` at most."""

    @abstractmethod
    def answer(self, process: P) -> PhotoRecord | Failed | None:
        """What one that is ready gave back; None when it has prepared its reader. Raises ProcessDiedError."""

    @abstractmethod
    def stop(self, process: P) -> None:
        """End it at once, whatever it does, if it has not ended by itself."""


@dataclass(frozen=True)
class _Photo:
    """A photo, its chunk and its place there."""

    number: int
    index: int
    file: PhotoFile


@dataclass
class _Try:
    """A photo that a process is reading, and the seconds that it has had."""

    photo: _Photo
    seconds: float = 0.0


class Scheduler(Generic[P]):
    """Reads chunks of a job with a crew.

    Args:
        job: what is read.
        missing: numbers of the chunks.
        crew: where processes come from.
        progress: told of each photo.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        job: PhotoJob,
        missing: Iterable[int],
        crew: Crew[P],
        progress: Progress,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._crew, self._progress, self._now = job, crew, progress, now
        self._chunks = deque(missing)
        self._photos: deque[_Photo] = deque()
        self._records: dict[int, dict[int, PhotoRecord]] = {}
        self._preparing: list[P] = []
        self._idle: list[P] = []
        self._reading: dict[P, _Try] = {}
        self._failures: defaultdict[str, list[str]] = defaultdict(list)
        self._failures_in_a_row = 0
        self._any_prepared = False

    def run(self, workers: int) -> None:
        """Write the parts, with `workers` processes at most.

        Raises:
            Portrait360Error: what a process failed with; the other parts are kept.
            DatasetError: try after try fails.
        """
        now = self._now()
        try:
            while self._occupy(workers):
                ready = self._crew.ready([*self._preparing, *self._reading], STEP)
                before, now = now, self._now()
                passed = min(now - before, 2 * STEP)  # a longer step: the machine slept, or this process was stopped
                for attempt in self._reading.values():
                    attempt.seconds += passed
                for process in ready:
                    self._listen(process)
                self._stop_late_ones()
        finally:
            for process in (*self._preparing, *self._idle, *self._reading):
                self._crew.stop(process)

    def _occupy(self, workers: int) -> bool:
        """Give photos to processes that wait, and start processes for the rest; False when all photos are read."""
        while self._idle and self._left():
            process, photo = self._idle.pop(), self._next()
            self._reading[process] = _Try(photo)
            self._crew.give(process, photo.file)
        while self._left() > len(self._preparing) and len(self._preparing) + len(self._reading) < workers:
            self._preparing.append(self._crew.start())
        return bool(self._reading or self._left())

    def _left(self) -> int:
        """How many photos wait, at least; 0 when none does."""
        return len(self._photos) + len(self._chunks)

    def _next(self) -> _Photo:
        if not self._photos:
            chunk = self._job.chunk(self._chunks.popleft())
            self._photos.extend(_Photo(chunk.number, index, file) for index, file in enumerate(chunk.files))
        return self._photos.popleft()

    def _listen(self, process: P) -> None:
        attempt = self._reading.pop(process, None)
        if attempt is None:
            self._preparing.remove(process)
        self._idle.append(process)
        try:
            answer = self._crew.answer(process)
        except ProcessDiedError as death:
            self._idle.remove(process)
            self._crew.stop(process)
            self._bury(attempt, death)
            return
        if isinstance(answer, Failed):
            raise answer.error(self._then())
        self._any_prepared = True
        if attempt is not None:
            assert answer is not None
            self._failures_in_a_row = 0
            self._keep(attempt.photo, answer)

    def _bury(self, attempt: _Try | None, death: ProcessDiedError) -> None:
        """A process died, while it read a photo or while it prepared."""
        self._failures_in_a_row += 1
        if not self._any_prepared or self._failures_in_a_row >= MOST_FAILURES:
            raise DatasetError(
                f"a process that reads photos ended unexpectedly ({death}).",
                f"Perhaps memory ran out; try fewer `workers`. {self._then()}".strip(),
            ) from death
        if attempt is not None:
            self._try_again(attempt.photo, "the process died while reading it")

    def _stop_late_ones(self) -> None:
        limit = self._job.longest_reading
        late = [process for process, attempt in self._reading.items() if attempt.seconds > limit]
        for process in late:
            photo = self._reading.pop(process).photo
            self._crew.stop(process)
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MOST_FAILURES:
                raise DatasetError(
                    f"reading took longer than {limit:g} seconds for photo after photo, last for {photo.file.name}.",
                    f"Perhaps a disk does not answer, or the machine is busy. {self._then()}".strip(),
                )
            self._try_again(photo, f"reading it took longer than {limit:g} seconds")

    def _try_again(self, photo: _Photo, failure: str) -> None:
        """Put a photo back, or give it up."""
        failures = self._failures[photo.file.name]
        failures.append(failure)
        if len(failures) < TRIES:
            self._photos.appendleft(photo)
            return
        first, second = failures
        detail = f"{first}, twice." if first == second else f"{first}; the second time, {second}."
        self._keep(photo, record(PhotoOutcome(photo.file.name, UNREADABLE, detail)))

    def _keep(self, photo: _Photo, kept: PhotoRecord) -> None:
        records = self._records.setdefault(photo.number, {})
        records[photo.index] = kept
        if len(records) == len(self._job.chunk(photo.number).files):
            write_part(self._job.part(photo.number), part_members([records[index] for index in sorted(records)]))
            del self._records[photo.number]
        self._progress.advance(1)

    def _then(self) -> str:
        """How to go on after a failure."""
        return "What was read is kept; run the same command again to continue." if has_parts(self._job.parts) else ""
