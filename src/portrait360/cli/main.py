"""The command line: `portrait360 COMMAND ...`: parsing, errors and exit statuses."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import signal
import sys
from collections.abc import Sequence

import tyro

import portrait360
from portrait360.cli.commands import Command, commands
from portrait360.cli.errors import BadArgumentsError, explain_box

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_COLLECTIONS = (50_000, 20, 20)
"""Python's `gc` thresholds. Importing torch makes objects that stay: to look through them as often as by default costs
a tenth of a first picture's time."""
_COMMAND_NAMES = frozenset("generate dataset synth photos inspect shard train evaluate pose convert bench".split())


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for.

    Raises:
        BadArgumentsError: an unknown command or flag, a missing flag or a bad value.
        SystemExit: after printing help.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                commands(arguments),
                prog="portrait360",
                description="3D portraits, seen from every side, learned from single-view images.",
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        names = itertools.takewhile(_COMMAND_NAMES.__contains__, arguments)
        raise explain_box(box.getvalue(), " ".join(["portrait360", *names, "--help"])) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 bad input (said in a sentence), 130 interrupted.

    Errors that no user can mend keep their traceback: they are bugs.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"portrait360 {portrait360.__version__}")
        return 0
    try:
        command = parse(arguments)
    except BadArgumentsError as error:
        return _complain(error.message, error.hint)
    try:
        return _run(command)
    except KeyboardInterrupt:
        print(f"\nstopped; {command.resume_hint()}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(command: Command) -> int:
    from portrait360.runtime.files import explain_os_error
    from portrait360.types import Portrait360Error

    try:
        command.run()
        sys.stdout.flush()
    except Portrait360Error as error:
        return _complain(error.message, error.hint, *getattr(error, "__notes__", []))
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
    if "triton" not in sys.modules:  # it would call what is not looked through leaked, and say so
        gc.freeze()  # what is left goes with the process: the interpreter need not look through it once more
    sys.exit(status)
