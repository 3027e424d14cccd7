"""Bad input for `bench`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import pytest

from support.bad_input import check


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out {0}/b.json --presets huge", "no preset 'huge'"),
        ("--out {0}/file/b.json --presets tiny", "file"),
        ("--out {0} --presets tiny", "is a folder"),
    ],
)
def test_bad_arguments_for_bench(capfd, tmp_path, words, sentence):
    (tmp_path / "file").write_text("mine")
    check(capfd, tmp_path, ["bench", *words.format(tmp_path).split()], sentence)
