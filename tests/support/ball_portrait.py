"""A scene without a network, for tests: a ball for the head, with a square neck, on a box for the shoulders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import rays
from portrait360.geometry.conventions import OURS
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.types import RenderOutput

BALL_CENTRE = (0.0, 0.08, 0.01)
BALL_RADIUS = 0.1
BALL_BOX = ((-0.2, -0.18, -0.15), (0.2, 0.2, 0.15))
SHOULDERS = ((-0.16, -0.2, -0.07), (0.16, -0.07, 0.07))
NECK = ((-0.04, -0.09, -0.03), (0.04, 0.0, 0.05))
DENSITY = 400.0
SKIN = (0.8, 0.6, 0.5)
SHIRT = (0.1, 0.2, 0.6)


def coarse_meshes(monkeypatch: pytest.MonkeyPatch, step: float = 0.01) -> None:
    """Meshes of large triangles with small textures, laid out in a hurry."""
    monkeypatch.setattr("portrait360.portrait.portrait.MESH_STEP", step)
    monkeypatch.setattr("portrait360.portrait.arguments.DEFAULT_TEXTURE", 256)
    monkeypatch.setattr("portrait360.media.unwrap._LAYOUT", 400)
    monkeypatch.setattr("portrait360.media.unwrap.LEAST_COVERAGE", 0.0)


class BallPortrait:
    """Head of skin colour bright at the face (+Z) and dark at the back; a blue box below; grey around."""

    resolution = 32
    own_side = None
    posable = True
    camera = OURS
    appearance = None

    def __init__(self, seed: int = 0, *, neck: bool = True) -> None:
        self.neck = neck  # without it the head floats
        self.scene = SimpleNamespace(w=torch.full((1, 4), float(seed)))
        self.brightness = 1.0 - 0.1 * (seed % 5)
        self.queries = 0
        self.body = load_body()

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(BALL_BOX[0]), torch.tensor(BALL_BOX[1])

    def query(self, points: Tensor, body_pose: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.queries += len(points)
        head = points
        if body_pose is not None:
            turn = axis_angle_to_matrix(body_pose[:3]) @ axis_angle_to_matrix(body_pose[3:])
            head = points @ turn  # row vectors: this is the inverse rotation
        ball = (head - torch.tensor(BALL_CENTRE)).norm(dim=1) < BALL_RADIUS
        below, above = torch.tensor(NECK)
        ball |= self.neck & ((points > below) & (points < above)).all(dim=1)  # it does not bend
        low, high = torch.tensor(SHOULDERS)
        box = ((points > low) & (points < high)).all(dim=1)
        face = (0.75 + 0.25 * (head[:, 2:] - BALL_CENTRE[2]) / BALL_RADIUS).clamp(0.5, 1.0)
        colour = torch.where(ball[:, None], torch.tensor(SKIN) * face, torch.tensor(SHIRT))
        return (ball | box) * DENSITY, colour * self.brightness

    def render(self, camera: Tensor, body_pose: Tensor | None = None, resolution: int | None = None) -> RenderOutput:
        side = self.resolution if resolution is None else resolution
        origins, directions = rays(camera, side)
        step = 0.01
        distances = torch.arange(2.35, 3.05, step)
        points = origins[:, :, None] + directions[:, :, None] * distances[:, None]
        density, colour = [], []
        for i in range(len(camera)):
            d, c = self.query(points[i].reshape(-1, 3), None if body_pose is None else body_pose[i])
            density.append(d.reshape(points.shape[1:3]))
            colour.append(c.reshape(*points.shape[1:3], 3))
        alpha = 1.0 - torch.exp(-torch.stack(density) * step)
        light = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1.0 - alpha], dim=-1), dim=-1)
        weights = light[..., :-1] * alpha
        opacity = weights.sum(-1, keepdim=True)
        seen = (weights[..., None] * torch.stack(colour)).sum(-2) + (1.0 - opacity) * 0.5
        depth = (weights * distances).sum(-1, keepdim=True)

        def image_of(values: Tensor) -> Tensor:
            return values.transpose(1, 2).reshape(len(camera), -1, side, side)

        image = image_of(seen) * 2.0 - 1.0
        return RenderOutput(image=image, raw=image, mask=image_of(opacity), depth=image_of(depth))
