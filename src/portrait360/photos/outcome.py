"""What became of a photo: the words in which the steps of `portrait360.photos` talk to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from numpy import ndarray

from portrait360.types import Portrait360Error


@dataclass(frozen=True)
class PhotoFile:
    """A file of the folder: where it is, and its name in the report (relative to the folder, with slashes)."""

    path: Path
    name: str


class PhotoError(Portrait360Error):
    """A photo, or a person in it, that cannot be used. `reason`: one of `quality.REASONS`; the message says more."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PersonOutcome:
    """One person in a photo, accepted (`reason` None) or not."""

    reason: str | None
    detail: str
    """A sentence that says why it was rejected, with the number and the threshold; empty when accepted."""
    crop: tuple[float, float, float] | None = None
    """Centre (right, down) and side of the square crop, in pixels of the upright photo."""
    measures: dict[str, float] = field(default_factory=dict)
    """What `quality` judged by."""
    camera: Float[ndarray, " 25"] | None = None
    body_pose: Float[ndarray, " 6"] | None = None
    """Neck, then head axis-angle, radians."""
    image: bytes | None = None
    mask: bytes | None = None
    """Encoded by `data.layout`; None unless accepted."""
    hash: int | None = None
    """64-bit perceptual hash of the crop, to find the same picture twice."""


@dataclass(frozen=True)
class PhotoOutcome:
    """One file of the folder."""

    name: str
    reason: str | None = None
    """Why nobody in it can be used, if that was known before looking at persons: unreadable, no person."""
    detail: str = ""
    size: tuple[int, int] | None = None
    """Width and height of the upright photo."""
    people: tuple[PersonOutcome, ...] = ()
