"""Read photos with a Ray cluster: the same chunks as `local_engine`, each read by an actor that keeps its networks.

Actors send the content of their part files back, so that only the machine that asked writes; they read the photos
themselves, so that all machines must see the folder under the same path.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Iterable
from typing import Any

from portrait360.data.job_files import write_part
from portrait360.data.progress import Progress
from portrait360.photos.local_engine import MOST_DEATHS, TRIES, death, then
from portrait360.photos.parts import Chunk, ChunkReader, Failed, PhotoJob, WorkerFactory
from portrait360.types import InputError


def check_ray() -> None:
    """Raises InputError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("the engine ray needs Ray.", 'Install it: pip install "portrait360[ray]"')


def read_with_ray(
    job: PhotoJob, missing: Iterable[int], workers: int | None, factory: WorkerFactory, progress: Progress
) -> None:
    """Write the parts of the chunks `missing`.

    Connects to the cluster that RAY_ADDRESS names, or to the one that this process is connected to; without one,
    starts Ray on this machine for the time of the job.

    Args:
        job: what is read.
        missing: numbers of chunks.
        workers: actors, one core each; as many as there are cores when None.
        factory: as for `ChunkReader`.
        progress: told of each chunk.

    Raises:
        Portrait360Error: what an actor failed with; the other parts are kept.
        DatasetError: actors keep dying.
    """
    check_ray()
    import ray  # pyright: ignore[reportMissingImports] - an extra that few install

    waiting = deque(job.chunk(number) for number in missing)
    if not waiting:
        return
    own = not ray.is_initialized()
    if own:
        _connect(ray, workers)
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        _RayReading(ray, job, factory, progress).run(waiting, count)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)


class _RayReading:
    def __init__(self, ray: Any, job: PhotoJob, factory: WorkerFactory, progress: Progress) -> None:
        self.ray, self.job, self.factory, self.progress = ray, job, factory, progress
        self.deaths_in_a_row = 0
        self.actor_class = ray.remote(num_cpus=1, max_restarts=0)(ChunkReader)

    def run(self, waiting: deque[Chunk], count: int) -> None:
        """Keep each of `count` actors busy with one chunk."""
        running: dict[Any, tuple[Any, Chunk]] = {}

        def give(actor: Any) -> None:
            if waiting:
                chunk = waiting.popleft()
                running[actor.read.remote(chunk)] = actor, chunk

        for _ in range(min(count, len(waiting))):
            give(self._start())
        while running:
            finished, _ = self.ray.wait(list(running), num_returns=1)
            for task in finished:
                actor, chunk = running.pop(task)
                try:
                    members = self.ray.get(task)
                except self.ray.exceptions.RayActorError as error:
                    self._count_death(error)
                    actor, chunk = self._without_deadly(chunk)
                    waiting.appendleft(chunk)
                else:
                    self._keep(chunk, members)
                give(actor)

    def _start(self) -> Any:
        return self.actor_class.remote(self.factory, self.job.resolution, self.job.limits)

    def _keep(self, chunk: Chunk, members: dict[str, bytes] | Failed) -> None:
        if isinstance(members, Failed):
            raise members.error(then(self.job))
        write_part(self.job.part(chunk.number), members)
        self.deaths_in_a_row = 0
        self.progress.advance(len(chunk.files))

    def _count_death(self, error: Exception) -> None:
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row >= MOST_DEATHS:
            raise death(self.job, str(error).strip().splitlines()[0]) from error

    def _without_deadly(self, chunk: Chunk) -> tuple[Any, Chunk]:
        """A new actor for a chunk that ended its actor, and the chunk with the photos marked that do so every time.

        Nobody tells which photo it was: each is read alone.
        """
        died = set(chunk.died)
        actor = self._start()
        for file in chunk.files:
            for _ in range(0 if file.name in died else TRIES):
                try:
                    self.ray.get(actor.read.remote(Chunk(chunk.number, (file,))))
                    self.deaths_in_a_row = 0
                    break
                except self.ray.exceptions.RayActorError as error:
                    self._count_death(error)
                    actor = self._start()
            else:
                died.add(file.name)
        return actor, Chunk(chunk.number, chunk.files, frozenset(died))
