"""Files of the user's that change what becomes of photos: a matting network, a quality network, a body.

They are known by their SHA-256, so that a job that was stopped goes on with the same ones only, and so that the report
and the dataset tell which they were. Processes read them themselves: on a cluster all machines must see them under the
same path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from portrait360.runtime.files import explain_os_error
from portrait360.runtime.tensors import file_sha256
from portrait360.types import InputError


@dataclass(frozen=True)
class UserFile:
    """A file as it was when the work began."""

    path: Path
    """Absolute."""
    sha256: str

    def check(self) -> Path:
        """The path of the file, unless the file has changed (InputError)."""
        if open_user_file(self.path, "file").sha256 != self.sha256:
            raise InputError(f"{self.path} has changed since the work began.", "Leave it alone until the work is done.")
        return self.path

    def about(self) -> dict[str, str]:
        """Name and SHA-256, for the report."""
        return {"file": self.path.name, "sha256": self.sha256}


def open_user_file(path: Path, what: str) -> UserFile:
    """A file and its SHA-256. Raises InputError when it is missing or cannot be read; `what` names its kind."""
    path = Path(os.path.abspath(path))
    try:
        return UserFile(path, file_sha256(path))
    except OSError as error:
        missing = InputError(f"there is no {what} at {path}.", "Check the path.")
        raise explain_os_error(error, path) or missing from error


@dataclass(frozen=True)
class UserFiles:
    """Those that were given."""

    matting: UserFile | None = None
    quality: UserFile | None = None
    body: UserFile | None = None

    def asked(self) -> dict[str, str]:
        """What distinguishes jobs with these files from others, as `runtime.job_files.difference` words it."""
        named = {"matting_network": self.matting, "quality_network": self.quality, "body": self.body}
        return {f"sha256_of_the_{name}": "none" if file is None else file.sha256 for name, file in named.items()}

    def about(self) -> dict[str, dict[str, str]]:
        """Name and SHA-256 of each file, for report and dataset."""
        return {name: file.about() for name, file in vars(self).items() if file is not None}


def open_user_files(matting: Path | None, quality: Path | None, body: Path | None) -> UserFiles:
    """The files at these paths. Raises InputError when one is missing or cannot be read."""
    return UserFiles(
        None if matting is None else open_user_file(matting, "matting network"),
        None if quality is None else open_user_file(quality, "quality network"),
        None if body is None else open_user_file(body, "body"),
    )
