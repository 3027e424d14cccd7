"""Camera and body pose of a photo, corrected so that the rendering lies on it (Gauss-Newton)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.cameras import cam2world, camera_label, yaw_pitch
from portrait360.inversion.target import Target

ERRORS = torch.tensor(
    [
        *(math.radians(a) for a in (5.0, 4.5, 2.0)),
        0.03,
        0.015,
        0.015,
        *(math.radians(a) for a in (4.9, 5.0, 3.4, 4.9, 5.6, 3.4)),
    ]
)
"""Standard errors of `photos.fit`: yaw, pitch, roll, logarithm of the scale, offset right and down; neck and head."""
_STEP = 0.2
"""Of the differences, in standard errors."""
_SIDE = 64
_PIXELS = 150.0
"""Independent pixels: neighbours err together."""
_LEAST_ERROR = 1e-3
"""Sum of squares: a perfect rendering leaves the prior something to weigh."""
_MASK = 2.0
_SHARES = (1.0, 0.5, 0.2)
"""Parts of a Gauss-Newton step that are tried."""

Render = Callable[[Float[Tensor, "B 25"], Float[Tensor, "B 6"], int], tuple[Tensor, Tensor]]
"""Image on a grey background and opacity of the portrait under cameras and body poses, at a side."""


@dataclass(frozen=True)
class Alignment:
    """A target's first camera and body pose, and the 12 numbers by which they have changed."""

    camera: Float[Tensor, "1 25"]
    body_pose: Float[Tensor, "1 6"]
    change: Float[Tensor, " 12"]

    @staticmethod
    def of(target: Target) -> Alignment:
        """Nothing has changed yet."""
        return Alignment(target.camera, target.body_pose, torch.zeros(12))

    def labels(self, changes: Float[Tensor, "K 12"]) -> tuple[Float[Tensor, "K 25"], Float[Tensor, "K 6"]]:
        """Cameras and body poses of changes to the first ones."""
        yaw, pitch = yaw_pitch(self.camera)
        roll = _roll(self.camera, yaw, pitch)
        label = camera_label(yaw + changes[:, 0], pitch + changes[:, 1], roll + changes[:, 2]).clone()
        label[:, 16:] = self.camera[:, 16:]
        scale = changes[:, 3].exp()
        label[:, 16] *= scale
        label[:, 20] *= scale
        label[:, 18] += changes[:, 4]
        label[:, 21] += changes[:, 5]
        return label, self.body_pose + changes[:, 6:]


def _roll(camera: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """The roll of cameras against upright ones."""
    upright = cam2world(camera_label(yaw, pitch))[:, :3]
    right = cam2world(camera)[:, :3, 0]
    return torch.atan2((right * upright[:, :, 1]).sum(1), (right * upright[:, :, 0]).sum(1))


@torch.no_grad()
def align(target: Target, alignment: Alignment, render: Render, iterations: int = 2) -> tuple[Target, Alignment]:
    """Correct camera and body pose under the fit's own errors as a prior; never worse than before.

    Args:
        target: the photo as it is placed now.
        alignment: what has changed so far.
        render: the portrait as it is now.
        iterations: of Gauss-Newton.
    """
    shown = target.window(1.0, _SIDE)

    def small(image: Tensor, mask: Tensor) -> Float[Tensor, "K P"]:
        values = torch.cat([image, _MASK * mask], dim=1) * shown.known
        return F.avg_pool2d(values, 2).flatten(1)

    def rendered(changes: Float[Tensor, "K 12"]) -> Float[Tensor, "K P"]:
        cameras, poses = alignment.labels(changes)
        return small(*render(cameras, poses, _SIDE))

    wanted, step, x = small(shown.image, shown.mask), ERRORS * _STEP, alignment.change
    for _ in range(iterations):
        # Values and slopes by central differences
        values = rendered(torch.cat([x[None], x + step.diag(), x - step.diag()]))
        residual = (wanted - values[:1])[0]
        slopes = ((values[1:13] - values[13:]) / (2.0 * step[:, None])).T
        variance = residual.square().sum().clamp_min(_LEAST_ERROR) / _PIXELS

        # A step under the prior
        system = slopes.T @ slopes / variance + (1.0 / ERRORS.square()).diag()
        move = torch.linalg.solve(system, slopes.T @ residual / variance - x / ERRORS.square())
        tries = torch.stack([x, *(x + share * move for share in _SHARES)])
        errors = (wanted - torch.cat([values[:1], rendered(tries[1:])])).square().sum(dim=1) / variance
        costs = errors + (tries / ERRORS).square().sum(dim=1)
        best = int(costs.argmin())
        if best == 0:
            break
        x = tries[best]
    camera, pose = alignment.labels(x[None])
    return target.seen_from(camera, pose), Alignment(alignment.camera, alignment.body_pose, x)
