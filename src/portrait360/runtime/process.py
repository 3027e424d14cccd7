"""Settings of a whole process, for programs of their own; imports nothing until it is asked to."""

from __future__ import annotations


def settle_process() -> None:
    """Choose threads and memory for the whole process: a library may not, but a program of its own may."""
    from portrait360.runtime.memory import keep_freed_memory
    from portrait360.runtime.threads import settle_threads

    settle_threads()
    keep_freed_memory()
