"""Counts and times in words."""

from __future__ import annotations

import pytest

from portrait360.runtime.words import counted, rough_time


@pytest.mark.parametrize(("count", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_counts(count, words):
    assert counted(count, "image") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "some seconds"),
        (30, "half a minute"),
        (50, "1 minute"),
        (1500, "25 minutes"),
        (5390, "90 minutes"),
        (7200, "2 hours"),
        (36 * 3600, "2 days"),
        (240 * 3600, "10 days"),
    ],
)
def test_times(seconds, words):
    assert rough_time(seconds) == words
