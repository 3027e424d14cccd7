"""Where mediapipe's landmarks lie on the body, and where a portrait's crop lies around them.

mediapipe's points are its own: its "ear" is not our mesh's. Synthetic photos tell where each lies at rest: the place
on its bone that, posed and projected as is true of each photo, comes closest to what was detected (robust least
squares, `tools/photo_landmarks.py`).
The first crop is a ridge regression on the pose landmarks, which mediapipe gives for every side of a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from portrait360.photos.detect import HEAD_POINTS, UPPER_POINTS
from portrait360.runtime.tensors import read_tensors, write_tensors
from portrait360.types import CheckpointError

_FORMAT = {"format": "portrait360", "kind": "photo-landmarks"}


@dataclass(frozen=True)
class LandmarkModel:
    """Places on the body and the first crop, as `tools/photo_landmarks.py` finds them."""

    mesh_indices: Int[Tensor, " K"]
    """Some points of the face mesh, far from each other."""
    mesh_places: Float[Tensor, "K 3"]
    """Where they lie on the head at rest, world units."""
    shoulder_places: Float[Tensor, "2 3"]
    """Left and right shoulder on the torso."""
    start: Float[Tensor, "F 3"]
    """Regression from `start_features` to centre and logarithm of the side of the crop."""

    def first_crop(self, points: Float[ndarray, "33 2"]) -> tuple[Float[ndarray, " 2"], float]:
        """Centre and side of a portrait's crop, pixels, from a person's pose landmarks."""
        features, middle, spread = start_features(points)
        x, y, log_side = features @ self.start.numpy()
        return middle + spread * np.array([x, y]), float(spread * np.exp(np.clip(log_side, -1.0, 3.0)))


def start_features(points: Float[ndarray, "33 2"]) -> tuple[Float[ndarray, " F"], Float[ndarray, " 2"], float]:
    """Upper landmarks about the middle of the head in units of their spread, with squares; the middle; the spread."""
    upper = points[list(UPPER_POINTS)]
    middle = points[list(HEAD_POINTS)].mean(axis=0)
    spread = max(float(np.sqrt(((upper - upper.mean(axis=0)) ** 2).sum(axis=1).mean())), 1e-3)
    placed = (upper - middle) / spread
    return np.concatenate([placed.ravel(), placed[:, 0] ** 2, placed[:, 1] ** 2, [1.0]]), middle, spread


def save_landmark_model(path: Path, model: LandmarkModel) -> None:
    """Write a model for `load_landmark_model`."""
    write_tensors(path, {name: getattr(model, name).contiguous() for name in vars(model)}, _FORMAT)


def load_landmark_model(path: Path | None = None) -> LandmarkModel:
    """The packaged model, or that of a file. Raises CheckpointError for a missing, broken or foreign file."""
    path = Path(str(files("portrait360") / "assets" / "photo_landmarks.safetensors")) if path is None else path
    tensors, metadata = read_tensors(path)
    names = ("mesh_indices", "mesh_places", "shoulder_places", "start")
    if any(metadata.get(key) != value for key, value in _FORMAT.items()) or any(n not in tensors for n in names):
        raise CheckpointError(f"{path} is no model of landmarks.", "Leave it out for the packaged one.")
    return LandmarkModel(*(tensors[name] for name in names))
