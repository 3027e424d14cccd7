"""Modules that are run by `python -m`: their arguments, and bad input in one sentence, as the command line has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import tyro

from portrait360.runtime.files import explain_os_error
from portrait360.types import Portrait360Error


def run_script(main: Callable[..., Any]) -> None:
    """Run a module's `main` on the command line; bad input and full disks get a sentence, a hint, and exit status 2."""
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print("\nstopped; what has a checkpoint goes on from it with the same command.", file=sys.stderr)
        sys.exit(130)
    except Portrait360Error as error:
        _complain(error)
    except OSError as error:
        explained = explain_os_error(error)
        if explained is None:
            raise
        _complain(explained)


def _complain(error: Portrait360Error) -> NoReturn:
    print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
    sys.exit(2)
