"""The estimated camera and body pose of a person in an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from portrait360.config import Vector3
from portrait360.data.labelled_images import FittedCrop
from portrait360.geometry.cameras import yaw_pitch
from portrait360.geometry.rotations import axis_angle_to_matrix, geodesic_angle

_DIGITS = 4


@dataclass(frozen=True, repr=False)
class PoseEstimate:
    """Camera and body pose of a person in an image. Angles of the properties are degrees."""

    name: str
    """Path of the image; several persons in one photo are told apart by #1, #2, ..."""
    camera: Float[Tensor, " 25"]
    """The camera label (docs/conventions.md)."""
    body_pose: Float[Tensor, " 6"]
    """Neck then head, axis-angle in radians."""
    labels: dict[str, Float[Tensor, " 6"]] = field(default_factory=dict)
    """Body poses that a dataset gives, radians, by kind (exact, coarse, estimated)."""
    fitted: FittedCrop | None = None
    """Where the person was found in a photo without a camera; camera and body pose are then fitted."""

    @property
    def yaw(self) -> float:
        """Of the camera: 0 is the front, positive towards the person's left."""
        return round(yaw_pitch(self.camera[None])[0].rad2deg().item(), _DIGITS)

    @property
    def pitch(self) -> float:
        """Of the camera: positive is above."""
        return round(yaw_pitch(self.camera[None])[1].rad2deg().item(), _DIGITS)

    @property
    def neck(self) -> Vector3:
        """Turn of the neck, axis-angle: X nods down, Y turns to the person's left, Z tilts to their right."""
        return degrees(self.body_pose)[0]

    @property
    def head(self) -> Vector3:
        """Turn of the head against the neck, in the same way."""
        return degrees(self.body_pose)[1]

    def errors(self, kind: str) -> tuple[float, float]:
        """Angles between the estimated and the labelled turn of the neck, and of the head."""
        first, second = (
            axis_angle_to_matrix(pose.double().unflatten(0, (2, 3))) for pose in (self.body_pose, self.labels[kind])
        )
        neck, head = geodesic_angle(first, second).rad2deg().tolist()
        return round(neck, _DIGITS), round(head, _DIGITS)

    def as_json(self) -> dict[str, Any]:
        """What `portrait360 pose` writes of it."""
        entry = {
            "camera": self.camera.tolist(),
            "yaw_degrees": self.yaw,
            "pitch_degrees": self.pitch,
            **_pose_json(self.body_pose),
        }
        if self.fitted is not None:
            x, y, side = self.fitted.crop
            entry["crop"] = {"centre": [round(x, 2), round(y, 2)], "side": round(side, 2)}
            if self.fitted.turned:
                entry["turned"] = self.fitted.turned
            entry["fit_error"] = round(self.fitted.fit_error, _DIGITS)
            entry["confidence"] = round(self.fitted.confidence, _DIGITS)
        labels = {}
        for kind, pose in self.labels.items():
            neck, head = self.errors(kind)
            labels[kind] = _pose_json(pose) | {"neck_error_degrees": neck, "head_error_degrees": head}
        return entry | ({"labels": labels} if labels else {})

    def __repr__(self) -> str:
        neck, head = (tuple(round(angle, 1) for angle in part) for part in (self.neck, self.head))
        return f"PoseEstimate({self.name!r}, yaw={self.yaw:.1f}, pitch={self.pitch:.1f}, neck={neck}, head={head})"


def degrees(body_pose: Float[Tensor, " 6"]) -> tuple[Vector3, Vector3]:
    """Axis-angle vectors of neck and head in degrees."""
    a, b, c, d, e, f = body_pose.double().rad2deg().round(decimals=_DIGITS).tolist()
    return (a, b, c), (d, e, f)


def _pose_json(body_pose: Float[Tensor, " 6"]) -> dict[str, list[float]]:
    neck, head = degrees(body_pose)
    return {"body_pose": body_pose.tolist(), "neck_degrees": list(neck), "head_degrees": list(head)}
