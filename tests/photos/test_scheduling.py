"""Who reads which photo when processes die or block: with processes that follow a script, and a clock of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from portrait360.photos.gates import PhotoLimits
from portrait360.photos.records import Failed, PhotoFile, PhotoJob, PhotoOutcome, PhotoRecord, read_photos, record
from portrait360.photos.scheduling import MOST_FAILURES, Crew, ProcessDiedError, Scheduler
from portrait360.runtime.progress import Progress
from portrait360.types import DatasetError

LIMIT = 10.0


class ScriptedCrew(Crew[int]):
    """Reads a photo within one step, unless its script says something else, try by try: slow, block or die."""

    def __init__(self, scripts: dict[str, list[str]], step: float = 1.0, prepare: float = 0.0) -> None:
        self.scripts, self.step, self.prepare = scripts, step, prepare
        self.time = 0.0
        self.doing: dict[int, str] = {}
        self.steps: Counter[int] = Counter()
        self.tries: Counter[str] = Counter()
        self.started = 0

    def now(self) -> float:
        return self.time

    def start(self) -> int:
        self.started += 1
        self.doing[self.started] = ""
        return self.started

    def give(self, process: int, file: PhotoFile) -> None:
        self.doing[process] = file.name
        self.steps[process] = 0
        self.tries[file.name] += 1

    def ready(self, processes: Sequence[int], seconds: float) -> list[int]:
        self.time += self.step
        self.steps.update(processes)
        return [process for process in processes if self._action(process) != "block"]

    def answer(self, process: int) -> PhotoRecord | Failed | None:
        if self._action(process) == "die":
            raise ProcessDiedError("exit code 7")
        name = self.doing[process]
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


def details(crew: ScriptedCrew, tmp_path: Path, count: int = 6, workers: int = 2) -> list[str]:
    """Read photos named 0, 1, ...; what is said of each."""
    files = tuple(PhotoFile(tmp_path / str(i), str(i)) for i in range(count))
    job = PhotoJob(tmp_path, files, 32, PhotoLimits(), longest_reading=LIMIT)
    bar = Progress(count)
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
    [("die", r"ended unexpectedly \(exit code 7\)"), ("block", "longer than 10 seconds for photo after photo")],
)
def test_failure_after_failure_is_no_fault_of_the_photos(tmp_path: Path, action: str, words: str) -> None:
    crew = ScriptedCrew({str(i): [action] for i in range(1, 32)})
    with pytest.raises(DatasetError, match=words) as caught:
        details(crew, tmp_path, count=32)
    assert sum(crew.tries.values()) <= MOST_FAILURES + 3
    assert "What was read is kept" in caught.value.hint
