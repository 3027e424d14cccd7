"""The files of long work that can be stopped: a folder of parts beside the output, what was asked, and a lock.

A part file is a small zip that appears whole or not at all: a killed run loses only the parts under way.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from portrait360.errors import DatasetError
from portrait360.runtime.files import atomic_write, explained_os_errors, remove_empty_folders, write_json

_JOB_FILE = "job.json"
_LOCK_FILE = "lock"


def add_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Put a file into a zip, stored and without time, owner or system, so that only the content counts."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_STORED
    info.create_system = 3
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


def parts_folder(out: Path) -> Path:
    """Where the parts of an output lie until it is complete."""
    return out.with_name(out.name + ".parts")


def part_file(parts: Path, number: int) -> Path:
    """Part `number` in a folder of parts."""
    return parts / f"part-{number:06d}.zip"


def has_parts(parts: Path) -> bool:
    """Whether any part is finished."""
    return any(parts.glob("part-*.zip"))


def write_part(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a part file; it appears whole or not at all. Raises InputError when the disk is full."""
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            add_member(archive, name, content)


def remove_leftovers(parts: Path) -> None:
    """Remove the unfinished files of processes that were killed while they wrote."""
    for leftover in parts.glob(".*.tmp.zip"):
        leftover.unlink(missing_ok=True)


def difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first value in which two descriptions differ, in words; empty when they agree."""
    for key, value in asked.items():
        if there.get(key) != value:
            return f"{key.replace('_', ' ')} {there.get(key)}, not {value}"
    return ""


def check_same_job(parts: Path, asked: Mapping[str, Any]) -> None:
    """Note in the parts folder what was asked, or check that the parts there belong to it.

    Raises:
        DatasetError: they belong to something else.
    """
    path = parts / _JOB_FILE
    if not path.exists():
        write_json(path, asked)
        return
    hint = f"Run it with the same values to continue, or delete {parts} to start anew."
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read.", hint) from error
    different = difference(there, asked)
    if different:
        raise DatasetError(f"{parts} holds an unfinished dataset with {different}.", hint)


@contextlib.contextmanager
def locked(parts: Path, doing: str) -> Iterator[None]:
    """Keep a second run away from the same parts. The lock goes with the process, however it ends.

    Args:
        parts: the folder.
        doing: what the other run would be doing, for instance "rendering images".

    Raises:
        DatasetError: another run has the lock.
    """
    lock = FileLock(parts / _LOCK_FILE)
    try:
        with explained_os_errors(parts):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise DatasetError(f"another run is {doing} into {parts}.", "Wait for it, or choose another name.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def nothing_left_when_empty(parts: Path, made: list[Path]) -> Iterator[None]:
    """When the block fails before there is a part to continue from, remove the folders that this run made."""
    try:
        yield
    except BaseException:
        if parts in made and not has_parts(parts):
            shutil.rmtree(parts, ignore_errors=True)
            remove_empty_folders(made)
        raise
