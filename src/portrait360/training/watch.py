"""What is watched while a run goes on: time, signals, and whether the losses make sense."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from types import FrameType

from portrait360.types import DivergenceError

COLLAPSE_STEPS = 400
"""Steps in a row with an empty or full mask after which a run counts as collapsed."""


class Timer:
    """Minutes since the first step, by one clock."""

    def __init__(self, clock: Callable[[], float], max_minutes: float | None) -> None:
        """`clock` returns seconds; `max_minutes`: how long the run may take, if not for ever."""
        self._clock, self._max_minutes, self._start = clock, max_minutes, clock()

    def start(self) -> None:
        """Count from now on."""
        self._start = self._clock()

    @property
    def minutes(self) -> float:
        """Since `start`."""
        return (self._clock() - self._start) / 60.0

    @property
    def up(self) -> bool:
        """Whether the time is over."""
        return self._max_minutes is not None and self.minutes >= self._max_minutes


class Every:
    """Says when so many images have been shown since the last time."""

    def __init__(self, kimg: float, images: int) -> None:
        self._interval, self._last = kimg * 1000, images

    def due(self, images: int) -> bool:
        """Whether it is time again; then counting begins anew."""
        if images - self._last < self._interval:
            return False
        self._last = images
        return True


class Report:
    """Means of a step's metrics, and the speed, from one report to the next."""

    def __init__(self, timer: Timer, images: int) -> None:
        self._timer, self._images, self._minutes = timer, images, timer.minutes
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in a step's metrics; some come only now and then."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, images: int) -> dict[str, float]:
        """Means since the last report, images per second, and minutes since the run began."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        minutes = self._timer.minutes
        rate = (images - self._images) / max((minutes - self._minutes) * 60.0, 1e-9)
        self._images, self._minutes, self._sums, self._counts = images, minutes, {}, {}
        return means | {"images_per_second": rate, "minutes": minutes}


class Watchdog:
    """Ends a run whose losses are not finite, or whose portraits have vanished."""

    def __init__(self, run: str) -> None:
        self._kept = f"The last good checkpoint is kept in {run}"
        self._collapsed = 0

    def check(self, images: int, values: Mapping[str, float]) -> None:
        """Look at a step's metrics, averaged over all processes.

        Raises:
            DivergenceError: training cannot go on.
        """
        if not all(math.isfinite(value) for value in values.values()):
            raise DivergenceError(
                f"training diverged after {images} images: a loss is not finite.",
                f"{self._kept}; lower the learning rate or raise R1.",
            )
        vanished = values["fake_mask"] < 0.02 < values["real_mask"] or values["fake_mask"] > 0.98
        self._collapsed = self._collapsed + 1 if vanished else 0
        if self._collapsed >= COLLAPSE_STEPS:
            raise DivergenceError(
                f"training collapsed before {images} images: the generated masks are empty or full.",
                f"{self._kept}; start again with another seed or more R1.",
            )


class StopRequests:
    """SIGTERM and Ctrl-C end the run after the step; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = self.interrupted = False

    def __enter__(self) -> StopRequests:
        self._previous = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:  # not in the main thread: signals stay with whoever has them
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.interrupted = self.interrupted or number == signal.SIGINT
