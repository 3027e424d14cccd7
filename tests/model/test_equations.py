"""References to docs/equations.md lead to sections that it has."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"\b[Ee]quations\s+(\d[\d., -]*(?:(?:and|to|or) \d[\d., -]*)*)")


def sections() -> set[str]:
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    return set(re.findall(r"^#+ (\d+(?:\.\d+)?) ", text, re.MULTILINE))


def test_every_reference_has_its_section():
    known, found = sections(), set()
    for folder in ("src", "tests", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for numbers in REFERENCE.findall(path.read_text(encoding="utf-8")):
                here = set(re.findall(r"\d+(?:\.\d+)?", numbers))
                assert here <= known, f"{path}: docs/equations.md has no section {sorted(here - known)}"
                found |= here
    assert len(found) > 60


def test_sections_stand_in_order():
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    numbers = [tuple(map(int, n.split("."))) for n in re.findall(r"^#+ (\d+(?:\.\d+)?) ", text, re.MULTILINE)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)
