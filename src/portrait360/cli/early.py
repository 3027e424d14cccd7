"""Checks of arguments before anything heavy is imported, so that a slip of the pen is answered at once.

The library checks the same again, in the same words; what can only be known from the content of a file it checks alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from portrait360.errors import CheckpointError, DatasetError, InputError
from portrait360.portrait.arguments import is_device_name


def check_dataset_place(path: Path) -> None:
    """Raise DatasetError unless a folder or a zip is there."""
    if not path.exists():
        raise DatasetError(f"there is no dataset at {path}.", "Check the path; it names a zip or a folder.")
    if path.is_file() and path.stat().st_size and not _begins_like_a_zip(path):
        raise DatasetError(
            f"{path} is not a zip file.", "A dataset is a zip or a folder with images/ and dataset.json."
        )


def _begins_like_a_zip(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"PK" or zipfile.is_zipfile(path)
    except OSError:
        return True  # the library says what is wrong with it


def check_weights_place(path: Path | None) -> None:
    """Raise CheckpointError unless a file or a folder is there, or none is asked for."""
    if path is not None and not path.exists():
        raise CheckpointError(f"there is no weights file at {path}.", "Check the path.")


def check_images_place(paths: Sequence[Path]) -> None:
    """Raise InputError unless something is at every path."""
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no image, folder or zip at {path}.", "Check the path.")


def check_photo_folder(path: Path) -> None:
    """Raise InputError unless a folder is there."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is not a folder.", "Name the folder that holds the photos.")
    if not path.exists():
        raise InputError(f"there is no folder at {path}.", "Check the path; it names a folder of photos.")


def check_folder_place(path: Path) -> None:
    """Raise InputError where a file is in the way of a folder."""
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise InputError(f"expected a folder but {place} is a file.", "Name a folder, or move that file away.")
            return


def check_device_name(name: str) -> None:
    """Raise InputError for what cannot be a device; whether this machine has it, the library finds."""
    if not is_device_name(name):
        kind = name.partition(":")[0]
        if kind.isalpha() and kind in _OTHER_DEVICES:
            raise InputError(f"networks do not run on {name!r} here.", "Use cpu, cuda or cuda:0.")
        raise InputError(f"{name!r} is not a device.", "Use cpu, cuda or cuda:0.")


_OTHER_DEVICES = ("meta", "mps", "xpu", "xla", "hip", "hpu", "mtia", "mkldnn", "vulkan", "ipu", "privateuseone")
"""Devices of torch that are none of ours."""
