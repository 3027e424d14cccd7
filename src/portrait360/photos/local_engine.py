"""Read photos with processes on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection

from portrait360.photos.gates import PhotoLimits
from portrait360.photos.records import Failed, GuardedReader, PhotoFile, PhotoJob, PhotoRecord, WorkerFactory
from portrait360.photos.scheduling import Crew, ProcessDiedError, Scheduler
from portrait360.runtime.job_processes import Worker, ready, settle_in_child
from portrait360.runtime.progress import Progress


def read_locally(
    job: PhotoJob, missing: Iterable[int], workers: int, factory: WorkerFactory, progress: Progress
) -> None:
    """Write the parts of the chunks `missing`, with `workers` processes.

    Raises:
        Portrait360Error: what a process failed with; the other parts are kept.
        DatasetError: processes keep dying, or photos take too long one after the other.
    """
    Scheduler(job, missing, _LocalCrew(job, factory), progress).run(workers)


class _LocalCrew(Crew[Worker]):
    """Processes with pipes."""

    def __init__(self, job: PhotoJob, factory: WorkerFactory) -> None:
        self._arguments = factory, job.resolution, job.limits

    def start(self) -> Worker:
        return Worker(_work, *self._arguments)

    def give(self, process: Worker, file: PhotoFile) -> None:
        process.give(file)

    def ready(self, processes: Sequence[Worker], seconds: float) -> list[Worker]:
        return ready(processes, seconds)

    def answer(self, process: Worker) -> PhotoRecord | Failed | None:
        try:
            return process.connection.recv()
        except (EOFError, OSError) as error:  # it ended before, or amidst its answer
            process.process.join()
            raise ProcessDiedError(f"exit code {process.process.exitcode}") from error

    def stop(self, process: Worker) -> None:
        process.stop()


def _work(connection: Connection, factory: WorkerFactory, resolution: int, limits: PhotoLimits) -> None:
    """Main function of a process: read the photos that come, until the parent hangs up."""
    settle_in_child()
    try:
        reader = GuardedReader(factory, resolution, limits)
        connection.send(reader.prepare())
        while True:
            connection.send(reader.read(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
