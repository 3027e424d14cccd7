"""Python programs in processes of their own, quickly: forks of a server that has imported torch and the package.

For tests of what a process does as a whole: signals, exit status, a kill, several at once. A program starts with what
`support.fork_server` has imported, with one thread of torch, and without the type checks of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

PATH = os.pathsep.join([*(str(Path(__file__).parents[n]) for n in (1, 2)), os.environ.get("PYTHONPATH", "")])
"""Where programs find `support` and `tools`."""
PATIENCE = 1200.0
"""Seconds that a busy machine may take for what a test waits for."""


HELD = "held"
"""The file that says that a program stands still."""


def hold(folder: Path) -> None:
    """In a program: stand still until the test says `release`."""
    (folder / HELD).touch()
    while (folder / HELD).exists():
        time.sleep(0.01)


@lru_cache(maxsize=1)
def _server() -> socket.socket:
    """The connection to this process's server, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "support.fork_server", str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(PATIENCE)

    atexit.register(end)
    return ours


class Said:
    """What a program writes to one of its outputs: a pipe that holds all of it, so that nobody needs to listen."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(self._read, False)
        self._text = b""

    def text(self) -> str:
        """All of it, up to now."""
        with contextlib.suppress(BlockingIOError):
            while self._read >= 0 and (more := os.read(self._read, 1 << 20)):
                self._text += more
        return self._text.decode()

    def close(self) -> None:
        """Keep what there is."""
        self.text()
        os.close(self._read)
        self._read = -1


class Program:
    """One that runs, or has run."""

    def __init__(self, code: str, *arguments: object, stdout: int | None = None, **environment: str) -> None:
        """Start it.

        Args:
            code: what it is.
            arguments: its `sys.argv[1:]`.
            stdout: a handle to write to instead of `output`.
            environment: variables beside those of this process.
        """
        self._output, self._errors = Said(), Said()
        self._life, theirs = socket.socketpair()
        request = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "environment": os.environ | {"PYTHONPATH": PATH} | environment,
        }
        handles = [self._output.write if stdout is None else stdout, self._errors.write, theirs.fileno()]
        socket.send_fds(_server(), [json.dumps(request).encode()], handles)
        for handle in (self._output.write, self._errors.write, theirs.detach()):
            os.close(handle)
        self.status: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        """The next number that the keeper says."""
        self._life.settimeout(PATIENCE)
        said = b""
        while not said.endswith(b"\n"):
            more = self._life.recv(1)
            assert more, "the fork server is gone"
            said += more
        return int(said)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running():
            self.send_signal(signal.SIGKILL)
            self.wait()
        for part in (self._output, self._errors, self._life):
            part.close()

    @property
    def output(self) -> str:
        """What it has written to standard output."""
        return self._output.text()

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self._errors.text()

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.status is None and select.select([self._life], [], [], 0)[0]:
            self.status = self._number()
        return self.status is None

    def wait(self) -> int:
        """Its exit status, or a signal's number below zero."""
        if self.status is None:
            self.status = self._number()
        return self.status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the program does."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert self.running(), self.errors
            assert time.monotonic() < limit, "the program does not get there"
            time.sleep(0.01)

    def held(self, folder: Path) -> None:
        """Wait until the program has come to its `hold(folder)`, where signals meet it at a known place."""
        self.until((folder / HELD).exists)

    def release(self, folder: Path) -> None:
        """Let it go on."""
        (folder / HELD).unlink()


def run(code: str, *arguments: object, status: int = 0, **environment: str) -> Program:
    """Run a program to its end, which must have this exit status."""
    with Program(code, *arguments, **environment) as program:
        assert program.wait() == status, program.errors[-3000:]
    return program


@contextlib.contextmanager
def ranks(code: str, *arguments: object, count: int = 2, **environment: str) -> Iterator[list[Program]]:
    """One program as the processes of a training on one machine, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)} | environment
    with contextlib.ExitStack() as programs:
        yield [
            programs.enter_context(Program(code, *arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank in range(count)
        ]


def run_ranks(code: str, *arguments: object, count: int = 2, **environment: str) -> None:
    """Run one program as several processes, all of which must end well."""
    with ranks(code, *arguments, count=count, **environment) as programs:
        statuses = [program.wait() for program in programs]
        assert statuses == [0] * count, "\n".join(program.errors[-3000:] for program in programs)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_ends(pids: list[int]) -> None:
    """Wait until none of these processes runs any more."""
    limit = time.monotonic() + PATIENCE
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < limit, "processes are left"
        time.sleep(0.02)
