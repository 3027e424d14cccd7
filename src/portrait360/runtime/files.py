"""Writing files so that a reader never sees half of one, and so that a full disk gets a clear sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from portrait360.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_DEFECT = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT}


def explain_os_error(error: OSError, path: Path | None = None) -> InputError | None:
    """The sentence and hint for an error of the file system that a user can mend; None for any other one."""
    # Where it happened.
    place = path if path is not None else error.filename
    where = f" {place}" if place is not None else " a file"

    # The disk or its owner.
    if error.errno in _FULL:
        return InputError(f"could not write{where}: the disk is full.", "Free some space or choose another place.")
    if error.errno in _FORBIDDEN:
        return InputError(
            f"no permission to use{where}.",
            "Check the owner and the mode of that place, or choose another one.",
        )

    # The place itself.
    if error.errno == errno.EISDIR:
        return InputError(f"expected a file but{where} is a folder.", "Name a file.")
    if error.errno in _NOT_A_FOLDER:
        return InputError(f"expected a folder but{where} is a file.", "Name a folder, or move that file away.")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"the name is too long:{where}.", "Choose a shorter one.")
    if error.errno == errno.ELOOP:
        return InputError(f"links lead in a circle:{where}.", "Name the place itself.")
    if error.errno in _DEFECT:
        return InputError(
            f"could not read or write{where}: {os.strerror(error.errno).lower()}.",
            "Check that disk, or choose another place.",
        )
    return None


@contextlib.contextmanager
def explained_os_errors(path: Path | None = None) -> Iterator[None]:
    """Turn errors of the file system that a user can mend into `InputError`, naming `path` if it is given."""
    try:
        yield
    except OSError as error:
        explained = explain_os_error(error, path)
        if explained is None:
            raise
        raise explained from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same extension); rename it to `path` when the block ends well.

    Missing parent folders are made. When the block fails, the temporary file and the folders made here are
    removed.

    Raises:
        InputError: the disk is full, the place is read-only, or a folder is in the way; what can be known is said
            before the block begins.
    """
    path = Path(path)
    with explained_os_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))

        # Make the place, and try whether a file can be there.
        made = make_folder(path.parent)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        try:
            with _somewhere("file", path):
                temporary.touch()
            temporary.unlink()

            # Let the caller write, then move it.
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            remove_empty_folders(made)
            raise


@contextlib.contextmanager
def _somewhere(kind: str, wanted: Path) -> Iterator[None]:
    """Say where nothing can be made; in /proc, for instance, the system says that there is no such place."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there can be no {kind} at {wanted}.", "Choose another place.") from error


class _NothingToWriteError(Exception):
    """Nothing is to be written."""


def check_place(path: Path) -> None:
    """Raise what `atomic_write` would, before long work whose result is to be written there; leave all as it is."""
    with contextlib.suppress(_NothingToWriteError), atomic_write(path):
        raise _NothingToWriteError


def check_json_place(out: Path, ending: str) -> Path:
    """`check_place` for a .json file and the one beside it with another ending; the latter.

    Raises:
        InputError: as `check_place` does; or `out` is no .json file.
    """
    if out.suffix.lower() != ".json":
        better = out.with_suffix(".json") if out.name else out / "out.json"
        raise InputError(f"`out` must be a .json file, not {out}.", f"Try `out={better}`.")
    beside = out.with_suffix(ending)
    for path in (out, beside):
        check_place(path)
    return beside


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; move its files into `folder` when the block ends well.

    Files of the same names are replaced one by one, other files in `folder` stay. When the block fails, the
    temporary folder and the parent folders made here are removed.

    Raises:
        InputError: the disk is full, the place is read-only, or a file is in the way.
    """
    folder = Path(folder)
    with explained_os_errors():
        # Make the temporary folder.
        made = make_folder(folder.parent)
        temporary: Path | None = None
        try:
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            with _somewhere("folder", folder):
                temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))

            # Let the caller write, then move its files.
            yield temporary
            folder.mkdir(exist_ok=True)
            for file in sorted(temporary.iterdir()):
                os.replace(file, folder / file.name)
            temporary.rmdir()
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            remove_empty_folders(made)
            raise


def make_folder(folder: Path) -> list[Path]:
    """Make `folder` and its missing parents; return those that were made, the deepest first.

    Raises:
        InputError: a file is in the way, there is no permission, or no folder can be there.
    """
    with explained_os_errors(folder):
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        try:
            with _somewhere("folder", folder):
                folder.mkdir(parents=True, exist_ok=True)
        except BaseException:
            remove_empty_folders(missing)
            raise
    return missing


def remove_empty_folders(folders: list[Path]) -> None:
    """Remove those of `folders` (deepest first) that are empty; leave the others."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON with a closing newline, atomically. NaN and infinity are refused (ValueError)."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
