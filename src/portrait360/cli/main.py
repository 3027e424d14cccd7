"""The command line: `portrait360 COMMAND ...`: parsing, errors and exit statuses."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import tyro

import portrait360
from portrait360.cli.commands import Command, commands
from portrait360.cli.errors import with_flags
from portrait360.cli.numbers import NUMBERS
from portrait360.cli.spelling import misspelt

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_COLLECTIONS = (50_000, 20, 20)
"""Python's `gc` thresholds. Importing torch makes objects that stay: to scan them as often as by default costs a tenth
of a first image's time."""


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for.

    Raises:
        SystemExit: after printing help (status 0), or what is wrong with the arguments (status 2).
    """
    parser: Any = commands(arguments)
    try:
        return tyro.cli(
            parser,
            prog="portrait360",
            description="3D portraits, seen from every side, learned from single-view images.",
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=NUMBERS,
        )
    except SystemExit as stop:
        if stop.code:
            for flag, meant in misspelt(arguments).items():
                print(f"hint: there is no {flag}; did you mean {meant}?", file=sys.stderr)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 bad input (said in a sentence), 130 interrupted.

    Errors that no user can mend keep their traceback: they are bugs.

    Raises:
        SystemExit: see `parse`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"portrait360 {portrait360.__version__}")
        return 0
    command = parse(arguments)
    try:
        return _run(command)
    except KeyboardInterrupt:
        print(f"\nstopped; {command.resume_hint()}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(command: Command) -> int:
    from portrait360.errors import Portrait360Error
    from portrait360.runtime.files import explain_os_error

    try:
        command.run()
        sys.stdout.flush()
    except Portrait360Error as error:
        said = (error.message, error.hint, *getattr(error, "__notes__", []))
        return _complain(*(with_flags(text, command) for text in said))
    except BrokenPipeError:  # the reader of our output has enough; Python must not complain while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError:
        return _complain("there is not enough memory.", "Close other programs, or ask for less.")
    except OSError as error:
        explained = explain_os_error(error)
        if explained is None:
            raise
        return _complain(explained.message, explained.hint)
    return 0


def _complain(message: str, hint: str, *notes: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
    return EXIT_BAD_INPUT


def entry_point() -> None:
    """The `portrait360` program. SIGTERM ends it like Ctrl-C, so that nothing half-written stays."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.set_threshold(*_COLLECTIONS)
    status = main()
    if "triton" not in sys.modules:  # it would report what is not collected as leaked
        gc.freeze()  # what is left goes with the process, without one more scan
    sys.exit(status)
