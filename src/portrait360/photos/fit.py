"""Camera, crop and body pose of a person in a photo: what explains best all that was found.

The portrait encoder predicts them for a crop, the person on a grey background, and for its mirror image; mediapipe's
face mesh, where a face shows, and shoulders are points of the body (`landmark_model`). The most likely camera and pose
under all of these, each with the error that it has on synthetic photos, is found by robust least squares (soft L1) from
several sides of the person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from scipy.optimize import least_squares
from torch import Tensor

from portrait360.encoder.network import HEAD, TORSO, PortraitEncoder, landmark_places, mean_encoded
from portrait360.geometry.body import BodyTemplate, bone_transforms
from portrait360.geometry.cameras import FOCAL, cam2world, camera_label, project
from portrait360.geometry.rotations import geodesic_angle
from portrait360.photos.body import same_attitude
from portrait360.photos.crop import Crop, Square
from portrait360.photos.detect import LEFT_SHOULDER, RIGHT_SHOULDER, Detection
from portrait360.photos.landmark_model import LandmarkModel
from portrait360.photos.matte import MattingModel, Outline, on_grey

ENCODER_PASSES = 2
"""Crops that are encoded: that of the landmarks, and one that the encoder corrected."""

_NEARLY = 0.15
"""Crops that differ by less than this (logarithm of their sides; offset, in units of the side) are averaged."""

_CAMERA_ERROR = np.array([math.radians(5.0), math.radians(4.5), math.radians(2.0), 0.03, 0.015, 0.015])
"""Standard errors of the encoder: yaw, pitch, roll, logarithm of the scale, offset."""
_POSE_ERROR = np.radians([4.9, 5.0, 3.4, 4.9, 5.6, 3.4])
_MESH_ERROR = 0.03
"""Share of the crop's side: points err together, as faces differ from the mean one, so each counts as a sixth."""
_SHOULDER_ERROR = 0.08
_STARTS = (0.0, math.radians(60.0), math.radians(-60.0))
"""Yaws from which the fit starts too where the encoder's prediction leaves a face unexplained."""
_EXPLAINED = 0.02
"""Distance of the face mesh from the fitted one, in units of the crop's side, up to which it is explained."""
_TOLERANCE = 1e-4
"""Relative change of the cost at which a fit ends: far below what any error is known to."""
MOST_TURN = math.radians(55.0)
"""Angle of neck or head beyond which a face mesh is ignored."""
_STEP = 1e-4
_LEAST_PERSON = 0.15
"""Share of a crop that a mask covers at least to be used; persons cover a third and more."""
_UNSURE = math.radians(20.0)
"""Angle between the encoder's two predictions at which the confidence is 1/e."""


@dataclass(frozen=True)
class Fit:
    """One person's camera, crop and pose."""

    square: Square
    """Of the crop."""
    camera: Float[Tensor, " 25"]
    """Label of the crop: radius 2.7 and the fixed focal length, roll kept (equations 13.4)."""
    body_pose: Float[Tensor, " 6"]
    fit_error: float
    """Root mean square distance between the face mesh, or where there is none the encoder's landmarks, and the
    fitted body's, in units of the side."""
    confidence: float
    """0 to 1: how well the predictions for the crop and for its mirror image agree, or how well a face mesh fits."""
    covered: float | None = None
    """Share of the person that things in front hide, as the encoder predicts it; None if it does not."""


@dataclass(frozen=True)
class View:
    """What the encoder predicts for one crop, the mirror image taken into account."""

    camera: Float[ndarray, " 6"]
    pose: Float[ndarray, " 6"]
    landmarks: Float[ndarray, "K 2"]
    spread: float
    """Angle between the two cameras, radians."""
    covered: float | None = None


def fit_person(
    photo: UInt8[ndarray, "H W 3"],
    person: Detection,
    encoder: PortraitEncoder,
    model: LandmarkModel,
    body: BodyTemplate,
    learned_on: BodyTemplate | None = None,
    *,
    matte: MattingModel | None = None,
) -> Fit:
    """Find crop, camera and body pose of a detected person.

    Args:
        photo: the whole photo, upright.
        person: where its landmarks are, or a first crop.
        encoder: the portrait encoder.
        model: where landmarks lie on the body.
        body: what the pose moves.
        learned_on: the body that the encoder was trained with; None for `body`.
        matte: what cuts the person out for the encoder, which takes furniture for shoulders; None: nothing does.
    """
    # Encode the first crop, and crops that each pass corrects.
    square, resolution = _first_square(person, model), encoder.config.resolution
    outline = None if matte is None else Outline(square.of(photo, resolution), matte)
    view = view_of(square.of(photo, resolution), encoder, outline)
    for _ in range(1, ENCODER_PASSES):
        square = square.moved(view.camera[4:], math.exp(view.camera[3]))
        view = mean_view(view, view_of(square.of(photo, resolution), encoder, outline))
    if learned_on is not None:
        view = replace(view, pose=same_attitude(view.pose, learned_on, body))

    # Fit camera and pose to all that was found.
    problem = FitProblem(view, person, square, model, body)
    solution = problem.solve()
    if person.mesh is not None and largest_turn(solution[6:]) > MOST_TURN:
        # no neck turns so far: what looked like a face was hair or clothes
        person = replace(person, mesh=None)
        problem = FitProblem(view, person, square, model, body)
        solution = problem.solve()

    # The crop of the solution, and how far it can be trusted.
    yaw, pitch, roll, log_scale = solution[:4]
    error = problem.distance(solution)
    confidence = math.exp(-view.spread / _UNSURE)
    if person.mesh is not None:
        confidence = max(confidence, math.exp(-error / _MESH_ERROR))
    return Fit(
        square.moved(solution[4:6], math.exp(log_scale)),
        camera_label(float(yaw), float(pitch), float(roll))[0],
        torch.from_numpy(solution[6:]).float(),
        error,
        confidence,
        view.covered,
    )


def largest_turn(body_pose: Float[ndarray, " 6"]) -> float:
    """The larger of the angles of neck and head, radians."""
    return float(np.linalg.norm(body_pose.reshape(2, 3), axis=1).max())


def _first_square(person: Detection, model: LandmarkModel) -> Square:
    if person.points is not None:
        (x, y), side = model.first_crop(person.points)
        return Square((float(x), float(y)), side)
    assert person.square is not None
    return person.square


def view_of(crop: Crop, encoder: PortraitEncoder, outline: Outline | None) -> View:
    """The mean of what the encoder predicts for a crop and for its mirror image; the person on a grey background."""
    # The image as the encoder takes it.
    image = crop.image
    if outline is not None:
        opacity = outline.opacity(crop)
        if opacity.mean() >= _LEAST_PERSON:
            image = on_grey(image, opacity)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0

    # Both predictions, their mean, and the angle between their cameras.
    straight, mirrored = encoder.encode_twice(pixels)
    mean = mean_encoded(straight, mirrored)
    axes = [cam2world(camera_label(one.camera.yaw, one.camera.pitch))[:, :3, :3] for one in (straight, mirrored)]
    camera = [mean.camera.yaw, mean.camera.pitch, mean.camera.roll, mean.camera.scale.log(), *mean.camera.offset.T]
    return View(
        torch.cat(camera).double().numpy(),
        mean.body_pose[0].double().numpy(),
        straight.landmarks[0].double().numpy(),
        float(geodesic_angle(*axes)),
        None if mean.covered is None else float(mean.covered),
    )


def mean_view(before: View, view: View) -> View:
    """A view with the mean turns of both, if the crop before was nearly the same: of clothes that the encoder was not
    trained on, its predictions differ even for nearly equal crops."""
    if np.abs(before.camera[3:]).max() > _NEARLY:
        return view
    yaw = math.remainder(before.camera[0] - view.camera[0], 2.0 * math.pi)
    camera = view.camera.copy()
    camera[:3] += 0.5 * np.array([yaw, *(before.camera[1:3] - view.camera[1:3])])
    return replace(view, camera=camera, pose=0.5 * (before.pose + view.pose))


class FitProblem:
    """Residuals in standard errors of the 12 numbers: yaw, pitch, roll, log scale, offset (of the crop that was
    encoded last), body pose."""

    def __init__(
        self,
        view: View,
        person: Detection,
        square: Square,
        model: LandmarkModel,
        body: BodyTemplate,
    ) -> None:
        self.view, self.model, self.body = view, model, body
        self.shoulders = None
        if person.points is not None:
            self.shoulders = torch.from_numpy(square.shares(person.points[[LEFT_SHOULDER, RIGHT_SHOULDER]]))
        self.mesh = None
        if person.mesh is not None:
            self.mesh = torch.from_numpy(square.shares(person.mesh[model.mesh_indices.numpy()]))

    def solve(self) -> Float[ndarray, " 12"]:
        """The fit from the encoder's prediction; where that leaves a face unexplained, the best of several."""
        guess = np.concatenate([self.view.camera, self.view.pose])
        fits = [self._fit(guess)]
        if self.mesh is not None and self.distance(fits[0].x) > _EXPLAINED:
            for turn in _STARTS:
                other = guess.copy()
                other[0], other[6:] = turn, 0.0
                fits.append(self._fit(other))
        return min(fits, key=lambda fit: fit.cost).x

    def _fit(self, start: Float[ndarray, " 12"]) -> Any:
        return least_squares(self.residuals, start, jac=self.jacobian, loss="soft_l1", max_nfev=30, ftol=_TOLERANCE)  # pyright: ignore[reportArgumentType]

    def places(self, numbers: Float[Tensor, "B 12"]) -> tuple[Float[Tensor, "B K 2"], Float[Tensor, "B 2 2"]]:
        """Where the points of the face mesh and the shoulders are in the crop."""
        motions = bone_transforms(self.body, numbers[:, 6:])
        label = self.labels(numbers)
        face = _moved(motions[:, HEAD], self.model.mesh_places)
        shoulders = _moved(motions[:, TORSO], self.model.shoulder_places)
        return project(label, face)[0], project(label, shoulders)[0]

    def labels(self, numbers: Float[Tensor, "B 12"]) -> Float[Tensor, "B 25"]:
        """Cameras of the crop that was encoded last."""
        label = camera_label(numbers[:, 0], numbers[:, 1], numbers[:, 2]).clone()
        label[:, 16] = label[:, 20] = FOCAL * numbers[:, 3].exp()
        label[:, 18], label[:, 21] = 0.5 + numbers[:, 4], 0.5 + numbers[:, 5]
        return label

    def _residuals(self, numbers: Float[Tensor, "B 12"]) -> Float[Tensor, "B R"]:
        face, shoulders = self.places(numbers)
        camera = numbers[:, :6] - torch.from_numpy(self.view.camera)
        yaw = torch.remainder(camera[:, :1] + math.pi, 2.0 * math.pi) - math.pi
        parts = [
            torch.cat([yaw, camera[:, 1:]], dim=1) / torch.from_numpy(_CAMERA_ERROR),
            (numbers[:, 6:] - torch.from_numpy(self.view.pose)) / torch.from_numpy(_POSE_ERROR),
        ]
        if self.shoulders is not None:
            parts.append((shoulders - self.shoulders).flatten(1) / _SHOULDER_ERROR)
        if self.mesh is not None:
            parts.append((face - self.mesh).flatten(1) / _MESH_ERROR)
        return torch.cat(parts, dim=1)

    def residuals(self, numbers: Float[ndarray, " 12"]) -> Float[ndarray, " R"]:
        return self._residuals(torch.from_numpy(numbers)[None])[0].numpy()

    def jacobian(self, numbers: Float[ndarray, " 12"]) -> Float[ndarray, "R 12"]:
        """By central differences, all in one batch."""
        steps = torch.eye(12, dtype=torch.float64) * _STEP
        here = torch.from_numpy(numbers)
        values = self._residuals(torch.cat([here + steps, here - steps]))
        return ((values[:12] - values[12:]) / (2.0 * _STEP)).T.numpy()

    def distance(self, numbers: Float[ndarray, " 12"]) -> float:
        """See `Fit.fit_error`."""
        x = torch.from_numpy(numbers)[None]
        if self.mesh is not None:
            difference = self.places(x)[0][0] - self.mesh
        else:
            difference = landmark_places(self.body, self.labels(x), x[:, 6:])[0] - torch.from_numpy(self.view.landmarks)
        scale = math.exp(numbers[3])
        return float(difference.square().sum(dim=1).mean().sqrt()) / scale


def _moved(motion: Float[Tensor, "B 3 4"], places: Float[Tensor, "K 3"]) -> Float[Tensor, "B K 3"]:
    return places.to(motion) @ motion[:, :, :3].transpose(1, 2) + motion[:, None, :, 3]
