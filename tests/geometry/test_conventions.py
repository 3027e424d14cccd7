"""Every line of docs/conventions.md names tests, and every named test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_line_names_a_test() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("- ")]
    assert len(lines) > 20
    assert [line for line in lines if not NAMED.search(line)] == []


def test_every_named_test_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) == PAGE.count("::")
    known = {file: functions_of(ROOT / file) for file, _ in named}
    assert [f"{file}::{name}" for file, name in named if name not in known[file]] == []
    assert all(name.startswith("test_") for _, name in named)
