"""Every program in tools/ says in one line what it makes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from portrait360.runtime.script import run_script

TOOLS = Path(__file__).parents[2] / "tools"
PROGRAMS = sorted(path.stem for path in TOOLS.glob("*.py") if '__name__ == "__main__"' in path.read_text())
WITH_EXIT_STATUS = ("docs_check", "parity", "tables")
"""Programs whose `main` takes the arguments and returns an exit status."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_says_what_is_made(name: str, monkeypatch, capsys) -> None:
    main = importlib.import_module(f"tools.{name}").main
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main(["--help"]) if name in WITH_EXIT_STATUS else run_script(main)
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert any(word in text for word in (" Write ", " Rewrite ", " Print "))
