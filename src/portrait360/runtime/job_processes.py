"""Processes that work on the pieces of a long job, each with a pipe to the parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Worker:
    """Parent's side of a working process.

    Attributes:
        work: what it is working on, as `give` sent it; None when it waits for more.
        connection: messages come out of it.
    """

    def __init__(self, main: Callable[..., None], *arguments: Any) -> None:
        """Start `main(connection, *arguments)`, all picklable, in a process of its own."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.work: Any = None
        self.process = context.Process(target=main, args=(theirs, *arguments), daemon=True)
        with _child_settings():
            self.process.start()
        theirs.close()

    def give(self, work: Any) -> None:
        """Send it something to work on."""
        self.work = work
        with contextlib.suppress(BrokenPipeError):  # it has just died; its sentinel tells
            self.connection.send(work)

    def stop(self) -> None:
        """End the process now. What it has not written is lost; parts stay whole."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()


W = TypeVar("W", bound=Worker)


def ready(workers: Sequence[W], seconds: float | None = None) -> list[W]:
    """Wait until some workers have a message or have died; these. None when `seconds` went by without."""
    by_handle: dict = {worker.connection: worker for worker in workers}
    by_handle.update({worker.process.sentinel: worker for worker in workers})
    found = {id(by_handle[handle]): by_handle[handle] for handle in wait(list(by_handle), seconds)}
    return list(found.values())


def settle_in_child() -> None:
    """First words of a working process: Ctrl-C is for the parent, and without the parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def send(connection: Connection, message: Any) -> None:
    """Send to the parent, if it still listens."""
    with contextlib.suppress(BrokenPipeError):
        connection.send(message)


def _die_with_parent() -> None:
    """Wait for the end of the parent, however it comes (also by kill -9), and end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _child_settings() -> Iterator[None]:
    """Settings for processes started inside.

    One thread each, as there is a process per core; and deaf to Ctrl-C, which reaches the whole group of
    processes while only the parent shall answer.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    in_main_thread = threading.current_thread() is threading.main_thread()
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
