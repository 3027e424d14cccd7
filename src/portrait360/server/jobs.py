"""Long work for the viewer, each in a process of its own: inverting photos, writing a portrait's files.

A process of its own leaves the page responsive, gives its memory back, and can be stopped. It writes its files itself,
so that they are complete even when the server has gone meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

from portrait360.portrait.model import PortraitModel
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import observed_progress
from portrait360.server.people import PORTRAIT_FILE, Source
from portrait360.types import InputError, Portrait360Error

State = Literal["waiting", "running", "done", "failed", "stopped"]
_MOST_WAITING = 20

_Message = tuple[str, Any]


class Task(Protocol):
    """Work that another process can do: its fields can be sent there."""

    @property
    def folder(self) -> Path:
        """Where its files go."""
        ...

    def run(self) -> list[str]:
        """Do it, and return warnings."""
        ...


@dataclass(frozen=True)
class SaveFiles:
    """Write what `generate` writes."""

    source: Source
    folder: Path
    weights: Path

    def run(self) -> list[str]:
        """Make the portrait again and write its files."""
        self.source.portrait(PortraitModel.from_pretrained(self.weights)).save(self.folder)
        return []


@dataclass(frozen=True)
class InvertPhotos:
    """Make a portrait from photos and write its files."""

    photos: tuple[Path, ...]
    folder: Path
    weights: Path
    fast: bool
    force: bool

    def run(self) -> list[str]:
        """Invert; the warnings are those of the portrait's report."""
        model = PortraitModel.from_pretrained(self.weights, device="cpu")
        portrait = model.invert(self.photos, fast=self.fast, force=self.force, progress=False)
        portrait.save(self.folder)
        left_out = [f"{photo['name']}: {photo['detail']}" for photo in portrait.report.get("refused", [])]
        return [*left_out, *portrait.report["warnings"]]


@dataclass
class Job:
    """How far some work is."""

    number: int
    task: Task
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    error: tuple[str, str] | None = None
    """A sentence and a hint."""
    warnings: list[str] = field(default_factory=list)
    person: int | None = None
    """Whom it made."""
    process: Any = None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "stopped")

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        error, hint = self.error or (None, None)
        known = {"id": self.number, "state": self.state, "stage": self.stage, "done": self.done, "total": self.total}
        place = str(self.task.folder)
        return known | {
            "error": error,
            "hint": hint,
            "warnings": self.warnings,
            "person": self.person,
            "folder": place,
        }


class Jobs:
    """Does one job after the other."""

    def __init__(self, finished: Callable[[Job], None]) -> None:
        """`finished` is called with each job that went well, before its state says so."""
        self._finished = finished
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def add(self, task: Task) -> Job:
        """Queue some work.

        Raises:
            InputError: too much is waiting.
        """
        with self._lock:
            if sum(not job.over for job in self._jobs.values()) >= _MOST_WAITING:
                raise InputError("too much work is waiting.", "Wait until some of it is done.")
            job = Job(next(self._numbers), task)
            self._jobs[job.number] = job
            self._changed.notify_all()
            return job

    def find(self, number: int) -> Job:
        """Raises InputError where there is no such job."""
        with self._lock:
            job = self._jobs.get(number)
        if job is None:
            raise InputError(f"there is no job {number}.", "Reload the page.")
        return job

    def stop(self, job: Job) -> None:
        """End a job as Ctrl-C would: an inversion keeps the best so far."""
        with self._lock:
            if job.state == "waiting":
                job.state = "stopped"
            process = job.process
        if process is not None and process.is_alive():
            _interrupt(process)

    def close(self) -> None:
        """End all jobs, and wait for what they keep."""
        with self._lock:
            self._closing = True
            waiting = list(self._jobs.values())
            self._changed.notify_all()
        for job in waiting:
            self.stop(job)
        self._thread.join()

    # ---- the thread ----

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._do(job)

    def _next(self) -> Job | None:
        with self._lock:
            while True:
                job = next((job for job in self._jobs.values() if job.state == "waiting"), None)
                if job is not None and not self._closing:
                    job.state = "running"
                    return job
                if self._closing:
                    return None
                self._changed.wait()

    def _do(self, job: Job) -> None:
        """Run a job's process and follow it to its end."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(job.task, theirs), daemon=False)
        process.start()
        theirs.close()
        with self._lock:
            job.process = process

        # Its messages, until it says how it ended or is gone
        ended: _Message = ("failed", ("the work ended without a result.", "See the terminal of the server."))
        try:
            while True:
                kind, value = ours.recv()
                if kind != "progress":
                    ended = (kind, value)
                    break
                job.stage, job.done, job.total = value
        except EOFError:
            pass
        process.join()
        self._end(job, *ended)

    def _end(self, job: Job, kind: str, value: Any) -> None:
        if kind == "done":
            job.warnings = value
            try:
                self._finished(job)
                job.state = "done"
            except Portrait360Error as error:
                job.error, job.state = (error.message, error.hint), "failed"
        elif kind == "stopped":
            job.state = "stopped"
        else:
            job.error, job.state = value, "failed"


def _interrupt(process: Any) -> None:
    if sys.platform == "win32":
        process.terminate()
    else:
        os.kill(process.pid, signal.SIGINT)


def _run(task: Task, messages: Connection) -> None:
    """What the process does. A server that has gone does not end it."""

    def say(kind: str, value: Any) -> None:
        with contextlib.suppress(OSError):
            messages.send((kind, value))

    try:
        settle_process()
        with observed_progress(lambda stage, done, total: say("progress", (stage, done, total))):
            warnings = task.run()
        say("done", warnings)
    except Portrait360Error as error:
        say("failed", (error.message, error.hint))
    except KeyboardInterrupt:
        say("stopped", None)


def free_folder(place: Path, name: str) -> Path:
    """A folder in `place` that holds no portrait yet, called `name` or with a number behind it."""
    for number in itertools.count(1):
        folder = place / (name if number == 1 else f"{name}-{number}")
        if not (folder / PORTRAIT_FILE).exists():
            return folder
    raise AssertionError("there are folders without end")
