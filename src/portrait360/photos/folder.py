"""The files of a folder of photos, its subfolders too, in an order that is the same everywhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from portrait360.photos.records import PhotoFile
from portrait360.runtime.files import explain_os_error
from portrait360.types import InputError

_JUNK = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
"""What systems leave in folders, in lower case. Names that begin with a dot are left out too."""


def find_photos(folder: Path) -> list[PhotoFile]:
    """Every file below `folder`, sorted by name; hidden files and what systems leave behind are left out.

    Links are followed, and each folder and file is listed once, under the first of its names. What cannot be looked
    into (folders without permission, links that lead nowhere) is listed too: reading it fails and says so.

    Raises:
        InputError: the folder is missing, not a folder, cannot be opened, or holds no files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder} is not a folder.", "Name the folder that holds the photos.")
        raise InputError(f"there is no folder at {folder}.", "Check the path; it names a folder of photos.")
    try:
        _listed(folder)
    except OSError as error:
        explained = explain_os_error(error, folder)
        raise explained or InputError(f"{folder} could not be read: {error.strerror}.", "Check the disk.") from error
    found = sorted(_walk(folder), key=lambda photo: photo.name)
    if not found:
        raise InputError(f"{folder} holds no files.", "Put photos into it; hidden files do not count.")
    return found


def _walk(top: Path) -> Iterator[PhotoFile]:
    """Depth first in the order of names, so that the first visit is under the first name."""
    seen: set[tuple[int, int]] = set()
    waiting = [(top, "")]
    while waiting:
        path, name = waiting.pop()
        try:
            state = path.stat()
            identity = (state.st_dev, state.st_ino)
            is_folder = stat.S_ISDIR(state.st_mode)
            if identity in seen and state.st_ino:  # some network drives number nothing
                continue
            seen.add(identity)
            inside = _listed(path) if is_folder else []
        except OSError:
            is_folder, inside = False, []
        if is_folder:
            waiting += [(path / entry, f"{name}/{entry}" if name else entry) for entry in reversed(inside)]
        else:
            yield PhotoFile(path, _printable(name))


def _listed(folder: Path) -> list[str]:
    """Names in a folder in the order that their full names have (`a.jpg` before `a/b.jpg`)."""
    with os.scandir(folder) as entries:
        names = [(entry.name + "/" * _leads_to_folder(entry), entry.name) for entry in entries]
    return [name for _, name in sorted(names) if not name.startswith(".") and name.lower() not in _JUNK]


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _printable(name: str) -> str:
    """File names need not be text; what is not becomes \\x.. so that it can be written in a report."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
