"""A camera by its angles, in degrees."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.cameras import camera_label
from portrait360.types import InputError


@dataclass(frozen=True)
class Camera:
    """A camera on the sphere around the neck joint that every camera of this project lies on (docs/conventions.md)."""

    yaw: float = 0.0
    """Degrees; 0 is the front, positive towards the person's left."""
    pitch: float = 0.0
    """Degrees; positive is above."""
    roll: float = 0.0
    """Degrees; positive turns the person counter-clockwise in the image."""

    def __post_init__(self) -> None:
        for name, angle in (("yaw", self.yaw), ("pitch", self.pitch), ("roll", self.roll)):
            if not math.isfinite(angle):
                raise InputError(f"`{name}` must be an angle in degrees, not {angle}.", f"Try `{name}=30`.")

    @property
    def label(self) -> Float[Tensor, " 25"]:
        """The camera label: cam2world 4x4 row-major (OpenCV axes), then the normalised intrinsics 3x3, float32."""
        return camera_label(*(math.radians(angle) for angle in (self.yaw, self.pitch, self.roll)))[0]
