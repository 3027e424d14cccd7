"""Read photos with actors of a Ray cluster, each of which keeps its networks.

Actors give back what they read, so that only the machine that asked writes; they open the photos themselves, so that
all machines must see the folder under the same path.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from portrait360.photos.records import Failed, GuardedReader, PhotoFile, PhotoJob, PhotoRecord, WorkerFactory
from portrait360.photos.scheduling import Crew, ProcessDiedError, Scheduler
from portrait360.runtime.progress import Progress
from portrait360.types import InputError

_STORE_BYTES = 256 * 2**20
"""Memory for answers on their way, of a Ray started for the job; by itself Ray takes a third of what there is."""


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
        factory: as for `GuardedReader`.
        progress: told of each photo.

    Raises:
        Portrait360Error: what an actor failed with; the other parts are kept.
        DatasetError: actors keep dying, or photos take too long one after the other.
    """
    check_ray()
    import ray

    missing = list(missing)
    if not missing:
        return
    own = not ray.is_initialized()
    if own:
        _connect(ray, workers)
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        Scheduler(job, missing, _RayCrew(ray, job, factory), progress).run(count)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine unless the user wants it to
    ray.init(
        address="local",
        num_cpus=workers,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


class _Actor:
    """An actor, and what it was asked last; None when it has answered."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.task = handle.prepare.remote()


class _RayCrew(Crew[_Actor]):
    def __init__(self, ray: Any, job: PhotoJob, factory: WorkerFactory) -> None:
        actor_class = ray.remote(num_cpus=1, max_restarts=0)(GuardedReader)
        self._ray = ray
        self._new = functools.partial(actor_class.remote, factory, job.resolution, job.limits)

    def start(self) -> _Actor:
        return _Actor(self._new())

    def give(self, process: _Actor, file: PhotoFile) -> None:
        process.task = process.handle.read.remote(file)

    def ready(self, processes: Sequence[_Actor], seconds: float) -> list[_Actor]:
        by_task = {process.task: process for process in processes}
        tasks, _ = self._ray.wait(list(by_task), num_returns=1, timeout=seconds)
        return [by_task[task] for task in tasks]

    def answer(self, process: _Actor) -> PhotoRecord | Failed | None:
        task, process.task = process.task, None
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            raise ProcessDiedError(str(error).strip().splitlines()[0]) from error

    def stop(self, process: _Actor) -> None:
        self._ray.kill(process.handle)
