"""The program that measures how surely wrong labels are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from portrait360.types import InputError
from tools.label_checks import CASES, measure
from tools.table_renderers import RENDERERS

PEOPLE = Path(__file__).parents[1] / "support" / "people.zip"


def test_wrong_labels_of_the_small_dataset_are_all_found_and_named():
    found = measure(PEOPLE, 24)
    assert found["numbers"] == {"wrong_recognised": [15, 15], "right_accepted": [1, 1]}
    assert found["images"].keys() == CASES.keys()
    right = found["images"].pop("right")
    assert (right["warned"], right["named"], right["bodies_met"], right["yaw_agrees"]) == (0.0, None, 1.0, 1.0)
    for name, case in found["images"].items():
        assert (case["warned"], case["named"]) == (1.0, 1.0), name
    lines = RENDERERS["label-checks"](found | {"images": {"right": right} | found["images"]})
    assert len(lines) == 2 + len(CASES)
    assert "| right | 0 % |" in "\n".join(lines)


def test_datasets_that_are_too_small_are_refused():
    with pytest.raises(InputError, match="too few images"):
        measure(PEOPLE, 25)
