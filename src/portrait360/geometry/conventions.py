"""From this project's cameras and world to those of a converted model, and back: the one place that does so.

Users, datasets and photos know one kind of camera (docs/conventions.md). A model trained elsewhere has its own radius,
focal length and point to look at, and its world may lie elsewhere and be of another scale (`CameraConfig`). Cameras
correspond by what they show: the camera that looks at a portrait from some side becomes the model's camera that looks
from the same side, framed as the model's images are. Points correspond by where they lie on the head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.config import CameraConfig
from portrait360.geometry.cameras import FOCAL, RADIUS, Angle, cam2world, camera_label, project, yaw_pitch
from portrait360.runtime.device import constant

OURS = CameraConfig()
"""The cameras of this project."""


def own_camera(
    camera: CameraConfig, yaw: Angle, pitch: Angle = 0.0, roll: Angle = 0.0, *, device: torch.device | str | None = None
) -> Float[Tensor, "B 25"]:
    """`camera_label` of a model's own cameras: radians, labels in the model's world."""
    return camera_label(
        yaw, pitch, roll, radius=camera.radius, focal=camera.focal, look_at=camera.look_at, device=device
    )


def model_camera(label: Float[Tensor, "B 25"], camera: CameraConfig) -> Float[Tensor, "B 25"]:
    """The model's camera for a camera of this project.

    `camera_label(yaw, pitch, roll)` becomes `own_camera(camera, yaw, pitch, roll)`. For any other label the angles are
    those of its position; what it deviates by in distance, axes, focal length and principal point carries over.
    Differentiable, but straight above and below. Without effect for models of this project's cameras.
    """
    return label if _same(camera) else _carried(label, OURS, camera)


def world_camera(label: Float[Tensor, "B 25"], camera: CameraConfig) -> Float[Tensor, "B 25"]:
    """The camera of this project for a camera of the model: the inverse of `model_camera`."""
    return label if _same(camera) else _carried(label, camera, OURS)


def model_points(points: Float[Tensor, "*n 3"], camera: CameraConfig) -> Float[Tensor, "*n 3"]:
    """Where points of this project's world lie in the model's."""
    return points if _same(camera) else (points - constant(camera.origin, points)) * camera.scale


def world_points(points: Float[Tensor, "*n 3"], camera: CameraConfig) -> Float[Tensor, "*n 3"]:
    """Where points of the model's world lie in this project's: the inverse of `model_points`."""
    return points if _same(camera) else points / camera.scale + constant(camera.origin, points)


def view_camera(label: Float[Tensor, "B 25"], camera: CameraConfig) -> Float[Tensor, "B 25"]:
    """The camera of this project's world that sees what the model's camera for `label` sees.

    It stands where the model's camera stands around the head, nearer or further than the one of `label`, and sees the
    part that the model's images show (`model_crop`).
    """
    if _same(camera):
        return label
    own = model_camera(label, camera)
    matrix = cam2world(own)
    position = world_points(matrix[:, None, :3, 3], camera)[:, 0, :, None]
    pose = torch.cat([torch.cat([matrix[:, :3, :3], position], dim=2), matrix[:, 3:]], dim=1)
    return torch.cat([pose.flatten(1), own[:, 16:]], dim=1)


def translated(label: Float[Tensor, "B 25"], shift: Float[Tensor, "B 3"]) -> Float[Tensor, "B 25"]:
    """A camera moved by `shift` along the axes of its world, looking in the same direction (equations 15.2)."""
    moved = label.clone()
    moved[:, [3, 7, 11]] += shift
    return moved


def model_crop(label: Float[Tensor, "B 25"], camera: CameraConfig) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
    """Which square of an image with this project's label `label` a model's image shows.

    Returns:
        Its centre (u right, v down) and its side, both in units of the image's side; the whole image for models of
        this project's cameras. A photo cropped to it belongs to `model_camera(label, camera)`.
    """
    if _same(camera):
        return label.new_full((len(label), 2), 0.5), label.new_ones(len(label))
    middle = world_points(constant(camera.look_at, label), camera).expand(len(label), 1, 3)
    centre, depth = project(label, middle)
    return centre[:, 0], camera.radius / (camera.focal * camera.scale) * label[:, 16] / depth[:, 0]


def _same(camera: CameraConfig) -> bool:
    return camera == OURS


def _carried(label: Tensor, before: CameraConfig, after: CameraConfig) -> Tensor:
    """A label of the cameras `before` as one of the cameras `after`, by its angles."""
    # Both cameras of the family at these angles.
    yaw, pitch = yaw_pitch(label)
    there = own_camera(before, yaw, pitch)
    here = own_camera(after, yaw, pitch)

    # Axes turn by what the families differ by, distances and focal lengths keep their ratios.
    matrix = cam2world(label)
    turn = cam2world(here)[:, :3, :3] @ cam2world(there)[:, :3, :3].mT
    axes = turn @ matrix[:, :3, :3]
    position = matrix[:, :3, 3:] * (after.radius / before.radius)
    pose = torch.cat([torch.cat([axes, position], dim=2), matrix[:, 3:]], dim=1)
    ratio = after.focal / before.focal
    k = label[:, 16:] * constant((ratio, ratio, 1.0, 1.0, ratio, 1.0, 1.0, 1.0, 1.0), label)
    return torch.cat([pose.flatten(1), k], dim=1)


assert (OURS.radius, OURS.focal) == (RADIUS, FOCAL)
