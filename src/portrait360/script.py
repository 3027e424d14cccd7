"""Modules that are run by `python -m`: their arguments, and bad input in one sentence, as the command line has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from portrait360.types import Portrait360Error


def run_script(main: Callable[..., Any]) -> None:
    """Run a module's `main` on the command line; bad input gets its sentence and hint, and exit status 2."""
    try:
        tyro.cli(main)
    except Portrait360Error as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(2)
