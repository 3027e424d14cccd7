"""Processes that are none: units are done in the test's own process, for tests of what comes afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portrait360.runtime.job_processes import Crew, GuardedWorker, UnitWorker


class HereProcess:
    """A worker, and what it has to answer next."""

    def __init__(self, worker: UnitWorker) -> None:
        self.guarded = GuardedWorker(worker)
        self.answer: Any = self.guarded.prepare()


class HereCrew(Crew[HereProcess]):
    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker

    def start(self) -> HereProcess:
        return HereProcess(self._worker)

    def give(self, process: HereProcess, unit: Any) -> None:
        process.answer = process.guarded.do(unit)

    def ready(self, processes: Sequence[HereProcess], seconds: float) -> Sequence[HereProcess]:
        return processes

    def answer(self, process: HereProcess) -> Any:
        return process.answer

    def stop(self, process: HereProcess) -> None:
        """Nothing to end."""
