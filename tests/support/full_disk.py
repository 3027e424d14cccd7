"""A disk that is full, for one process and its children: files cannot grow beyond a few bytes."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def fill_disk(size: int) -> None:
    """From now on this process and its children cannot write files larger than `size` bytes.

    Nor do they keep compiled modules: Python does not notice that such a file was cut off, and all later processes
    would fail to import it.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """`fill_disk` for a while."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    compiled, environment = sys.dont_write_bytecode, dict(os.environ)
    fill_disk(size)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        sys.dont_write_bytecode = compiled
        os.environ.clear()
        os.environ.update(environment)
