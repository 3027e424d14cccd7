"""Shape aliases, render results and error types shared by every stage.

Shapes are jaxtyping annotations on public functions; the test run checks them (see ``pyproject.toml``).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from portrait360.errors import AssetError as AssetError
from portrait360.errors import CheckpointError as CheckpointError
from portrait360.errors import DatasetError as DatasetError
from portrait360.errors import DivergenceError as DivergenceError
from portrait360.errors import InputError as InputError
from portrait360.errors import Portrait360Error as Portrait360Error

CAMERA_LABEL_SIZE = 25
"""A camera label: cam2world 4x4 row-major (OpenCV axes), then intrinsics 3x3 divided by the image size."""

BODY_POSE_SIZE = 6
"""A body pose: neck axis-angle, then head axis-angle, radians."""

NECK_NOD, HEAD_NOD = 0, 3
"""Places of the two nods among the six numbers of a body pose."""


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
