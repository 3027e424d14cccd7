"""Photos that a portrait is made from: read, found, cut and accepted exactly as `dataset photos` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portrait360.inversion.target import Target
from portrait360.photos.reading import read_photo
from portrait360.photos.records import PhotoError
from portrait360.photos.worker import Examined, PhotoWorker
from portrait360.types import InputError

MOST_PHOTOS = 8
_SIDE = 1024
"""Pixels of the crops: what a residual can show."""
_ALSO_LARGE = 0.6
"""A second head of this share of the largest one's crop makes it unclear who is meant."""
_SEVERAL = "several people"
_HELP = {
    "not an image": "Give a JPEG, PNG, WebP, TIFF or HEIC file.",
    "unreadable": "Open it in an image program and save it anew.",
    "too large": "Save a smaller copy.",
    "no person": "Give a photo that shows one person from the chest up.",
    "not upright": "Turn the photo and save it anew.",
    "too small": "Give a photo in which the person is larger.",
    "blurred": "Give a sharper photo.",
    "truncated": "Give a photo that shows the whole head and both shoulders.",
    "little margin": "Give a photo with more around head and shoulders.",
    "occluded": "Give a photo in which nothing hides head and shoulders.",
    "several heads": "Crop the photo to one person.",
    _SEVERAL: "Crop the photo to one person.",
    "low confidence": "Give a photo of the person upright and alone.",
    "bad fit": "Give a photo of the person upright, head and shoulders in view.",
    "exposure": "Give a photo that is neither black nor white over much of the person.",
    "not a person": "Give a photograph of a person.",
}
"""What would help, by the reason for which a photo is refused."""
_FORCE = " `force` uses it all the same."


@dataclass(frozen=True)
class UsedPhoto:
    """A photo that the portrait is made from."""

    name: str
    target: Target
    crop: tuple[float, float, float]
    """Centre (right, down) and side, pixels of the upright photo."""
    confidence: float
    has_face: bool
    warning: str | None
    """Why it would have been refused without `force`."""


@dataclass(frozen=True)
class RefusedPhoto:
    """A photo that is left out."""

    name: str
    reason: str
    detail: str


def read_photos(
    paths: Sequence[Path], *, force: bool = False, worker: PhotoWorker | None = None
) -> tuple[list[UsedPhoto], list[RefusedPhoto]]:
    """The photos that can be used, the one with the best evidence first, and those that cannot.

    Args:
        paths: of one person.
        force: use photos that the gates refuse, if a person was found in them.
        worker: reads them; the packaged networks when None.

    Raises:
        InputError: there is no such file, there are too many, or none can be used.
    """
    # What is asked for
    if not 0 < len(paths) <= MOST_PHOTOS:
        raise InputError(f"`photos` takes 1 to {MOST_PHOTOS} files, not {len(paths)}.", "Choose the best ones.")
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no photo at {path}.", "Check the path.")

    # One after the other
    worker = worker or PhotoWorker(_SIDE)
    used, refused = [], []
    for path in paths:
        try:
            used.append(_read(path, worker, force))
        except PhotoError as error:
            refused.append(RefusedPhoto(path.name, error.reason, error.message))
    if not used:
        first = refused[0]
        can_force = _FORCE if first.reason not in _WITHOUT_PERSON else ""
        raise InputError(
            f"{first.name} cannot be used ({first.reason}): {first.detail}", _HELP.get(first.reason, "") + can_force
        )
    return sorted(used, key=_evidence), refused


_WITHOUT_PERSON = ("not an image", "unreadable", "too large", "no person")


def _evidence(photo: UsedPhoto) -> tuple[bool, bool, float, float]:
    """Sorts what shows most first: photos that the gates accept, faces, confidence, pixels."""
    return photo.warning is not None, not photo.has_face, -round(photo.confidence, 1), -photo.crop[2]


def _read(path: Path, worker: PhotoWorker, force: bool) -> UsedPhoto:
    """Raises PhotoError where a photo is refused."""
    people = worker.look(read_photo(path)).people
    if not people:
        raise PhotoError("no person", "nobody was found in it.")
    first = people[0]
    if isinstance(first, PhotoError):
        raise first
    rejected = first.rejected or _unclear(first, people[1:])
    if rejected is not None and not force:
        raise PhotoError(*rejected)
    fit, cut = first.fit, first.cut
    target = Target.from_arrays(cut.image, cut.mask, fit.camera, fit.body_pose, cut.inside)
    warning = None if rejected is None else f"{rejected[0]}: {rejected[1]}"
    return UsedPhoto(path.name, target, fit.square.numbers, fit.confidence, first.has_face, warning)


def _unclear(first: Examined, others: Sequence[Examined | PhotoError]) -> tuple[str, str] | None:
    """The refusal of a photo with somebody else as large."""
    sides = [other.fit.square.side for other in others if isinstance(other, Examined)]
    if max(sides, default=0.0) < _ALSO_LARGE * first.fit.square.side:
        return None
    return _SEVERAL, f"{1 + len(sides)} people are in it, and it is unclear who is meant."
