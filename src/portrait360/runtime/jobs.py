"""Long work that may be stopped at any time: many processes, and the same bytes in the end.

A job has units, whose results depend on the unit alone, in chunks, whose results lie in a part file each (`job_files`)
until the output is put together. Processes (`job_processes`) do one unit at a time; only this process writes. A run
that was killed loses the chunks under way.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from portrait360.runtime.files import make_folder
from portrait360.runtime.job_files import (
    check_same_job,
    has_parts,
    locked,
    nothing_left_when_empty,
    part_file,
    remove_leftovers,
    write_part,
)
from portrait360.runtime.job_processes import Crew, Failed, ProcessDiedError, UnitWorker, open_crew
from portrait360.runtime.progress import Progress, show_progress
from portrait360.types import DatasetError, InputError

MOST_FAILURES = 20
"""So many tries that failed one after the other, no unit done in between, are no fault of the units."""
STEP = 1.0
"""Seconds after which the clock is read, when nothing happens."""
_FEWEST_CHUNKS = 32
"""Chunks that a job has at least, if it has so many units."""

U = TypeVar("U")
R = TypeVar("R")
P = TypeVar("P")
T = TypeVar("T")


class Job(ABC, Generic[U, R]):
    """What is done (units U), what comes of it (results R), and where that is kept.

    Attributes:
        parts: folder of the part files.
        units: all of them, in order.
        longest: seconds that a unit may take.
        verb, noun: as in "rendering" "images".
        largest_chunk: units in a part file at most.
        tries: so many processes that died or took too long give a unit up; with 1 the job ends.
        first_alone: whether one process goes ahead until it has done a unit, as it may fetch files for all.
    """

    parts: Path
    longest: float = math.inf
    verb: ClassVar[str]
    noun: ClassVar[str]
    largest_chunk: ClassVar[int]
    tries: ClassVar[int] = 1
    first_alone: ClassVar[bool] = False

    @property
    @abstractmethod
    def units(self) -> Sequence[U]: ...

    @abstractmethod
    def worker(self) -> UnitWorker:
        """What does units in a process."""

    @abstractmethod
    def members(self, results: Sequence[R]) -> Mapping[str, bytes]:
        """The part file of a chunk with these results."""

    @abstractmethod
    def is_whole(self, number: int) -> bool:
        """Whether the part file of a chunk is there and complete."""

    def given_up(self, unit: U, failures: Sequence[str]) -> R:
        """The result of a unit that failed `tries` times: "the process died while reading it", say."""
        raise NotImplementedError

    @property
    def doing(self) -> str:
        return f"{self.verb} {self.noun}"

    @property
    def chunk_size(self) -> int:
        """By the number of units alone, as the number of workers may change on resuming."""
        return max(1, min(self.largest_chunk, len(self.units) // _FEWEST_CHUNKS))

    @property
    def chunks(self) -> int:
        return -(-len(self.units) // self.chunk_size)

    def chunk(self, number: int) -> Sequence[U]:
        """The units of a chunk."""
        first = number * self.chunk_size
        return self.units[first : first + self.chunk_size]

    def part(self, number: int) -> Path:
        """The part file of a chunk."""
        return part_file(self.parts, number)


def run_job(
    job: Job[Any, Any],
    asked: Mapping[str, Any],
    finish: Callable[[], T],
    *,
    workers: int | None,
    engine: str = "local",
    progress: bool = True,
) -> T:
    """Do what a job still lacks and put it together; the folder of parts goes when that is done.

    Args:
        job: what is done.
        asked: plain JSON that distinguishes this job from others, in whose parts it must not go on.
        finish: puts the parts together.
        workers: processes; as many as there are cores when None.
        engine: one of `job_processes.ENGINES`.
        progress: show units done, per second and time left on standard error.

    Returns:
        What `finish` gives.

    Raises:
        Portrait360Error: what a process failed with; the disk is full; the parts are of another job, or another run is
            at work on them; processes die. Finished parts are kept.
        KeyboardInterrupt: after saying how to continue.
    """
    made = make_folder(job.parts)
    try:
        with locked(job.parts, job.doing), nothing_left_when_empty(job.parts, made):
            check_same_job(job.parts, asked)

            # Do the units of the chunks that have no part yet.
            with show_progress(job.verb, len(job.units), job.noun, visible=progress) as bar:
                missing = _missing(job, bar)
                if missing:
                    with open_crew(engine, job.worker(), workers) as (crew, most):
                        Scheduler(job, missing, crew, bar).run(most)

            # Put the parts together.
            result = finish()
            shutil.rmtree(job.parts, ignore_errors=True)
            return result
    except KeyboardInterrupt:
        done = sum(len(job.chunk(number)) for number in range(job.chunks) if job.part(number).exists())
        kept = f"{done} of {len(job.units)} {job.noun} are kept in {job.parts}" if done else "Nothing was finished yet"
        print(f"\nStopped. {kept}; run the same command again to continue.", file=sys.stderr)
        raise


def _missing(job: Job[Any, Any], bar: Progress) -> list[int]:
    """The chunks that have no part yet."""
    missing = []
    for number in range(job.chunks):
        if job.is_whole(number):
            bar.skip(len(job.chunk(number)))
        else:
            missing.append(number)
    remove_leftovers(job.parts)
    return missing


def broken_part(path: Path) -> DatasetError:
    """Delete a part that cannot be read, so that the next run makes it again; the error to raise."""
    path.unlink(missing_ok=True)
    return DatasetError(f"the part {path} was broken and is deleted.", "Run the same command again.")


# ---- who does which unit ----


@dataclass(frozen=True)
class _Place(Generic[U]):
    """A unit, its chunk and its place there."""

    chunk: int
    index: int
    unit: U


@dataclass
class _Try(Generic[U]):
    """A unit that a process is doing, and the seconds that it has had."""

    place: _Place[U]
    seconds: float = 0.0


class Scheduler(Generic[P]):
    """Hands units out to processes, one at a time, and writes the part of a chunk when all its units are done.

    A unit that ends its process, or keeps it too long, is tried as often as the job allows and then given up: it costs
    itself, not the job.

    Args:
        job: what is done.
        missing: numbers of the chunks to do.
        crew: where processes come from.
        progress: advanced with each unit.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        job: Job[Any, Any],
        missing: Iterable[int],
        crew: Crew[P],
        progress: Progress,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._crew, self._progress, self._now = job, crew, progress, now
        self._chunks = deque(missing)
        self._waiting: deque[_Place[Any]] = deque()
        self._results: dict[int, dict[int, Any]] = {}
        self._preparing: list[P] = []
        self._idle: list[P] = []
        self._working: dict[P, _Try[Any]] = {}
        self._failures: defaultdict[_Place[Any], list[str]] = defaultdict(list)
        self._failures_in_a_row = 0
        self._any_prepared = self._any_done = False

    def run(self, workers: int) -> None:
        """Write the parts, with `workers` processes at most.

        Raises:
            Portrait360Error: what a process failed with; the other parts are kept.
            DatasetError: try after try fails.
        """
        now = self._now()
        try:
            while self._occupy(workers):
                ready = self._crew.ready([*self._preparing, *self._working], STEP)
                before, now = now, self._now()
                passed = min(now - before, 2 * STEP)  # a longer step: the machine slept, or this process was stopped
                for attempt in self._working.values():
                    attempt.seconds += passed
                for process in ready:
                    self._listen(process)
                self._stop_late_ones()
        finally:
            for process in (*self._preparing, *self._idle, *self._working):
                self._crew.stop(process)

    def _occupy(self, workers: int) -> bool:
        """Give units to processes that wait, and start processes for the rest; False when all units are done."""
        while self._idle and self._left():
            process, place = self._idle.pop(), self._next()
            self._working[process] = _Try(place)
            self._crew.give(process, place.unit)
        most = 1 if self._job.first_alone and not self._any_done else workers
        while self._left() > len(self._preparing) and len(self._preparing) + len(self._working) < most:
            self._preparing.append(self._crew.start())
        return bool(self._working or self._left())

    def _left(self) -> int:
        """How many units wait, at least; 0 when none does."""
        return len(self._waiting) + len(self._chunks)

    def _next(self) -> _Place[Any]:
        if not self._waiting:
            chunk = self._chunks.popleft()
            self._waiting.extend(_Place(chunk, index, unit) for index, unit in enumerate(self._job.chunk(chunk)))
        return self._waiting.popleft()

    def _listen(self, process: P) -> None:
        """Take the answer of a process that is ready."""
        attempt = self._working.pop(process, None)
        if attempt is None:
            self._preparing.remove(process)
        self._idle.append(process)

        # A process that died is replaced, its unit is tried again.
        try:
            answer = self._crew.answer(process)
        except ProcessDiedError as death:
            self._idle.remove(process)
            self._crew.stop(process)
            self._bury(attempt, death)
            return

        # One that lives has failed for good, has prepared, or has done a unit.
        if isinstance(answer, Failed):
            raise answer.error(self._then())
        self._any_prepared = True
        if attempt is not None:
            self._failures_in_a_row, self._any_done = 0, True
            self._keep(attempt.place, answer)

    def _bury(self, attempt: _Try[Any] | None, death: ProcessDiedError) -> None:
        """A process died, while it worked on a unit or while it prepared."""
        self._failures_in_a_row += 1
        hopeless = not self._any_prepared or self._job.tries == 1 or self._failures_in_a_row >= MOST_FAILURES
        if hopeless:
            raise DatasetError(
                f"a process that was {self._job.doing} ended unexpectedly ({death}).",
                f"Perhaps memory ran out; try fewer `workers`. {self._then()}".strip(),
            ) from death
        if attempt is not None:
            self._try_again(attempt.place, f"the process died while {self._job.verb} it")

    def _stop_late_ones(self) -> None:
        """Stop the processes whose unit has had more than its time."""
        limit, verb = self._job.longest, self._job.verb
        late = [process for process, attempt in self._working.items() if attempt.seconds > limit]
        for process in late:
            place = self._working.pop(process).place
            unit = place.unit
            self._crew.stop(process)
            self._failures_in_a_row += 1
            if self._job.tries == 1 or self._failures_in_a_row >= MOST_FAILURES:
                raise DatasetError(
                    f"{verb} {self._job.noun} took longer than {limit:g} seconds one after the other, last {unit}.",
                    f"Perhaps a disk does not answer, or the machine is busy. {self._then()}".strip(),
                )
            self._try_again(place, f"{verb} it took longer than {limit:g} seconds")

    def _try_again(self, place: _Place[Any], failure: str) -> None:
        """Put a unit back, or give it up."""
        failures = self._failures[place]
        failures.append(failure)
        if len(failures) < self._job.tries:
            self._waiting.appendleft(place)
        else:
            self._keep(place, self._job.given_up(place.unit, failures))

    def _keep(self, place: _Place[Any], result: Any) -> None:
        """Keep a result; write the part of its chunk if it was the last one."""
        results = self._results.setdefault(place.chunk, {})
        results[place.index] = result
        if len(results) == len(self._job.chunk(place.chunk)):
            members = self._job.members([results[index] for index in sorted(results)])
            try:
                write_part(self._job.part(place.chunk), members)
            except InputError as error:
                raise InputError(error.message, f"{error.hint} {self._then()}".strip()) from error
            del self._results[place.chunk]
        self._progress.advance(1)

    def _then(self) -> str:
        """How to go on after a failure."""
        kept = f"Finished {self._job.noun} are kept; run the same command again to continue."
        return kept if has_parts(self._job.parts) else ""
