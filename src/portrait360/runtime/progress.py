"""Progress of long work: a bar on terminals, a line now and then in logs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_LOG_SECONDS = 30.0

Observer = Callable[[str, int, int], None]
"""Told the task, the items that are done, and how many there are."""
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observed_progress(observer: Observer) -> Iterator[None]:
    """Tell `observer` of all progress within, shown or not."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


class Progress:
    """Counts finished items. Items that were there before do not count into the speed."""

    def __init__(self, task: str, total: int) -> None:
        self.task, self.total = task, total
        self.done = 0
        self._skipped = 0
        self._start: float | None = None
        self._observer = _observer.get()
        self._tell()

    def skip(self, count: int) -> None:
        """`count` items were there already."""
        self._skipped += count
        self._count(count)

    def advance(self, count: int) -> None:
        """`count` more items are finished."""
        if self._start is None:
            self._start = time.monotonic()
            self._skipped += count  # the first one also waited for the preparation
        self._count(count)

    def rate(self) -> float | None:
        """Items per second, None at the start."""
        if self._start is None or self.done == self._skipped:
            return None
        return (self.done - self._skipped) / max(time.monotonic() - self._start, 1e-9)

    def _count(self, count: int) -> None:
        self.done += count
        self._show()
        self._tell()

    def _tell(self) -> None:
        if self._observer is not None:
            self._observer(self.task, self.done, self.total)

    def _show(self) -> None:
        """What subclasses do to show the state."""


class _Bar(Progress):
    def __init__(self, bar: RichProgress, task: str, total: int, unit: str) -> None:
        super().__init__(task, total)
        self._bar = bar
        self._unit = unit
        self._task = bar.add_task(task, total=total, speed="")

    def _show(self) -> None:
        rate = self.rate()
        speed = "" if rate is None else f"{rate:.1f} {self._unit}/s"
        self._bar.update(self._task, completed=self.done, speed=speed)


class _Lines(Progress):
    def __init__(self, console: Console, task: str, total: int, unit: str) -> None:
        super().__init__(task, total)
        self._console, self._unit = console, unit
        self._next = time.monotonic() + _LOG_SECONDS

    def _show(self) -> None:
        now = time.monotonic()
        rate = self.rate()
        if (now < self._next and self.done < self.total) or rate is None:
            return
        self._next = now + _LOG_SECONDS
        left = int((self.total - self.done) / rate)
        self._console.print(
            f"{self.task}: {self.done} of {self.total} {self._unit}, {rate:.1f}/s,"
            f" {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left",
            highlight=False,
        )


@contextlib.contextmanager
def show_progress(task: str, total: int, unit: str, *, visible: bool = True) -> Iterator[Progress]:
    """Show how far some work is, on standard error: items done, items per second, time left.

    Args:
        task: what is being done, for instance "rendering".
        total: number of items.
        unit: what the items are, for instance "images".
        visible: when False, only count.
    """
    # Nobody watches, or a log is written.
    console = Console(stderr=True)
    if not visible:
        yield Progress(task, total)
    elif not console.is_terminal:
        yield _Lines(console, task, total, unit)

    # A terminal gets a bar.
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=console) as bar:
            yield _Bar(bar, task, total, unit)
