"""Read photos with processes on this machine. A photo that ends its process costs that photo, not the job."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from portrait360.data.job_files import has_parts, part_file, write_part
from portrait360.data.job_processes import Worker, ready, send, settle_in_child
from portrait360.data.progress import Progress
from portrait360.photos.parts import Chunk, ChunkReader, Failed, PhotoJob, WorkerFactory
from portrait360.photos.quality import PhotoLimits
from portrait360.types import DatasetError, Portrait360Error

TRIES = 2
"""A photo on which so many processes ended is not read again."""
MOST_DEATHS = 10
"""So many processes that ended one after the other, no photo read in between, are no fault of the photos."""


@dataclass(frozen=True)
class _Begun:
    """A process begins with a photo of its chunk."""

    index: int


@dataclass(frozen=True)
class _Finished:
    """A process has written the part of its chunk and waits for the next one."""


class _Process(Worker):
    """A worker, and the photo of its chunk that it is reading."""

    def __init__(self, job: PhotoJob, factory: WorkerFactory) -> None:
        super().__init__(_work, job.parts, job.resolution, job.limits, factory)
        self.index: int | None = None

    def read(self, chunk: Chunk) -> None:
        self.index = None
        self.give(chunk)


def read_locally(
    job: PhotoJob, missing: Iterable[int], workers: int, factory: WorkerFactory, progress: Progress
) -> None:
    """Write the parts of the chunks `missing`, with `workers` processes.

    Raises:
        Portrait360Error: what a process failed with; the other parts are kept.
        DatasetError: processes keep dying.
    """
    _LocalReading(job, missing, factory, progress).run(workers)


class _LocalReading:
    def __init__(self, job: PhotoJob, missing: Iterable[int], factory: WorkerFactory, progress: Progress) -> None:
        self.job, self.factory, self.progress = job, factory, progress
        self.waiting = deque(job.chunk(number) for number in missing)
        self.deaths: Counter[str] = Counter()
        self.deaths_in_a_row = 0
        self.shown: Counter[int] = Counter()
        self.processes: list[_Process] = []

    def run(self, workers: int) -> None:
        try:
            for _ in range(min(workers, len(self.waiting))):
                self._start()
            while any(process.work is not None for process in self.processes):
                for process in ready(self.processes):
                    self._listen(process)
        finally:
            for process in self.processes:
                process.stop()

    def _start(self) -> None:
        self.processes.append(_Process(self.job, self.factory))
        self.processes[-1].read(self.waiting.popleft())

    def _listen(self, process: _Process) -> None:
        try:
            message = process.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(process)
            return
        if isinstance(message, Failed):
            raise message.error(then(self.job))
        if isinstance(message, _Begun):
            process.index = message.index
            if message.index > 0:
                self._show(process.work, message.index)
            return
        self._show(process.work, len(process.work.files))
        process.work = None
        if self.waiting:
            process.read(self.waiting.popleft())

    def _show(self, chunk: Chunk, done: int) -> None:
        """Photos of a chunk are read; those that are read once more, after a death, do not count again."""
        if chunk.files[done - 1].name not in chunk.died:
            self.deaths_in_a_row = 0
        self.progress.advance(max(0, done - self.shown[chunk.number]))
        self.shown[chunk.number] = max(done, self.shown[chunk.number])

    def _bury(self, process: _Process) -> None:
        """Give the chunk of a process that died to a new one, without the photo that it died of twice."""
        self.processes.remove(process)
        process.process.join()
        code = process.process.exitcode
        chunk: Chunk | None = process.work
        process.stop()
        if chunk is None:
            return
        self.deaths_in_a_row += 1
        if process.index is None or self.deaths_in_a_row >= MOST_DEATHS:
            raise death(self.job, f"exit code {code}")
        name = chunk.files[process.index].name
        self.deaths[name] += 1
        died = chunk.died | {name} if self.deaths[name] >= TRIES else chunk.died
        self.waiting.appendleft(Chunk(chunk.number, chunk.files, frozenset(died)))
        self._start()


def then(job: PhotoJob) -> str:
    """How to go on after a failure."""
    if not has_parts(job.parts):
        return ""
    return "What was read is kept; run the same command again to continue."


def death(job: PhotoJob, how: str) -> DatasetError:
    """The error for processes that keep dying."""
    return DatasetError(
        f"a process that reads photos ended unexpectedly ({how}).",
        f"Perhaps memory ran out; try fewer --workers. {then(job)}".strip(),
    )


def _work(connection: Connection, parts: Path, resolution: int, limits: PhotoLimits, factory: WorkerFactory) -> None:
    """Main function of a process: read the chunks that come, until the parent hangs up."""
    settle_in_child()
    try:
        reader = ChunkReader(factory, resolution, limits)
        while True:
            chunk: Chunk = connection.recv()
            members = reader.read(chunk, lambda index: connection.send(_Begun(index)))
            if isinstance(members, Failed):
                send(connection, members)
                return
            write_part(part_file(parts, chunk.number), members)
            connection.send(_Finished())
    except (EOFError, BrokenPipeError):
        return
    except Portrait360Error as error:
        send(connection, Failed(error.message, error.hint, type(error), ""))
    except Exception as error:
        message = f"preparing to read photos failed: {type(error).__name__}: {error}"
        send(connection, Failed(message, "", DatasetError, traceback.format_exc()))
