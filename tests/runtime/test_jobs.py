"""Who does which unit when processes die or block: with processes that follow a script, and a clock of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from portrait360.photos.gates import PhotoLimits
from portrait360.photos.records import PhotoFile, PhotoOutcome, PhotoRecord, record
from portrait360.photos.units import PhotoJob, read_photos
from portrait360.runtime.job_processes import Crew, Failed, ProcessDiedError
from portrait360.runtime.jobs import MOST_FAILURES, Scheduler
from portrait360.runtime.progress import Progress
from portrait360.types import DatasetError
from support.fake_worker import FakeWorker

LIMIT = 10.0


class ScriptedCrew(Crew[int]):
    """Reads a photo within one step, unless its script has something else, try by try: slow, block or die."""

    def __init__(self, scripts: dict[str, list[str]], step: float = 1.0, prepare: float = 0.0) -> None:
        self.scripts, self.step, self.prepare = scripts, step, prepare
        self.time = 0.0
        self.doing: dict[int, str] = {}
        self.steps: Counter[int] = Counter()
        self.tries: Counter[str] = Counter()
        self.started = self.started_before_the_first = 0

    def now(self) -> float:
        return self.time

    def start(self) -> int:
        self.started += 1
        self.doing[self.started] = ""
        return self.started

    def give(self, process: int, unit: PhotoFile) -> None:
        self.doing[process] = unit.name
        self.steps[process] = 0
        self.tries[unit.name] += 1

    def ready(self, processes: Sequence[int], seconds: float) -> list[int]:
        self.time += self.step
        self.steps.update(processes)
        return [process for process in processes if self._action(process) != "block"]

    def answer(self, process: int) -> PhotoRecord | Failed | None:
        if self._action(process) == "die":
            raise ProcessDiedError("exit code 7")
        name = self.doing[process]
        if name and not self.started_before_the_first:
            self.started_before_the_first = self.started
        return record(PhotoOutcome(name, "no person", "Nobody was found.")) if name else None

    def stop(self, process: int) -> None:
        del self.doing[process]

    def _action(self, process: int) -> str:
        name = self.doing[process]
        if not name:
            return "read" if self.time >= self.prepare else "block"
        script = self.scripts.get(name, ["read"])
        action = script[min(self.tries[name], len(script)) - 1]
        if action == "slow":
            return "block" if self.steps[process] < 4 else "read"
        return action


@dataclass(frozen=True)
class Impatient(PhotoJob):
    """One process goes ahead, and the first failure ends the job, as where images are drawn."""

    first_alone: ClassVar[bool] = True
    tries: ClassVar[int] = 1


def details(
    crew: ScriptedCrew, tmp_path: Path, count: int = 6, workers: int = 2, kind: type[PhotoJob] = PhotoJob
) -> list[str]:
    """Read photos named 0, 1, ...; the detail of each."""
    files = tuple(PhotoFile(tmp_path / str(i), str(i)) for i in range(count))
    job = kind(tmp_path, files, 32, PhotoLimits(), FakeWorker, longest=LIMIT)
    bar = Progress("counting", count)
    try:
        Scheduler(job, range(job.chunks), crew, bar, crew.now).run(workers)
    finally:
        assert not crew.doing, "processes are left"
    assert bar.done == count
    return [kept.outcome.detail for kept in read_photos(job)]


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_a_photo_is_given_up_for_what_it_did_and_the_others_are_read(tmp_path: Path, workers: int) -> None:
    scripts = {"0": ["die", "read"], "1": ["block", "read"], "2": ["die"], "3": ["block"], "4": ["die", "block"]}
    assert details(ScriptedCrew(scripts), tmp_path, workers=workers) == [
        "Nobody was found.",
        "Nobody was found.",
        "the process died while reading it, twice.",
        "reading it took longer than 10 seconds, twice.",
        "the process died while reading it; the second time, reading it took longer than 10 seconds.",
        "Nobody was found.",
    ]


def test_chunks_are_whole_whatever_happens_to_their_photos(tmp_path: Path) -> None:
    scripts = {"3": ["block"], "4": ["die"], "70": ["block", "read"]}
    found = details(ScriptedCrew(scripts), tmp_path, count=130)  # chunks of four
    assert [i for i, detail in enumerate(found) if detail != "Nobody was found."] == [3, 4]


def test_preparing_takes_no_time_of_a_photo(tmp_path: Path) -> None:
    crew = ScriptedCrew({}, prepare=100 * LIMIT)
    assert set(details(crew, tmp_path)) == {"Nobody was found."}
    assert crew.started == 2


def test_a_machine_that_slept_costs_no_photo_a_try(tmp_path: Path) -> None:
    crew = ScriptedCrew({str(i): ["slow"] for i in range(6)}, step=1000 * LIMIT)
    assert set(details(crew, tmp_path)) == {"Nobody was found."}
    assert set(crew.tries.values()) == {1}


@pytest.mark.parametrize(
    ("action", "words"),
    [("die", r"ended unexpectedly \(exit code 7\)"), ("block", "longer than 10 seconds one after the other, last ")],
)
def test_failure_after_failure_is_no_fault_of_the_photos(tmp_path: Path, action: str, words: str) -> None:
    crew = ScriptedCrew({str(i): [action] for i in range(1, 32)})
    with pytest.raises(DatasetError, match=words) as caught:
        details(crew, tmp_path, count=32)
    assert sum(crew.tries.values()) <= MOST_FAILURES + 3
    assert "Finished photos are kept" in caught.value.hint


@pytest.mark.parametrize(("kind", "started"), [(PhotoJob, 3), (Impatient, 1)])
def test_one_process_goes_ahead_where_it_may_fetch_files(tmp_path: Path, kind: type[PhotoJob], started: int) -> None:
    crew = ScriptedCrew({})
    details(crew, tmp_path, workers=3, kind=kind)
    assert crew.started_before_the_first == started
    assert crew.started == 3


@pytest.mark.parametrize(("action", "words"), [("die", "ended unexpectedly"), ("block", "longer than 10 seconds")])
def test_with_one_try_the_first_failure_ends_the_job(tmp_path: Path, action: str, words: str) -> None:
    crew = ScriptedCrew({"4": [action]})
    with pytest.raises(DatasetError, match=words):
        details(crew, tmp_path, workers=1, kind=Impatient)
    assert crew.tries["4"] == 1
