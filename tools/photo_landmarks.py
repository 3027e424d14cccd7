"""Fit where mediapipe's landmarks lie on the body, and where a portrait's crop lies around them.

    python -m tools.synthetic_photos --count 700 --seed 4001 --out photos
    python -m tools.photo_landmarks photos --out src/portrait360/assets/photo_landmarks.safetensors

mediapipe's points are its own: its "ear" is not our mesh's. Synthetic photos with known poses give the place at rest of
each: the one on its bone that, posed and projected with the true labels, comes closest to the detected points (robust
least squares).
The first crop is a ridge regression on the pose landmarks, which mediapipe gives for every side of a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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
"""Degrees from the front up to which a face mesh is used."""


@dataclass(frozen=True)
class _Landmarks:
    """Detected landmarks of N synthetic photos, in units of the true crop, with the true labels.

    `meshes` of the M photos `with_mesh`; `pixels` are `points` in the photo; `crops` are centre and side, pixels.
    """

    points: Float[ndarray, "N 33 2"]
    meshes: Float[ndarray, "M 478 2"]
    with_mesh: Int[ndarray, " M"]
    crops: Float[ndarray, "N 3"]
    pixels: Float[ndarray, "N 33 2"]
    camera: Float[Tensor, "N 25"]
    body_pose: Float[Tensor, "N 6"]


def _detect(folder: Path) -> _Landmarks:
    """Detect the persons of a folder of synthetic photos."""
    # Photos in which the person is found where it is.
    truths, detector = read_truth(folder), Detector()
    photos = [file for file in find_photos(folder) if file.name in truths]
    found: list[tuple[Detection, dict[str, Any]]] = []
    with show_progress("detecting", len(photos), "photos") as bar:
        for file in photos:
            truth = truths[file.name]
            person = person_at(detector.find(read_photo(file.path)), np.array(truth["centre"]), truth["side"])
            if person is not None:
                found.append((person, truth))
            bar.advance(1)

    # Landmarks in units of the true crop, with its labels.
    parts = [_in_crop(person, truth) for person, truth in found]
    with_mesh = [row for row, part in enumerate(parts) if part.mesh is not None]
    if len(with_mesh) < 20:
        raise DatasetError(f"only {len(with_mesh)} faces were found in {folder}.", "Render more photos.")
    return _Landmarks(
        points=np.stack([part.points for part in parts]),
        meshes=np.stack([part.mesh for part in parts if part.mesh is not None]),
        with_mesh=np.array(with_mesh),
        crops=np.array([[*truth["centre"], truth["side"]] for _, truth in found]),
        pixels=np.stack([person.points for person, _ in found if person.points is not None]),
        camera=torch.tensor([truth["camera"] for _, truth in found]),
        body_pose=torch.tensor([truth["body_pose"] for _, truth in found]),
    )


@dataclass(frozen=True)
class _InCrop:
    """Landmarks of one person in units of the true crop; `mesh` None where the face is turned away."""

    points: Float[ndarray, "33 2"]
    mesh: Float[ndarray, "478 2"] | None


def _in_crop(person: Detection, truth: dict[str, Any]) -> _InCrop:
    centre, side = np.array(truth["centre"]), truth["side"]
    yaw = np.degrees(np.arctan2(truth["camera"][3], truth["camera"][11]))
    facing = person.mesh is not None and abs(yaw) < _FACE_YAW
    assert person.points is not None
    return _InCrop(
        (person.points - centre) / side + 0.5,
        (person.mesh - centre) / side + 0.5 if facing and person.mesh is not None else None,
    )


def person_at(people: list[Detection], centre: Float[ndarray, " 2"], side: float) -> Detection | None:
    """The person whose head lies in the centre of a crop."""
    for person in people:
        points = person.points
        if points is not None and np.abs(points[list(HEAD_POINTS)].mean(axis=0) - centre).max() < 0.4 * side:
            return person
    return None


def fit_place(
    detected: Float[ndarray, "N 2"], motion: Float[Tensor, "N 3 4"], camera: Float[Tensor, "N 25"], guess: list[float]
) -> np.ndarray:
    """The point of a bone that projects closest to where it was detected."""

    def residuals(x: np.ndarray) -> np.ndarray:
        place = motion[:, :, :3] @ torch.from_numpy(x) + motion[:, :, 3]
        return (project(camera, place[:, None])[0][:, 0].numpy() - detected).ravel()

    return least_squares(residuals, guess, loss="soft_l1", f_scale=0.02).x


def spread_out(places: np.ndarray, count: int) -> np.ndarray:
    """Points far from each other: each the farthest from those before it."""
    chosen = [0]
    distance = np.linalg.norm(places - places[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return np.array(chosen)


def calibrate(folder: Path) -> LandmarkModel:
    """Fit the model to a folder of synthetic photos. Raises DatasetError for other folders."""
    # Where mediapipe's points lie on head and torso.
    found = _detect(folder)
    motions = bone_transforms(load_body(), found.body_pose).double()
    camera, some = found.camera.double(), torch.from_numpy(found.with_mesh)
    mesh = np.stack([
        fit_place(found.meshes[:, k], motions[some, HEAD], camera[some], [0.0, 0.08, 0.1])
        for k in range(found.meshes.shape[1])
    ])  # fmt: skip
    shoulders = [
        fit_place(found.points[:, k], motions[:, TORSO], camera, [x, -0.1, 0.0])
        for k, x in ((LEFT_SHOULDER, 0.15), (RIGHT_SHOULDER, -0.15))
    ]

    # The first crop: ridge regression on the pose landmarks.
    rows, targets = [], []
    for points, (x, y, side) in zip(found.pixels, found.crops, strict=True):
        features, middle, spread = start_features(points)
        rows.append(features)
        targets.append([*((np.array([x, y]) - middle) / spread), np.log(side / spread)])
    a, b = np.stack(rows), np.array(targets)
    start = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ b)

    # Points of the mesh that lie far from each other.
    indices = spread_out(mesh, _MESH_POINTS)
    return LandmarkModel(
        torch.from_numpy(indices),
        torch.from_numpy(mesh[indices]).float(),
        torch.from_numpy(np.stack(shoulders)).float(),
        torch.from_numpy(start).double(),
    )


def main(folder: Annotated[Path, tyro.conf.Positional], out: Path) -> None:
    """Write where mediapipe's landmarks lie on the body (.safetensors), from a folder of synthetic photos."""
    save_landmark_model(out, calibrate(folder))


if __name__ == "__main__":
    run_script(main)
