"""Modules that are run by `python -m` say what went wrong in a sentence."""

from __future__ import annotations

import errno

import pytest

from portrait360.runtime.script import run_script
from portrait360.types import InputError


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("there is no such thing.", "Look elsewhere."), 2, ["error: there is no such thing.", "Look else"]),
        (OSError(errno.ENOSPC, "No space left on device", "w.safetensors"), 2, ["error: ", "hint: "]),
        (KeyboardInterrupt(), 130, ["stopped; ", "with the same command"]),
    ],
)
def test_errors_end_with_a_sentence(error, status, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["module"])

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == status
    said = capsys.readouterr().err
    assert all(word in said for word in words)


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["module"])

    def main() -> None:
        raise OSError(errno.EINVAL, "no file has to do with it")

    with pytest.raises(OSError, match="no file"):
        run_script(main)
