"""Progress counts what is done, and finished items of an earlier run do not count into the speed."""

from __future__ import annotations

import itertools

import pytest

from portrait360.runtime.progress import show_progress


@pytest.fixture
def clock(monkeypatch) -> None:
    """Two seconds pass between any two looks at the clock."""
    seconds = itertools.count(100, 2)
    monkeypatch.setattr("portrait360.runtime.progress.time.monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("clock")
def test_rate_leaves_out_the_preparation_and_what_was_there() -> None:
    with show_progress("rendering", 100, "images", visible=False) as bar:
        bar.skip(40)
        assert bar.rate() is None
        bar.advance(1)
        assert bar.rate() is None
        bar.advance(6)
        assert (bar.done, bar.rate()) == (47, 3.0)


def test_logs_get_the_last_line(capsys) -> None:
    with show_progress("rendering", 50, "images") as bar:
        bar.skip(10)
        for _ in range(40):
            bar.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("rendering: 50 of 50 images, ")
    assert lines[0].endswith("/s, 0:00:00 left")
