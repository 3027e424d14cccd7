"""The processes that do the units of a job: on this machine with pipes, or as actors of a Ray cluster.

Ray's actors give back what they made, so that only the machine that asked writes. What units name (files, say) all
machines must see under the same path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from portrait360.types import DatasetError, InputError, Portrait360Error

ENGINES = ("local", "ray")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_RAY_STORE_BYTES = 256 * 2**20
"""Memory for results on their way, of a Ray started for the job; by itself Ray takes a third of what there is."""


# ---- inside of a process ----


class UnitWorker(Protocol):
    """Does units in a process of its own; picklable."""

    def prepare(self) -> None:
        """Load what the units need; the time that it takes is no unit's."""

    def describe(self, unit: Any) -> str:
        """What is being done with a unit, for instance "rendering image 3"."""
        ...

    def __call__(self, unit: Any) -> Any:
        """The result of a unit; picklable. It must depend on the unit only."""


@dataclass(frozen=True)
class Failed:
    """A process has given up; `details` is the traceback, empty for errors that the user can mend."""

    message: str
    hint: str
    kind: type[Portrait360Error]
    details: str

    @classmethod
    def of(cls, error: Exception, doing: str) -> Failed:
        """What an error says; `doing` comes first where it is none of ours."""
        if isinstance(error, Portrait360Error):
            return cls(error.message, error.hint, type(error), "")
        message = f"{doing} failed: {type(error).__name__}: {error}"
        return cls(message, "", DatasetError, "".join(traceback.format_exception(error)))

    def error(self, then: str) -> Portrait360Error:
        """The error to raise; `then` says how to continue."""
        error = self.kind(self.message, f"{self.hint} {then}".strip())
        if self.details:
            error.add_note(self.details)
        return error


class GuardedWorker:
    """A worker whose errors come back as `Failed`, so that they pass from process to process whatever they hold."""

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker

    def prepare(self) -> Failed | None:
        """Prepare; None when that went well."""
        try:
            self._worker.prepare()
        except Exception as error:
            return Failed.of(error, "preparing")
        return None

    def do(self, unit: Any) -> Any:
        """The result of a unit, or `Failed`."""
        try:
            return self._worker(unit)
        except Exception as error:
            return Failed.of(error, self._worker.describe(unit))


def _main(connection: Connection, worker: UnitWorker) -> None:
    """Main function of a process of this machine: do the units that come, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    warnings.simplefilter("ignore")  # what libraries say of odd files would run through the progress bar
    threading.Thread(target=_die_with_parent, daemon=True).start()
    guarded = GuardedWorker(worker)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(guarded.prepare())
        while True:
            connection.send(guarded.do(connection.recv()))


def _die_with_parent() -> None:
    """Wait for the end of the parent, however it comes (also by kill -9), and end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


# ---- from outside ----

P = TypeVar("P")


class ProcessDiedError(Exception):
    """A process has ended where an answer was expected; the message is how, in a few words."""


class Crew(ABC, Generic[P]):
    """The processes of an engine, each with a `GuardedWorker`."""

    @abstractmethod
    def start(self) -> P:
        """A new process, which prepares its worker."""

    @abstractmethod
    def give(self, process: P, unit: Any) -> None:
        """Have it do a unit."""

    @abstractmethod
    def ready(self, processes: Sequence[P], seconds: float) -> Sequence[P]:
        """Wait until some of these, all of which prepare or work, have an answer or have died, `seconds` at most."""

    @abstractmethod
    def answer(self, process: P) -> Any:
        """A result, `Failed`, or None of one that has prepared, from one that is ready. Raises ProcessDiedError."""

    @abstractmethod
    def stop(self, process: P) -> None:
        """End it at once, whatever it does, if it has not ended by itself."""


class LocalProcess:
    """The parent's side of a process of this machine, which prepares at once."""

    START_METHOD = "spawn"
    """Of `multiprocessing`: a process that shares nothing with its parent, whose threads a fork would not survive."""

    def __init__(self, worker: UnitWorker) -> None:
        context = multiprocessing.get_context(self.START_METHOD)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(theirs, worker), daemon=True)
        with _child_settings():
            self.process.start()
        theirs.close()


@contextlib.contextmanager
def _child_settings() -> Iterator[None]:
    """The environment and signals that processes started inside inherit; they cannot be passed in another way.

    One thread each, as there is a process per core; and deaf to Ctrl-C, which reaches the whole group of processes
    while only the parent shall answer.
    """
    # Remember what holds here.
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    in_main_thread = threading.current_thread() is threading.main_thread()

    # Change it for the time of a start.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class LocalCrew(Crew[LocalProcess]):
    """Processes with pipes."""

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker

    def start(self) -> LocalProcess:
        return LocalProcess(self._worker)

    def give(self, process: LocalProcess, unit: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has just died; its sentinel is ready
            process.connection.send(unit)

    def ready(self, processes: Sequence[LocalProcess], seconds: float) -> list[LocalProcess]:
        by_handle: dict[Any, LocalProcess] = {one.connection: one for one in processes}
        by_handle.update({one.process.sentinel: one for one in processes})
        found = {id(by_handle[handle]): by_handle[handle] for handle in wait(list(by_handle), seconds)}
        return list(found.values())

    def answer(self, process: LocalProcess) -> Any:
        try:
            return process.connection.recv()
        except (EOFError, OSError) as error:  # it ended before, or amidst its answer
            process.process.join()
            raise ProcessDiedError(f"exit code {process.process.exitcode}") from error

    def stop(self, process: LocalProcess) -> None:
        process.process.kill()
        process.process.join()
        process.process.close()
        process.connection.close()


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- Ray ----


def check_engine(engine: str) -> None:
    """Raises InputError when there is no such engine, or it is not installed."""
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine}.", f"Choose {' or '.join(ENGINES)}.")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("the engine ray needs Ray.", 'Install it: pip install "portrait360[ray]"')


@contextlib.contextmanager
def open_crew(engine: str, worker: UnitWorker, workers: int | None) -> Iterator[tuple[Crew[Any], int]]:
    """The crew of an engine, and how many processes it may have.

    "ray" connects to the cluster that RAY_ADDRESS names, or to the one that this process is connected to; without one,
    it starts Ray on this machine for the time of the block.

    Args:
        engine: one of ENGINES.
        worker: what each process does.
        workers: processes; as many as there are cores when None.
    """
    # Processes of this machine need nothing.
    check_engine(engine)
    if engine == "local":
        yield LocalCrew(worker), workers or cores()
        return

    # Ray is connected to, or started and ended.
    import ray

    own = not ray.is_initialized()
    if own:
        _connect(ray, workers)
    try:
        yield RayCrew(ray, worker), workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
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
        object_store_memory=_RAY_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


class Actor:
    """An actor, and what it was asked last; None when it has answered."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.task = handle.prepare.remote()


class RayCrew(Crew[Actor]):
    """Actors of a Ray cluster, one core each."""

    def __init__(self, ray: Any, worker: UnitWorker) -> None:
        self._ray, self._worker = ray, worker
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(GuardedWorker)

    def start(self) -> Actor:
        return Actor(self._actor.remote(self._worker))

    def give(self, process: Actor, unit: Any) -> None:
        process.task = process.handle.do.remote(unit)

    def ready(self, processes: Sequence[Actor], seconds: float) -> list[Actor]:
        by_task = {process.task: process for process in processes}
        tasks, _ = self._ray.wait(list(by_task), num_returns=1, timeout=seconds)
        return [by_task[task] for task in tasks]

    def answer(self, process: Actor) -> Any:
        task, process.task = process.task, None
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            raise ProcessDiedError(str(error).strip().splitlines()[0]) from error

    def stop(self, process: Actor) -> None:
        self._ray.kill(process.handle)
