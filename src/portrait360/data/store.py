"""Read-only access to the files of a zip or a folder, from any thread and after any fork."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from portrait360.errors import DatasetError

MAX_FILE_BYTES = 1 << 30
"""No single file of a dataset is larger; a zip that claims so is broken or hostile."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 0x1


@runtime_checkable
class Store(Protocol):
    """Named files, read-only. Names are relative with '/' between folders, also where they were packed with '\\'."""

    path: Path

    def names(self) -> list[str]:
        """All file names, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file of `names()`. Raises DatasetError when it is broken."""
        ...

    def fingerprint(self) -> str:
        """Hex digest that changes with the content, without reading it: names and sizes, and checksums (of a zip) or
        times of change (of a folder)."""
        ...


def open_store(path: Path) -> Store:
    """Open a zip or a folder.

    Raises:
        DatasetError: nothing is there, it is no zip, or the zip is broken.
    """
    if path.is_dir():
        return FolderStore(path)
    if not path.exists():
        raise DatasetError(f"there is no dataset at {path}.", "Check the path; it names a zip or a folder.")
    return ZipStore(path)


def with_slashes(name: str) -> str:
    """A name with '/' between folders; programs on Windows write '\\'."""
    return name.replace("\\", "/")


class FolderStore:
    """The files below a folder. Links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = []
        for folder, _, files in os.walk(path):
            prefix = Path(folder).relative_to(path)
            found += [(prefix / file).as_posix() for file in files]
        self._places = {with_slashes(name): name for name in found}
        self._names = sorted(self._places)

    def names(self) -> list[str]:
        return self._names

    def read(self, name: str) -> bytes:
        if name not in self._places:
            raise DatasetError(f"{self.path} has no file {name}.", "The folder is incomplete; make it anew.")
        try:
            return (self.path / self._places[name]).read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{self.path / name} could not be read: {error.strerror}.", "Check its permissions."
            ) from error

    def fingerprint(self) -> str:
        states = ((name, (self.path / self._places[name]).stat()) for name in self._names)
        return _digest((name, state.st_size, state.st_mtime_ns) for name, state in states)


class ZipStore:
    """The files of a zip.

    `zipfile` shares one file position between threads and forked processes. Here its directory is read once,
    and each thread of each process reads the members through a handle of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        try:
            with zipfile.ZipFile(path) as archive:
                files = [info for info in archive.infolist() if not info.is_dir()]
            self._members = {with_slashes(info.filename): info for info in files}
        except PermissionError as error:
            raise DatasetError(f"{path} could not be read: {error.strerror}.", "Check its permissions.") from error
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            EOFError,
            struct.error,
            OSError,
        ) as error:
            with open(path, "rb") as file:
                is_zip = file.read(4) == _LOCAL_MAGIC
            if is_zip:
                raise self._broken("it seems to be cut off") from error
            raise DatasetError(
                f"{path} is not a zip file.", "A dataset is a zip or a folder with images/ and dataset.json."
            ) from error

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_local"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def names(self) -> list[str]:
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        # Refuse what cannot be read.
        info = self._members.get(name)
        if info is None:
            raise DatasetError(f"{self.path} has no file {name}.", "The zip is incomplete; make it anew.")
        if info.flag_bits & _ENCRYPTED:
            raise DatasetError(f"{name} in {self.path} is encrypted.", "Pack the dataset without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(
                f"{name} in {self.path} has an unknown compression.", "Pack the dataset stored or deflated."
            )
        if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
            raise self._broken(f"{name} claims to have {info.file_size} bytes")

        # Read past the local header, and unpack no more than the directory states.
        try:
            file = self._open()
            file.seek(info.header_offset)
            magic, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if magic != _LOCAL_MAGIC:
                raise self._broken(f"{name} is not where the directory has it")
            file.seek(name_length + extra_length, os.SEEK_CUR)
            content = file.read(info.compress_size)
            if info.compress_type == zipfile.ZIP_DEFLATED:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, max(info.file_size, 1))
        except (struct.error, zlib.error, OSError) as error:
            raise self._broken(f"{name} cannot be read") from error
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise self._broken(f"{name} does not match its checksum")
        return content

    def fingerprint(self) -> str:
        return _digest((name, info.file_size, info.CRC) for name, info in sorted(self._members.items()))

    def _open(self) -> IO[bytes]:
        """This thread's open file; opened anew after a fork, as the parent would move its position."""
        handle = getattr(self._local, "handle", None)
        if handle is None or handle.pid != os.getpid():
            handle = self._local.handle = _Handle(self.path)
        return handle.file

    def _broken(self, what: str) -> DatasetError:
        return DatasetError(f"the zip {self.path} is broken: {what}.", "Copy or download it again, or make it anew.")


def _digest(entries: Iterable[tuple[str, int, int]]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr(entry).encode())
    return digest.hexdigest()


class _Handle:
    """An open file that closes when its thread ends."""

    def __init__(self, path: Path) -> None:
        self.pid = os.getpid()
        self.file = open(path, "rb")  # noqa: SIM115 - closed below
        weakref.finalize(self, self.file.close)  # comes before the file's own end, also where both are in a circle
