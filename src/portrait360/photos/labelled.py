"""Photos without labels as labelled pictures: a crop, a mask, a camera and a body pose for each person in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from portrait360.data.labelled_pictures import FittedCrop, LabelledPicture, Pixels
from portrait360.photos.fit import Fit
from portrait360.photos.outcome import PhotoError
from portrait360.photos.reading import read_photo
from portrait360.photos.worker import PhotoWorker
from portrait360.types import InputError

RESOLUTION = 512


@dataclass
class PhotoFitter:
    """Callable: the persons of a photo, the largest first (`labelled_pictures.FitPhoto`)."""

    worker: PhotoWorker = field(default_factory=lambda: PhotoWorker(RESOLUTION))

    def __call__(self, path: Path) -> list[LabelledPicture]:
        """Fit everybody in a photo.

        Raises:
            InputError: the photo cannot be read, nobody is in it, or mediapipe is not installed.
        """
        people = self.worker.fit(self._read(path))
        if not people:
            raise InputError(
                f"nobody was found in {path}, and there is no camera for it.",
                "Take a photo that shows head and shoulders, or, for a portrait that is cropped already, write"
                f' {{"camera": [25 numbers]}} into {path.with_suffix(".json").name} beside it (docs/conventions.md).',
            )
        found = []
        for number, (_, fit) in enumerate(people, start=1):
            crop = (*fit.centre, fit.side)
            name = str(path) if len(people) == 1 else f"{path}#{number}"
            fitted = FittedCrop(crop, fit.body_pose, fit.fit_error, fit.confidence)

            def read(fit: Fit = fit) -> Pixels:
                picture = self.worker.cut(self._read(path), fit)
                return picture.image, picture.mask

            found.append(LabelledPicture(name, fit.camera, read, (path,), fitted=fitted))
        return found

    def _read(self, path: Path) -> UInt8[ndarray, "H W 3"]:
        try:
            return read_photo(path)
        except PhotoError as error:
            raise InputError(
                f"{path} cannot be used: {error.message}", "Give a photo that a viewer can open."
            ) from error
