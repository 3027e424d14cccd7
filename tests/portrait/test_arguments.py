"""What is asked of a portrait is checked without torch, and turns that no neck does are named."""

from __future__ import annotations

import pytest

from portrait360.errors import InputError
from portrait360.portrait.arguments import check_size, check_turns, is_device_name, unnatural_turns


@pytest.mark.parametrize(
    ("neck", "head"), [((0, 0, 0), (0, 0, 0)), ((0, 40, 0), (0, 40, 0)), ((-30, 0, 0), (25, 20, 5))]
)
def test_turns_of_people_are_no_surprise(neck, head):
    check_turns(neck, head)
    assert unnatural_turns(neck, head) == []


def test_turns_that_no_neck_does_are_named_with_the_range():
    (warning,) = unnatural_turns((0, 0, 0), (0, 90, 0))
    assert warning.startswith("no head turns against its neck by 90 degrees: people reach about 45")
    (warning,) = unnatural_turns((0, -50, 0), (0, 0, 0))
    assert warning.startswith("no neck turns by 50 degrees")
    assert len(unnatural_turns((60, 0, 0), (0, 0, 60))) == 2


def test_turns_beyond_the_range_are_refused():
    with pytest.raises(InputError, match="at most 90"):
        check_turns((0, 91, 0), (0, 0, 0))


@pytest.mark.parametrize("size", [63, 2049])
def test_sizes(size):
    with pytest.raises(InputError, match="must lie between 64 and 2048"):
        check_size(size)
    check_size(None)
    check_size(64)


def test_names_of_devices():
    assert all(map(is_device_name, ("auto", "cpu", "cuda", "cuda:1")))
    assert not any(map(is_device_name, ("", "gpu", "cuda:", "cuda:x", "meta", "cpu ")))
