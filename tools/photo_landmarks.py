"""Where the points that mediapipe sees lie on the body, and where a portrait's crop lies around them.

    python -m tools.synthetic_photos --count 700 --seed 4001 --out photos
    python -m tools.photo_landmarks photos --out src/portrait360/assets/photo_landmarks.safetensors

mediapipe's points are its own: its "ear" is not our mesh's. Synthetic photos tell where each lies at rest: the place
on its bone that, posed and projected as is true of each photo, comes closest to what was seen (robust least squares).
The first crop is a ridge regression on the pose landmarks, which mediapipe gives for every side of a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.optimize import least_squares
from torch import Tensor

from portrait360.encoder.network import HEAD, TORSO
from portrait360.geometry.body import bone_transforms, load_body
from portrait360.geometry.cameras import project
from portrait360.photos.detect import HEAD_POINTS, LEFT_SHOULDER, RIGHT_SHOULDER, Detection, Detector
from portrait360.photos.folder import find_photos
from portrait360.photos.landmark_model import LandmarkModel, save_landmark_model, start_features
from portrait360.photos.reading import read_photo
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.types import DatasetError
from tools.synthetic_photos import read_truth

_MESH_POINTS = 48
_RIDGE = 1.0
_FACE_YAW = 80.0
"""Degrees from the front up to which a face mesh counts as seen."""


@dataclass(frozen=True)
class _Seen:
    """Landmarks of synthetic photos in units of the true crop, and what is true."""

    points: Float[ndarray, "N 33 2"]
    meshes: Float[ndarray, "M 478 2"]
    with_mesh: Int[ndarray, " M"]
    crops: Float[ndarray, "N 3"]
    pixels: Float[ndarray, "N 33 2"]
    camera: Float[Tensor, "N 25"]
    body_pose: Float[Tensor, "N 6"]


def _look(folder: Path) -> _Seen:
    """Detect the persons of a folder of synthetic photos."""
    truths, detector = read_truth(folder), Detector()
    points, meshes, with_mesh, crops, pixels, cameras, poses = [], [], [], [], [], [], []
    photos = [file for file in find_photos(folder) if file.name in truths]
    with show_progress("detecting", len(photos), "photos") as bar:
        for file in photos:
            truth = truths[file.name]
            centre, side = np.array(truth["centre"]), truth["side"]
            person = person_at(detector.find(read_photo(file.path)), centre, side)
            if person is not None and person.points is not None:
                yaw = np.degrees(np.arctan2(truth["camera"][3], truth["camera"][11]))
                if person.mesh is not None and abs(yaw) < _FACE_YAW:
                    meshes.append((person.mesh - centre) / side + 0.5)
                    with_mesh.append(len(points))
                points.append((person.points - centre) / side + 0.5)
                pixels.append(person.points)
                crops.append([*centre, side])
                cameras.append(truth["camera"])
                poses.append(truth["body_pose"])
            bar.advance(1)
    if len(with_mesh) < 20:
        raise DatasetError(f"only {len(with_mesh)} faces were found in {folder}.", "Draw more photos.")
    return _Seen(
        np.stack(points), np.stack(meshes), np.array(with_mesh), np.array(crops), np.stack(pixels),
        torch.tensor(cameras), torch.tensor(poses),
    )  # fmt: skip


def person_at(people: list[Detection], centre: Float[ndarray, " 2"], side: float) -> Detection | None:
    """The person whose head lies in the middle of a crop."""
    for person in people:
        points = person.points
        if points is not None and np.abs(points[list(HEAD_POINTS)].mean(axis=0) - centre).max() < 0.4 * side:
            return person
    return None


def _place(
    seen: Float[ndarray, "N 2"], motion: Float[Tensor, "N 3 4"], camera: Float[Tensor, "N 25"], guess: list[float]
) -> np.ndarray:
    """The point of a bone that projects closest to where it was seen."""

    def residuals(x: np.ndarray) -> np.ndarray:
        place = motion[:, :, :3] @ torch.from_numpy(x) + motion[:, :, 3]
        return (project(camera, place[:, None])[0][:, 0].numpy() - seen).ravel()

    return least_squares(residuals, guess, loss="soft_l1", f_scale=0.02).x


def _spread_out(places: np.ndarray, count: int) -> np.ndarray:
    """Points far from each other: each the farthest from those before it."""
    chosen = [0]
    distance = np.linalg.norm(places - places[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return np.array(chosen)


def calibrate(folder: Path) -> LandmarkModel:
    """Learn the model from a folder of synthetic photos. Raises DatasetError for other folders."""
    seen = _look(folder)
    motions = bone_transforms(load_body(), seen.body_pose).double()
    camera, some = seen.camera.double(), torch.from_numpy(seen.with_mesh)
    mesh = np.stack([
        _place(seen.meshes[:, k], motions[some, HEAD], camera[some], [0.0, 0.08, 0.1])
        for k in range(seen.meshes.shape[1])
    ])  # fmt: skip
    shoulders = [
        _place(seen.points[:, k], motions[:, TORSO], camera, [x, -0.1, 0.0])
        for k, x in ((LEFT_SHOULDER, 0.15), (RIGHT_SHOULDER, -0.15))
    ]
    rows, targets = [], []
    for points, (x, y, side) in zip(seen.pixels, seen.crops, strict=True):
        features, middle, spread = start_features(points)
        rows.append(features)
        targets.append([*((np.array([x, y]) - middle) / spread), np.log(side / spread)])
    a, b = np.stack(rows), np.array(targets)
    start = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ b)
    indices = _spread_out(mesh, _MESH_POINTS)
    return LandmarkModel(
        torch.from_numpy(indices),
        torch.from_numpy(mesh[indices]).float(),
        torch.from_numpy(np.stack(shoulders)).float(),
        torch.from_numpy(start).double(),
    )


def main(folder: Annotated[Path, tyro.conf.Positional], out: Path) -> None:
    """Learn where mediapipe's points lie from a folder of synthetic photos."""
    save_landmark_model(out, calibrate(folder))


if __name__ == "__main__":
    run_script(main)
