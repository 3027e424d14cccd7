"""Readers of photos that need no networks: a photo is a small text with what becomes of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch

from portrait360.data import layout
from portrait360.geometry.cameras import camera_label
from portrait360.photos.gates import PhotoLimits
from portrait360.photos.records import PersonOutcome, PhotoError, PhotoFile, PhotoOutcome
from portrait360.types import AssetError


def write_photo(path: Path, kind: str = "good", seed: int = 0, yaw: float = 0.0) -> None:
    """A photo of a kind that `FakeWorker` knows; the same `seed` gives the same image, `yaw` is in degrees."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, "seed": seed, "yaw": yaw}))


def pixels(seed: int, side: int) -> np.ndarray:
    """A disc on a plain colour."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 3))
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    inside = np.hypot(x - 0.5, y - 0.5) < 0.3
    return np.where(inside[..., None], colours[0], colours[1]).astype(np.uint8)


def disc(side: int) -> np.ndarray:
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    return (np.hypot(x - 0.5, y - 0.5) < 0.3).astype(np.uint8) * 255


class FakeWorker:
    """Does what is in the photo."""

    def __init__(self, resolution: int, limits: PhotoLimits) -> None:
        self.resolution = resolution

    def __call__(self, file: PhotoFile) -> PhotoOutcome:
        said = json.loads(file.path.read_text())
        kind = said["kind"]
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while kind == "hang":
            signal.pause()
        if kind == "break":
            raise ZeroDivisionError("no such angle")
        if kind == "unreadable":
            raise PhotoError("unreadable", "the file is cut off.")
        if kind == "nobody":
            return PhotoOutcome(file.name, "no person", "Nobody was found.", (640, 480))
        people = [self._person(said["seed"], said["yaw"])]
        if kind == "two":
            label = camera_label(0.0)[0].numpy()
            crop = (10.0, 20.0, 30.0)
            people.append(PersonOutcome("too small", "30 pixels, not 64.", crop, {"side": 30.0}, label, np.zeros(6)))
        return PhotoOutcome(file.name, size=(640, 480), people=tuple(people))

    def _person(self, seed: int, yaw: float) -> PersonOutcome:
        rng = np.random.default_rng(seed)
        return PersonOutcome(
            None,
            "",
            (320.0, 240.0, 200.0),
            {"sharpness": float(rng.random())},
            camera_label(torch.tensor([np.deg2rad(yaw)], dtype=torch.float32), 0.1)[0].numpy(),
            rng.normal(0, 0.1, 6).astype(np.float32),
            layout.encode_image(pixels(seed, self.resolution)),
            layout.encode_mask(disc(self.resolution)),
            int.from_bytes(rng.bytes(8), "big"),
        )


class EndlessWorker(FakeWorker):
    """Reads the photo 30 until it is killed."""

    def __call__(self, file: PhotoFile) -> PhotoOutcome:
        while file.path.stem == "30":
            signal.pause()
        return super().__call__(file)


class MissingModel(FakeWorker):
    def __call__(self, file: PhotoFile) -> PhotoOutcome:
        raise AssetError("the model is missing.", "Fetch it.")


class Stillborn(FakeWorker):
    """Ends its process before it reads anything."""

    def __init__(self, resolution: int, limits: PhotoLimits) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Forgetful(FakeWorker):
    """Gives no reason why nobody was found: a mistake."""

    def __call__(self, file: PhotoFile) -> PhotoOutcome:
        return PhotoOutcome(file.name)
