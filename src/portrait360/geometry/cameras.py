"""Camera labels of 25 numbers: building, reading, mirroring, and the rays and projections they stand for.

A label holds the 4x4 camera-to-world matrix, row-major, with OpenCV axes (columns right, down, forward,
position), then the 3x3 intrinsics divided by the image size. Angles are radians. See docs/conventions.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from portrait360.runtime.device import constant

FOCAL = 5000 / 1024 / 0.75
"""Focal length in units of the image size."""

RADIUS = 2.7
"""Distance of every camera from the neck joint, world units."""

LOOK_AT = (0.0, 0.0649, 0.0)
"""The point every camera looks at: the height of the head joint above the neck joint."""

_LABEL_MIRROR = tuple(-1.0 if i in (1, 2, 3, 4, 8) else 1.0 for i in range(25))
_POSE_MIRROR = (1.0, -1.0, -1.0, 1.0, -1.0, -1.0)

Angle = Float[Tensor, " B"] | float | int


def camera_label(
    yaw: Angle,
    pitch: Angle = 0.0,
    roll: Angle = 0.0,
    *,
    radius: float = RADIUS,
    focal: float = FOCAL,
    look_at: tuple[float, float, float] = LOOK_AT,
    device: torch.device | str | None = None,
) -> Float[Tensor, "B 25"]:
    """Labels of cameras on a sphere around the neck joint that look at `look_at`.

    `yaw` is 0 in front and positive towards the subject's left, `pitch` is positive above; the position is
    radius * (sin yaw cos pitch, sin pitch, cos yaw cos pitch). Positive `roll` turns the camera's right axis
    towards its down axis, so that the subject appears turned counter-clockwise. Numbers give B = 1.
    """
    # Angles as tensors of one length.
    angles = [yaw, pitch, roll]
    given = next((angle for angle in angles if isinstance(angle, Tensor)), None)
    dtype = torch.float32 if given is None else given.dtype
    device = device if device is not None or given is None else given.device
    tensors = [torch.as_tensor(angle, dtype=dtype, device=device).reshape(-1) for angle in angles]
    yaws, pitches, rolls = torch.broadcast_tensors(*tensors)
    zero, one = torch.zeros_like(yaws), torch.ones_like(yaws)

    # Position and axes.
    position = radius * torch.stack([yaws.sin() * pitches.cos(), pitches.sin(), yaws.cos() * pitches.cos()], dim=-1)
    forward = F.normalize(position.new_tensor(look_at) - position, dim=-1)
    # right = forward x up; straight above or below it vanishes, and the limit along the meridian takes over
    level = torch.stack([-forward[:, 2], zero, forward[:, 0]], dim=-1)
    meridian = torch.stack([yaws.cos(), zero, -yaws.sin()], dim=-1)
    vertical = torch.linalg.vector_norm(level, dim=-1, keepdim=True) < 1e-6
    right = F.normalize(torch.where(vertical, meridian, level), dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)

    # Roll, and everything row by row.
    cosine, sine = rolls.cos()[:, None], rolls.sin()[:, None]
    columns = [cosine * right + sine * down, cosine * down - sine * right, forward, position]
    top = torch.stack(columns, dim=-1).flatten(1)
    focals, half = torch.full_like(yaws, focal), torch.full_like(yaws, 0.5)
    rest = [zero, zero, zero, one, focals, zero, half, zero, focals, half, zero, zero, one]
    return torch.cat([top, torch.stack(rest, dim=-1)], dim=1)


def cam2world(label: Float[Tensor, "B 25"]) -> Float[Tensor, "B 4 4"]:
    """The camera-to-world matrices: columns right, down, forward, position."""
    return label[:, :16].unflatten(1, (4, 4))


def intrinsics(label: Float[Tensor, "B 25"]) -> Float[Tensor, "B 3 3"]:
    """The intrinsic matrices, in units of the image size."""
    return label[:, 16:].unflatten(1, (3, 3))


def yaw_pitch(label: Float[Tensor, "B 25"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Yaw and pitch of the camera position as seen from the neck joint."""
    x, y, z = label[:, 3], label[:, 7], label[:, 11]
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))


SECTORS = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
"""Eight sectors of 45 degrees, centred at yaw 0, 45, ... degrees (positive towards the subject's left)."""


def yaw_sector(yaw: Float[Tensor, " N"], count: int = len(SECTORS)) -> Int[Tensor, " N"]:
    """Which of `count` equal sectors each yaw (radians) lies in; sector 0 is centred on the front, then to the left."""
    return torch.remainder(torch.round(yaw / (2.0 * math.pi / count)), count).long()


def is_left(label: Float[Tensor, "B 25"]) -> Bool[Tensor, " B"]:
    """Whether the camera stands on the subject's left, the plane of symmetry included (x >= 0)."""
    return label[:, 3] >= 0


def mirror_camera(label: Float[Tensor, "B 25"]) -> Float[Tensor, "B 25"]:
    """The label that belongs to the left-right mirrored image."""
    return label * constant(_LABEL_MIRROR, label)


def mirror_body_pose(pose: Float[Tensor, "B 6"]) -> Float[Tensor, "B 6"]:
    """The body pose that belongs to the left-right mirrored image."""
    return pose * constant(_POSE_MIRROR, pose)


def zoom_camera(label: Float[Tensor, "B 25"], factor: float | Float[Tensor, " B"]) -> Float[Tensor, "B 25"]:
    """The label that belongs to the middle of the image, 1 / factor of its side, enlarged to the whole frame."""
    zoomed = label.clone()
    k = zoomed[:, 16:].unflatten(1, (3, 3))
    each = factor[:, None] if isinstance(factor, Tensor) else factor
    k[:, :2, 0] *= each
    k[:, :2, 1] *= each
    k[:, :2, 2] = (k[:, :2, 2] - 0.5) * each + 0.5
    return zoomed


def rays(label: Float[Tensor, "B 25"], side: int) -> tuple[Float[Tensor, "B M 3"], Float[Tensor, "B M 3"]]:
    """Origins and unit directions of the rays through the centres of `side` x `side` pixels.

    Pixel centres lie at (i + 0.5) / side; rays run row by row, columns fastest, M = side * side.
    """
    matrix, k = cam2world(label), intrinsics(label)
    centres = (torch.arange(side, dtype=label.dtype, device=label.device) + 0.5) / side
    v, u = (grid.flatten()[None] for grid in torch.meshgrid(centres, centres, indexing="ij"))
    y = (v - k[:, 1, 2, None]) / k[:, 1, 1, None]
    x = (u - k[:, 0, 2, None] - k[:, 0, 1, None] * y) / k[:, 0, 0, None]
    one = torch.ones_like(x)
    # by way of points in the world, as the original: its rounding shows in its images (equations 5.1)
    points = (torch.stack([x, y, one, one], dim=-1) @ matrix.transpose(1, 2))[..., :3]
    origins = matrix[:, None, :3, 3].expand_as(points)
    return origins, F.normalize(points - origins, dim=-1)


def ray_box(
    origins: Float[Tensor, "B M 3"],
    directions: Float[Tensor, "B M 3"],
    box_min: tuple[float, float, float],
    box_max: tuple[float, float, float],
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Where rays enter and leave an axis-aligned box, in units of the direction's length: near, far, hit.

    Only the part in front of the origin counts (an origin inside the box gives near = 0). Rays that miss have
    near = far = 0.
    """
    low, high = constant(box_min, origins), constant(box_max, origins)
    tiny = torch.finfo(directions.dtype).tiny
    safe = torch.where(directions.abs() < tiny, torch.full_like(directions, tiny), directions)
    first, second = (low - origins) / safe, (high - origins) / safe
    near = torch.minimum(first, second).amax(-1).clamp_min(0)
    far = torch.maximum(first, second).amin(-1)
    hit = far > near
    zero = torch.zeros_like(near)
    return torch.where(hit, near, zero), torch.where(hit, far, zero), hit


def project(
    label: Float[Tensor, "B 25"], points: Float[Tensor, "B N 3"]
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N"]]:
    """Image positions (u right, v down, both 0 to 1 inside the frame) and depths along the optical axis."""
    matrix, k = cam2world(label), intrinsics(label)
    camera_space = torch.linalg.solve(matrix[:, :3, :3], (points - matrix[:, None, :3, 3]).transpose(1, 2))
    x, y, depth = camera_space.unbind(1)
    x, y = x / depth, y / depth
    u = k[:, 0, 0, None] * x + k[:, 0, 1, None] * y + k[:, 0, 2, None]
    v = k[:, 1, 1, None] * y + k[:, 1, 2, None]
    return torch.stack([u, v], dim=-1), depth
