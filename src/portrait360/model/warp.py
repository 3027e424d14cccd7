"""The shape of a person as a motion of canonical space: an identity warp.

Without it the tri-grid of each person must hold eyes, nose and mouth at the places where that person has them, so a
generator draws a shifted copy of each feature for each person. With it the tri-grid is read at displaced positions:
the displacement is linear in the style, as in a morphable model (Blanz and Vetter 1999), and what the tri-grid holds is
aligned between people. The warp cannot turn or shift the head as a whole; that is what the body pose does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from portrait360.config import WarpConfig
from portrait360.runtime.device import constant


class IdentityWarp(nn.Module):
    """Displacements of canonical positions at the nodes of a grid around the head, linear in the style.

    They fade to zero at the faces of the grid's box, have no part that moves the head rigidly, and are mirror images
    left and right: of a face that was seen from the side, the other half follows.
    """

    fade: Tensor
    rigid: Tensor

    def __init__(self, config: WarpConfig, w_dim: int) -> None:
        super().__init__()
        self.config = config
        nz, ny, nx = (count - 2 for count in config.shape)
        self.free_shape = (nz, ny, (nx + 1) // 2, 3)  # of the nodes that are not on the faces of the box
        numbers = math.prod(self.free_shape)
        self.weight = nn.Parameter(torch.zeros(numbers, w_dim))
        self.bias = nn.Parameter(torch.zeros(numbers))
        self.gain = config.scale / math.sqrt(w_dim)

        fade = fade_out(config.shape)
        self.register_buffer("fade", fade, persistent=False)
        self.register_buffer("rigid", rigid_motions(config, fade), persistent=False)

    def forward(self, w: Float[Tensor, "L S"]) -> Float[Tensor, "L nz ny nx 3"]:
        """Displacements in world units of each style."""
        # Half of the nodes, and their mirror images
        half = F.linear(w.float(), self.weight * self.gain, self.bias * self.config.scale).view(
            len(w), *self.free_shape
        )
        moved = F.pad(mirrored(half, self.config.shape[2] - 2), (0, 0, 1, 1, 1, 1, 1, 1))

        # Little motion near the border, and none of the head as a whole
        faded = (moved * self.fade[..., None]).flatten(1)
        free = faded - (faded @ self.rigid) @ self.rigid.T
        return free.view(len(w), *self.config.shape, 3)

    def displace(
        self, displacements: Float[Tensor, "B nz ny nx 3"], points: Float[Tensor, "B *shape 3"]
    ) -> Float[Tensor, "B *shape 3"]:
        """Trilinear displacements at canonical points; zero beyond the grid."""
        low, high = constant(self.config.low, points), constant(self.config.high, points)
        places = ((points - low) / (high - low) * 2.0 - 1.0).reshape(len(points), 1, 1, -1, 3)
        values = displacements.permute(0, 4, 1, 2, 3)
        sampled = F.grid_sample(values, places, padding_mode="zeros", align_corners=True)
        return sampled.flatten(2).transpose(1, 2).reshape(points.shape)


def mirrored(half: Float[Tensor, "B nz ny _h 3"], count: int) -> Float[Tensor, "B nz ny nx 3"]:
    """Displacements at all `count` nodes along x from those of the first half; in the middle none points sideways."""
    sideways = half * constant((-1.0, 1.0, 1.0), half)
    if count % 2:
        middle = 0.5 * (half[:, :, :, -1:] + sideways[:, :, :, -1:])
        return torch.cat([half[:, :, :, :-1], middle, sideways[:, :, :, :-1].flip(3)], dim=3)
    return torch.cat([half, sideways.flip(3)], dim=3)


def fade_out(shape: tuple[int, int, int]) -> Float[Tensor, "nz ny nx"]:
    """0 at the outermost nodes, 1/2 at the next, 1 within."""
    fade = torch.ones(shape)
    for axis, count in enumerate(shape):
        distance = torch.minimum(torch.arange(count), torch.arange(count).flip(0))
        fade = fade * (distance / 2.0).clamp_max(1.0).view([-1 if a == axis else 1 for a in range(3)])
    return fade


def grid_nodes(config: WarpConfig) -> Float[Tensor, "nz ny nx 3"]:
    """Canonical positions of the grid's nodes."""
    axes = [
        torch.linspace(low, high, count)
        for low, high, count in zip(config.low, config.high, reversed(config.shape), strict=True)
    ]
    z, y, x = torch.meshgrid(*reversed(axes), indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def rigid_motions(config: WarpConfig, fade: Float[Tensor, "nz ny nx"]) -> Float[Tensor, "N 6"]:
    """An orthonormal basis of the faded grid's three shifts and three turns about its centre."""
    nodes = grid_nodes(config).double()
    arms = nodes - nodes.mean(dim=(0, 1, 2))
    axes = torch.eye(3, dtype=torch.float64).view(3, 1, 1, 1, 3)
    shifts = axes.expand(3, *nodes.shape)
    turns = torch.linalg.cross(shifts, arms.expand(3, *nodes.shape))
    motions = torch.cat([shifts, turns]) * fade.double()[..., None]
    return torch.linalg.qr(motions.flatten(1).T)[0].float()
