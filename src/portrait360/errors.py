"""Errors that a user can mend. Nothing is imported here, so that bad arguments are answered at once."""

from __future__ import annotations


class Portrait360Error(Exception):
    """Something the user can mend. `message` says what was expected and what came, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(Portrait360Error):
    """An argument, a file or an image is not what it should be."""


class CheckpointError(Portrait360Error):
    """A weights or checkpoint file is missing, broken, or belongs to another model."""


class DatasetError(Portrait360Error):
    """A dataset is missing, broken or inconsistent."""


class AssetError(Portrait360Error):
    """An asset cannot be fetched or does not match its checksum."""


class DivergenceError(Portrait360Error):
    """Training produced NaN or collapsed; the last good checkpoint is kept."""
