"""What bad input must give: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import re
from pathlib import Path

from portrait360.cli.main import main


def everything(folder: Path) -> dict[str, tuple[bool, int, int]]:
    """All files and folders, hidden ones too, with size and time of writing."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (
            (True, 0, 0) if path.is_dir() else (False, state.st_size, state.st_mtime_ns)
        )
    return found


def check(capfd, folder: Path, words: list[str], sentence: str) -> None:
    """Run a command that must fail politely, leave `folder` alone, and say `sentence` (a pattern)."""
    before = everything(folder)
    status = main(words)
    output = capfd.readouterr()
    assert status == 2, output.err
    progress = re.compile(r"(?!error)\w+: \d+ of \d+ ")
    lines = [line for line in output.err.splitlines() if line and not progress.match(line)]
    assert lines[0].startswith("error: "), output.err
    assert re.search(sentence, lines[0]), lines[0]
    assert lines[1].startswith("hint: "), output.err
    assert len(lines) == 2, output.err
    assert "Traceback" not in output.err + output.out
    assert output.out == ""
    assert everything(folder) == before
