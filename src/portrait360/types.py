"""Shape aliases, render results and error types shared by every stage.

Shapes are jaxtyping annotations on public functions; the test run checks them (see ``pyproject.toml``).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

CAMERA_LABEL_SIZE = 25
"""A camera label: cam2world 4x4 row-major (OpenCV axes), then intrinsics 3x3 divided by the image size."""

BODY_POSE_SIZE = 6
"""A body pose: neck axis-angle, then head axis-angle, radians."""

NECK_NOD, HEAD_NOD = 0, 3
"""Places of the two nods among the six numbers of a body pose."""


class Portrait360Error(Exception):
    """Something the user can mend. `message` says what was expected and what came, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(Portrait360Error):
    """An argument, a file or an image is not what it should be."""


class CheckpointError(Portrait360Error):
    """A weights or checkpoint file is missing, broken, or belongs to another model."""


class DatasetError(Portrait360Error):
    """A dataset is missing, broken or inconsistent."""


class AssetError(Portrait360Error):
    """An asset cannot be fetched or does not match its checksum."""


class DivergenceError(Portrait360Error):
    """Training produced NaN or collapsed; the last good checkpoint is kept."""


@dataclass(frozen=True)
class RenderOutput:
    """What one generator pass returns. `image` and `raw` lie in [-1, 1] nominally, `mask` in [0, 1].

    `raw` is the volume-rendered image before super-resolution (the same tensor as `image` without one);
    `depth` is the distance along the ray in world units; `background` is the background image or None; `features`
    are the rendered features over the background's, of which `raw` is made.
    """

    image: Float[Tensor, "B 3 H W"]
    raw: Float[Tensor, "B 3 R R"]
    mask: Float[Tensor, "B 1 R R"]
    depth: Float[Tensor, "B 1 R R"]
    background: Float[Tensor, "B 3 R R"] | None = None
    features: Float[Tensor, "B F R R"] | None = None
