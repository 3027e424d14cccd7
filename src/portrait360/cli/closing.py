"""The last line of a command: what was written, where, and the natural next command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def close(place: Path, what: str, next_words: Sequence[str | Path]) -> None:
    """Print the last line.

    Args:
        place: the file or folder that was written.
        what: it is, without a full stop.
        next_words: the next command, after `portrait360`.
    """
    print(f"{place}  {what}; next: {command(*next_words)}", flush=True)


def command(*words: str | Path) -> str:
    """A command of this program, quoted where a shell wants it."""
    return shlex.join(["portrait360", *map(str, words)])
