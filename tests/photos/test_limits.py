"""Limits from a JSON file."""

from __future__ import annotations

import dataclasses
import json

import pytest

from portrait360.photos.gates import GATES, PhotoLimits, read_limits
from portrait360.types import InputError
from support.bad_input import check


def test_what_the_file_says_and_else_the_defaults(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text('{"smallest_side": 200, "most_overlap": 0.25, "duplicate_bits": 7, "least_quality": -3}')
    assert read_limits(path) == PhotoLimits(
        smallest_side=200.0, most_overlap=0.25, duplicate_bits=7, least_quality=-3.0
    )  # fmt: skip
    path.write_text("{}")
    assert read_limits(path) == PhotoLimits()


def test_every_limit_can_be_written_and_read_again(tmp_path):
    path = tmp_path / "limits.json"
    default = PhotoLimits()
    path.write_text(json.dumps(dataclasses.asdict(default)))
    assert read_limits(path) == default
    whole = {name: isinstance(value, int) for name, value in dataclasses.asdict(default).items()}
    other = PhotoLimits(**{name: 1 if is_whole else 0.75 for name, is_whole in whole.items()})
    path.write_text(json.dumps(dataclasses.asdict(other)))
    assert read_limits(path) == other
    assert set(GATES) == {field.name for field in dataclasses.fields(PhotoLimits)}


WRONG = [
    ("smallest_side", "is not JSON"),
    ("", "is not JSON"),
    ('{"smallest_side": 200', "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ('{"smallest_side": 1, "smallest_side": 2}', "smallest_side is in it twice"),
    ("[200]", r"holds \[200\], not an object"),
    ("null", "holds null, not an object"),
    (" " * 1_100_000 + "{}", "too large"),
    ('{"smalest_side": 200}', "there is no limit 'smalest_side'"),
    ('{"": 200}', "there is no limit ''"),
    ('{"resolution": 200}', "there is no limit 'resolution'"),
    ('{"smallest_side": "200"}', 'smallest_side must be a number, not "200"'),
    ('{"smallest_side": true}', "smallest_side must be a number, not true"),
    ('{"smallest_side": null}', "smallest_side must be a number, not null"),
    ('{"smallest_side": [200]}', r"smallest_side must be a number, not \[200\]"),
    ('{"smallest_side": NaN}', "smallest_side must be a finite number, not NaN"),
    ('{"smallest_side": 1e999}', "smallest_side must be a finite number"),
    ('{"least_quality": -Infinity}', "least_quality must be a finite number"),
    ('{"smallest_side": 1' + "0" * 400 + "}", "smallest_side must be a finite number"),
    ('{"smallest_side": -1}', "smallest_side must be at least 0, not -1"),
    ('{"most_outside": -0.1}', "most_outside must be from 0 to 1, not -0.1"),
    ('{"least_confidence": 50}', "least_confidence must be from 0 to 1, not 50"),
    ('{"largest_turn": 181}', "largest_turn must be from 0 to 180, not 181"),
    ('{"duplicate_bits": 65}', "duplicate_bits must be from 0 to 64, not 65"),
    ('{"duplicate_bits": 3.5}', "duplicate_bits must be a whole number, not 3.5"),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG, ids=range(len(WRONG)))
def test_files_that_make_no_sense(capfd, tmp_path, text, sentence):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("a")
    (tmp_path / "limits.json").write_text(text)
    words = ["dataset", "photos", str(tmp_path / "photos"), "--resolution", "32", "--out", str(tmp_path / "a.zip")]
    check(capfd, tmp_path, [*words, "--limits", str(tmp_path / "limits.json")], sentence)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("smalest_side", "smallest_side"), ("Most-Overlap", "most_overlap"), ("least_qualitty", "least_quality")],
)
def test_a_misspelt_limit_names_the_nearest(tmp_path, name, meant):
    (tmp_path / "limits.json").write_text(json.dumps({name: 0.5}))
    with pytest.raises(InputError) as caught:
        read_limits(tmp_path / "limits.json")
    assert caught.value.hint == f"Perhaps you meant {meant}."


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no file of limits"):
        read_limits(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_limits(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(InputError, match="is not JSON"):
        read_limits(tmp_path / "bytes.json")
