"""What photos add to a portrait's colours: their own pixels where they saw the surface, a tint where they did not.

A residual is a map in the photo's camera. A point of the canonical surface takes the body pose of the photo, is
projected into its camera, and reads the map there if nothing was in front of it (projective texture mapping, Debevec et
al. 1996). So the residual turns and bends with the portrait under any camera and body pose. Elsewhere a coarse
canonical grid of tints brings hair, skin and clothes to the colours that the photos have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.config import CameraConfig
from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.cameras import cam2world, project, rays
from portrait360.geometry.conventions import OURS, world_points
from portrait360.geometry.deformation import apply_field, deformation_field, posed_points
from portrait360.runtime.device import constant
from portrait360.types import RenderOutput

_DEPTH_MARGIN = 0.008
"""World units, about 10 mm: a point so far behind the surface that the photo saw still counts as seen."""
_DEPTH_SOFTNESS = 0.002
"""World units over which the margin fades."""
_SHARPNESS = 3.0
"""Exponent on the weights where several photos see a point: the one that saw it best counts most."""
_LEAST_OPACITY = 0.02
_CHUNK = 1 << 17


@dataclass(frozen=True)
class PhotoResidual:
    """The residual of one photo."""

    camera: Float[Tensor, "1 25"]
    """The label of the photo's crop."""
    body_pose: Float[Tensor, "1 6"]
    """Of the person in the photo, radians."""
    colour: Float[Tensor, "1 3 S S"]
    """To be added to the image, in its units of [-1, 1]."""
    weight: Float[Tensor, "1 1 S S"]
    """How much of it counts, 0 to 1: 0 off the surface and where the photo saw it at a grazing angle."""
    depth: Float[Tensor, "1 1 D D"]
    """Distance of the surface along the photo's rays, world units."""

    def at(self, body: BodyTemplate, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 1"]]:
        """Colour to be added at canonical points, and its weight."""
        posed = posed_points(body, self.body_pose, points[None])
        place = project(self.camera, posed)[0][:, None] * 2.0 - 1.0
        colour, weight, depth = (
            F.grid_sample(values, place, align_corners=False)[0, :, 0].T
            for values in (self.colour, self.weight, self.depth)
        )
        distance = (posed[0] - cam2world(self.camera)[0, :3, 3]).norm(dim=1, keepdim=True)
        seen = torch.sigmoid((depth + _DEPTH_MARGIN - distance) / _DEPTH_SOFTNESS)
        return colour, weight * seen


_SHAPES = {"camera": (1, 25), "body_pose": (1, 6), "colour": (1, 3), "weight": (1, 1), "depth": (1, 1)}
"""First sizes of a residual's tensors."""


def rounded(residual: PhotoResidual) -> PhotoResidual:
    """The residual as a file keeps it: colours and depths in float16, weights in bytes."""
    values = unpacked({name: value.float() for name, value in packed(residual).items()})
    assert values is not None
    return values


def packed(residual: PhotoResidual) -> dict[str, Tensor]:
    """The tensors that a file keeps of a residual."""
    return {
        "camera": residual.camera,
        "body_pose": residual.body_pose,
        "colour": residual.colour.half(),
        "weight": (residual.weight * 255.0).round().to(torch.uint8),
        "depth": residual.depth.half(),
    }


def unpacked(tensors: dict[str, Tensor]) -> PhotoResidual | None:
    """The inverse of `packed`; None if a tensor is missing or has another shape."""
    if set(tensors) != set(_SHAPES):
        return None
    for name, sizes in _SHAPES.items():
        shape = tensors[name].shape
        is_map = len(shape) == 4 and shape[2] == shape[3]
        if tuple(shape[:2]) != sizes or not (is_map or name in ("camera", "body_pose")):
            return None
    return PhotoResidual(**{**tensors, "weight": tensors["weight"].float() / 255.0})


@dataclass(frozen=True)
class Appearance:
    """What the photos of a portrait add to its colours."""

    residuals: tuple[PhotoResidual, ...]
    tint: Float[Tensor, "1 3 nz ny nx"] | None = None
    """Colours to be added where no photo saw the surface, in units of [-1, 1], at the nodes of `tint_nodes`."""

    def at(self, body: BodyTemplate, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The colour that is added at canonical points, in units of [-1, 1]."""
        parts = [self._at(body, some) for some in points.split(_CHUNK)]
        return torch.cat(parts) if parts else points.new_zeros(0, 3)

    def _at(self, body: BodyTemplate, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        # Of several photos, the one that saw a point best counts most
        read = [residual.at(body, points) for residual in self.residuals]
        weights = torch.stack([weight for _, weight in read])
        shares = weights**_SHARPNESS
        shares = shares / shares.sum(dim=0).clamp_min(1e-6)
        own = (torch.stack([colour for colour, _ in read]) * shares).sum(dim=0)

        # The tint fades in where none saw it
        best = weights.amax(dim=0)
        if self.tint is None:
            return own * best
        return own * best + look_up_tint(self.tint, points) * (1.0 - best)


TINT_MIN, TINT_MAX = (-0.22, -0.27, -0.2), (0.22, 0.22, 0.2)
"""The canonical box of the tint's nodes, those on its faces included; beyond it the values on its border continue."""
TINT_SHAPE = (32, 40, 36)
"""Nodes along z, y and x: about 12 mm apart."""


def tint_nodes() -> Float[Tensor, "nz ny nx 3"]:
    """Canonical positions of the nodes."""
    axes = [
        torch.linspace(low, high, count)
        for low, high, count in zip(TINT_MIN, TINT_MAX, reversed(TINT_SHAPE), strict=True)
    ]
    z, y, x = torch.meshgrid(*reversed(axes), indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def look_up_tint(tint: Float[Tensor, "1 3 nz ny nx"], points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Trilinear values at canonical points."""
    low, high = constant(TINT_MIN, points), constant(TINT_MAX, points)
    places = ((points - low) / (high - low) * 2.0 - 1.0)[None, None, None]
    return F.grid_sample(tint, places, padding_mode="border", align_corners=True)[0, :, 0, 0].T


def surface_points(camera: Float[Tensor, "B 25"], depth: Float[Tensor, "B 1 R R"]) -> Float[Tensor, "B M 3"]:
    """Posed places of the surface that a rendering shows, pixel by pixel."""
    origins, directions = rays(camera, depth.shape[-1])
    return origins + directions * depth.flatten(1)[..., None]


@torch.no_grad()
def coloured(
    appearance: Appearance,
    body: BodyTemplate,
    out: RenderOutput,
    camera: Float[Tensor, "B 25"],
    body_pose: Float[Tensor, "B 6"] | None,
    world: CameraConfig = OURS,
) -> Float[Tensor, "B 3 H W"]:
    """The image of a rendering with what the photos add to its surface.

    `camera` and the depths are of the model's world, which `world` describes.
    """
    # Depth and opacity at the image's side
    side = out.image.shape[-1]
    depth, mask = out.depth, out.mask
    if depth.shape[-1] != side:
        depth, mask = (F.interpolate(v, size=(side, side), mode="bilinear") for v in (depth, mask))

    # The canonical place of what each pixel shows
    points = world_points(surface_points(camera, depth), world)
    if body_pose is not None and bool(body_pose.any()):
        points = apply_field(deformation_field(body, body_pose), points)

    # Add where there is a surface
    added = torch.zeros_like(points)
    there = mask.flatten(1) > _LEAST_OPACITY
    added[there] = appearance.at(body, points[there])
    added = added.transpose(1, 2).unflatten(2, (side, side))
    return out.image + added * mask.clamp(0.0, 1.0)
