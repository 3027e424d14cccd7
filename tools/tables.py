"""The tables of README.md and docs, rewritten from the measurements that are stored in docs.

    python -m tools.tables [--check] [--document FILE.md] [--measurements docs/measurements]

Without `--document`: README.md and every page below docs that has tables.

Between the lines `<!-- table: NAME.json#RENDERER -->` and `<!-- end -->` of the document stands what the renderer makes
of that file (see `table_renderers`; without `#RENDERER`: `plain`). All other text is written by hand and stays byte for
byte. Exit status 1: with `--check`, a table is stale; 2: a file cannot be used.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portrait360.runtime.files import atomic_write, explained_os_errors
from portrait360.types import InputError, Portrait360Error
from tools.table_renderers import RENDERERS

_START = re.compile(r"\s*<!--\s*table:\s*(.*?)\s*-->\s*")
_END = re.compile(r"\s*<!--\s*end\s*-->\s*")
_NAME = re.compile(r"([\w.-]+\.json)(?:#([\w-]+))?")
_MARKERS = "Lines `<!-- table: NAME.json#RENDERER -->` and `<!-- end -->` enclose a table."


@dataclass(frozen=True)
class Update:
    """A document with fresh tables: its `text`, the names of all `tables` and of the `stale` ones, in order."""

    text: str
    tables: list[str]
    stale: list[str]


def update(text: str, measurements: Path) -> Update:
    """Replace what stands between the markers in `text` by tables of the JSON files in the folder `measurements`.

    Raises:
        InputError: markers that do not match, an unknown renderer, or a file that is missing or not what was expected.
    """
    # State: fresh lines, names of tables, lines of the open one.
    fresh: list[str] = []
    tables: list[str] = []
    stale: list[str] = []
    found: list[str] | None = None  # lines of the table that is open

    # Line by line: text stays, tables are rendered again.
    for number, line in enumerate(text.split("\n"), 1):
        begin, end = _START.fullmatch(line), _END.fullmatch(line)
        if begin and found is None:
            tables.append(begin[1])
            found = []
        elif end and found is not None:
            rows = render(tables[-1], measurements)
            if rows != found:
                stale.append(tables[-1])
            fresh += rows
            found = None
        elif begin:
            break  # the one before is not closed
        elif end:
            raise InputError(f"line {number} ends a table that never began.", _MARKERS)
        elif found is not None:
            found.append(line)
            continue
        fresh.append(line)

    # The last table must be closed.
    if found is not None:
        raise InputError(f"the table {tables[-1]} is not closed.", _MARKERS)
    return Update("\n".join(fresh), tables, stale)


def render(name: str, measurements: Path) -> list[str]:
    """The lines of the table `name`, that is FILE.json or FILE.json#RENDERER, of the folder `measurements`.

    Raises:
        InputError: another name, an unknown renderer, or a file that is missing or not what the renderer expects.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise InputError(f"{name!r} names no table.", _MARKERS)
    path, renderer = measurements / parts[1], parts[2] or "plain"
    if renderer not in RENDERERS:
        raise InputError(f"there is no renderer {renderer!r} (of {name}).", f"Known: {', '.join(RENDERERS)}.")
    content = _read_json(path)
    try:
        return RENDERERS[renderer](content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path} does not suit {renderer!r}: {reason}.", "Measure again, or mend the file.") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}.", "Measure again, or mend the file.") from error


def _read(path: Path) -> str:
    """The text of a file, with its own ends of lines."""
    try:
        with explained_os_errors(path):
            return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}.", "Run this in the repository, or name other places.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error


def documents(root: Path) -> list[Path]:
    """README.md and every page below docs in a checkout."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    # Arguments.
    parser = argparse.ArgumentParser(
        prog="python -m tools.tables",
        description="Rewrite the tables of documents (.md) from stored measurements.",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a table is stale")
    parser.add_argument("--document", type=Path, help="what has the tables (default: README.md and all of docs)")
    parser.add_argument("--measurements", type=Path, default=Path("docs/measurements"), help="folder of JSON files")
    options = parser.parse_args(arguments)

    # Rewrite or check one document after the other.
    chosen = documents(Path()) if options.document is None else [options.document]
    try:
        return max(_settle(document, options.measurements, options.check) for document in chosen)
    except Portrait360Error as error:
        print(f"error: {error.message}", file=sys.stderr)
        print(f"hint: {error.hint}", file=sys.stderr)
        return 2


def _settle(document: Path, measurements: Path, check: bool) -> int:
    """Rewrite a document, or check it, and report; returns the exit status.

    Raises:
        InputError: a file cannot be used.
    """
    old = _read(document)
    new = update(old, measurements)
    if new.text != old and not check:
        with atomic_write(document) as temporary:
            temporary.write_bytes(new.text.encode("utf-8"))
    if check and new.stale:
        print(f"error: stale in {document}: {', '.join(new.stale)}.", file=sys.stderr)
        print("hint: Run `make results`.", file=sys.stderr)
        return 1
    if new.tables:
        changed = f"rewritten: {', '.join(new.stale)}" if new.stale else "all up to date"
        print(f"{document}: {len(new.tables)} tables, {changed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
