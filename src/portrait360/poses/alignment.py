"""How far the canonical heads nod against the body template at rest.

Images cannot distinguish a head that nods in every body pose from poses that all nod: labels with a wrong mean leave
their error in the canonical space, where the head then leans the other way. The body template can. Its faces and
throats, nodding by many angles, are compared with the mean density of generated portraits; the best fitting nod is
the correction of the poses of generated images (docs/training.md).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.body import BodyTemplate, posed_vertices
from portrait360.geometry.cameras import camera_label
from portrait360.geometry.deformation import triangle_frames
from portrait360.geometry.nearest import nearest_triangles
from portrait360.model.generator import Generator
from portrait360.types import HEAD_NOD, NECK_NOD

REGION = ((-0.05, -0.03, 0.03), (0.05, 0.1, 0.19))
"""World units: face and throat; no hair but fringes, no clothes but high collars."""
BAND = 0.03
"""Only points so near to the template's skin, where it faces forward, are compared."""
SOFTNESS = 0.012
"""Width of the template's edge, by which people's faces differ. With it, the mean face and throat of 60 synthetic
people (hair and clothes on) fit best at 0.0 degrees of the neck and 0.7 of the head."""
STEP = 0.01
"""Length over which density counts as opacity."""
POINTS, PORTRAITS = 6000, 32
ANGLES = tuple(range(-14, 15, 2))
"""Nods of the neck and of the head that are tried, degrees."""
PULL = 8e-5
"""What a square degree costs: neck and head move a face alike, so of the pairs that fit the smallest is taken."""
SHARPNESS = 3e-4
"""Differences of fit below this are averaged over."""


class CanonicalTilt:
    """Made once per run from a body template; `measure` then takes a fraction of a second."""

    def __init__(self, body: BodyTemplate) -> None:
        self.body = body.to("cpu", torch.float32)

    @cached_property
    def _comparison(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points [N, 3], pairs of nods [G, 2] in degrees, the template's softened inside at the points [G, N]."""
        low, high = torch.tensor(REGION[0]), torch.tensor(REGION[1])
        random = torch.Generator().manual_seed(0)
        points = low + (high - low) * torch.rand(POINTS, 3, generator=random)
        outside, forward = signed_distance(points, self.body.vertices, self.body.faces)
        points = points[(outside.abs() < BAND) & (forward > 0.2)]
        nods = torch.cartesian_prod(torch.tensor(ANGLES), torch.tensor(ANGLES)).float()
        poses = torch.zeros(len(nods), 6)
        poses[:, [NECK_NOD, HEAD_NOD]] = torch.deg2rad(nods)
        inside = [
            torch.sigmoid(-signed_distance(points, vertices, self.body.faces)[0] / SOFTNESS)
            for vertices in posed_vertices(self.body, poses)
        ]
        return points, nods, torch.stack(inside)

    def fit(self, opacity: Float[Tensor, " N"]) -> Float[Tensor, "6"]:
        """Body pose (nods of neck and head, radians) in which the template is most like the opacity at `points`."""
        _, nods, inside = self._comparison
        cost = (inside - opacity).square().mean(dim=1) + PULL * nods.square().sum(dim=1)
        neck, head = torch.softmax(-cost / SHARPNESS, dim=0) @ nods
        return torch.deg2rad(torch.stack([neck, *neck.new_zeros(2), head, *neck.new_zeros(2)]))

    @property
    def points(self) -> Float[Tensor, "N 3"]:
        """Where densities are compared, in canonical space."""
        return self._comparison[0]

    @torch.no_grad()
    def measure(self, generator: Generator) -> Float[Tensor, "6"]:
        """The tilt of a generator's canonical heads, over the same latents each time; no random number is drawn."""
        device = next(generator.parameters()).device
        points = self.points.to(device)[None]
        z = torch.randn(PORTRAITS, generator.config.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
        front = camera_label(torch.zeros(PORTRAITS)).to(device)
        w = generator.map(z, front, z.new_zeros(PORTRAITS, 6))
        total = torch.zeros(points.shape[1], device=device)
        for one in w.split(1):
            density, _ = generator.query(generator.scene(one, gradients=False), points)
            total += 1.0 - torch.exp(-STEP * density[0, :, 0])
        return self.fit((total / PORTRAITS).cpu())


def signed_distance(points: Tensor, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to a closed mesh, negative inside, and how much the nearest triangle faces forward (its normal's z)."""
    triangles = vertices[faces]
    nearest, _, distance = nearest_triangles(points, triangles)
    corner, axes = triangle_frames(triangles[nearest])
    normal = axes[:, 1]
    away = ((points - corner) * normal).sum(dim=1)
    return distance * torch.where(away >= 0, 1.0, -1.0), normal[:, 2]


def nod_degrees(tilt: Float[Tensor, "6"]) -> tuple[float, float]:
    """Nod of neck and of head in degrees."""
    return math.degrees(float(tilt[NECK_NOD])), math.degrees(float(tilt[HEAD_NOD]))
