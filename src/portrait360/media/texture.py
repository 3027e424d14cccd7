"""Textures: where each texel lies on a surface, and the colour of a field seen there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from scipy import ndimage
from torch import Tensor

from portrait360.kernels import raster
from portrait360.media.mesh import Mesh, Query, smoothed_normals
from portrait360.media.unwrap import Unwrapped

Recolour = Callable[[Float[ndarray, "N 3"], Float[ndarray, "N 3"]], Float[ndarray, "N 3"]]
"""From points of the surface (world units, at rest) and their baked colours (sRGB in [0, 1]) to other colours."""

_DEPTHS = tuple(0.75 * k for k in range(-2, 8))
"""Grid steps along a ray, from outside to inside, that `surface_colours` samples."""
_SIDEWAYS = math.radians(45.0)
"""Angle of the second and third ray to the normal."""
_SHARES = (0.5, 0.25, 0.25)
"""Of the three rays in a colour."""
_SMOOTHING = 10
"""Passes over the normals against which rays run: eyes and mouth lie millimetres below the surface, and rays that
follow its every wrinkle would distort them."""
_CHUNK = 1 << 16
_MARGIN = 1 / 64
"""Share of the texture's side by which colours are continued beyond their charts."""


@dataclass(frozen=True)
class Texels:
    """The texels of a texture that lie on a surface."""

    covered: Bool[ndarray, "S S"]
    points: Float[ndarray, "N 3"]
    """World units, row by row."""
    normals: Float[ndarray, "N 3"]
    """Unit vectors that point outward."""


def bake_texture(
    query: Query,
    mesh: Mesh,
    flat: Unwrapped,
    side: int,
    *,
    step: float,
    recolour: Recolour | None = None,
) -> UInt8[ndarray, "S S 3"]:
    """The texture of a surface in a field.

    Args:
        query: the field.
        mesh: its surface.
        flat: the surface's layout.
        side: of the texture, texels.
        step: world units that the surface may be off the field's; see `surface_colours`.
        recolour: what becomes of the field's colours; None: they are kept.
    """
    calm = dataclasses.replace(mesh, normals=smoothed_normals(mesh, _SMOOTHING))
    texels = find_texels(calm, flat, side)
    colours = surface_colours(query, texels.points, texels.normals, step)
    if recolour is not None:
        colours = recolour(texels.points, colours)
    image = np.zeros((side, side, 3), np.float32)
    image[texels.covered] = np.clip(colours, 0.0, 1.0)
    return np.round(spread(image, texels.covered) * 255.0).astype(np.uint8)


def find_texels(mesh: Mesh, flat: Unwrapped, side: int) -> Texels:
    """Point and normal of the surface at the centre of every texel that a triangle covers."""
    # Which triangle covers each texel.
    corners = np.column_stack([flat.uv.astype(np.float64) * side, np.ones(len(flat.uv))])
    face = covering_faces(corners, flat.faces, side)
    texel = np.flatnonzero(face >= 0)

    # Where in it the texel's centre lies.
    centre = np.stack([texel % side + 0.5, texel // side + 0.5], axis=1)
    inside = flat.faces[face[texel]]
    shares = barycentric(centre, corners[inside, :2]).astype(np.float32)[..., None]
    vertex = flat.source[inside]
    points = (mesh.vertices[vertex] * shares).sum(axis=1)
    normals = (mesh.normals[vertex] * shares).sum(axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Texels((face >= 0).reshape(side, side), points, normals)


def covering_faces(
    screen: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"], side: int, *, perspective: bool = False
) -> Int[ndarray, " P"]:
    """The nearest triangle at the centre of each of `side` x `side` pixels, -1 for none.

    `screen`: x to the right and y down in pixels, depth.
    """
    count, plain = len(faces), np.zeros(1, np.int32)
    depth, face = np.full(side * side, np.inf), np.full(side * side, -1, np.int32)
    corners, atlas = np.zeros((count, 3, 2), np.float32), np.zeros((1, 1, 4), np.uint8)
    faces, material = np.ascontiguousarray(faces, np.int32), np.zeros(count, np.int32)
    raster.raster_depth(screen, faces, corners, material, plain, plain, atlas, perspective, 0, side, depth, face)
    return face


def barycentric(points: Float[ndarray, "N 2"], triangles: Float[ndarray, "N 3 2"]) -> Float[ndarray, "N 3"]:
    """Weights of the corners of a triangle for a point in it each."""
    a, b, c = (triangles[:, i] for i in range(3))
    area = np.cross(b - a, c - a)
    second = np.cross(points - a, c - a) / area
    third = np.cross(b - a, points - a) / area
    return np.stack([1.0 - second - third, second, third], axis=1)


@torch.no_grad()
def surface_colours(
    query: Query, points: Float[ndarray, "N 3"], normals: Float[ndarray, "N 3"], step: float
) -> Float[ndarray, "N 3"]:
    """The colours, sRGB in [0, 1], with which a field shows at points of its surface.

    Each is the weighted mean of three short volume-rendered rays through the point: against the normal (one half), and
    from 45 degrees to its left and right, since hair and cloth have no sharp surface and cameras go round people.

    Args:
        query: the field.
        points: on the surface or near it.
        normals: unit vectors that point outward.
        step: world units; rays are sampled from 1.5 of them outside to 5.25 inside.
    """
    parts: list[Tensor] = []
    for start in range(0, len(points), _CHUNK):
        chosen = slice(start, start + _CHUNK)
        place = torch.from_numpy(np.ascontiguousarray(points[chosen], np.float32))
        outward = torch.from_numpy(np.ascontiguousarray(normals[chosen], np.float32))
        seen = [_short_rays(query, place, direction, step) for direction in _directions(outward)]
        parts.append(torch.einsum("r,rnc->nc", place.new_tensor(_SHARES), torch.stack(seen)))
    return torch.cat(parts).numpy() if parts else np.zeros((0, 3), np.float32)


def _directions(outward: Float[Tensor, "N 3"]) -> list[Float[Tensor, "N 3"]]:
    """The normals, and the same turned to both sides about the axis across them that is nearest to the vertical."""
    up = torch.tensor([0.0, 1.0, 0.0])
    sideways = torch.linalg.cross(up.expand_as(outward), outward, dim=-1)
    level = torch.tensor([1.0, 0.0, 0.0])
    length = torch.linalg.vector_norm(sideways, dim=-1, keepdim=True)
    sideways = torch.where(length > 1e-3, sideways / length.clamp_min(1e-3), level)
    ahead, across = math.cos(_SIDEWAYS) * outward, math.sin(_SIDEWAYS) * sideways
    return [outward, ahead + across, ahead - across]


def _short_rays(
    query: Query, points: Float[Tensor, "N 3"], outward: Float[Tensor, "N 3"], step: float
) -> Float[Tensor, "N 3"]:
    """Colours of rays against `outward`, rendered from samples through the surface."""
    depths = points.new_tensor(_DEPTHS) * step
    samples = points[:, None] - depths[:, None] * outward[:, None]
    density, colour = (values.float().cpu() for values in query(samples.reshape(-1, 3)))
    # The small constant gives a colour even where a cap of the box has no density at all.
    optical = (density.reshape(len(points), -1) + 1e-3) * float(depths[1] - depths[0])
    passed = torch.exp(-(optical.cumsum(dim=1) - optical))
    weights = passed * (1.0 - torch.exp(-optical))
    seen = (weights[..., None] * colour.reshape(*weights.shape, 3)).sum(dim=1)
    return (seen / weights.sum(dim=1, keepdim=True)).clamp(0.0, 1.0)


def spread(image: Float[ndarray, "S S 3"], covered: Bool[ndarray, "S S"]) -> Float[ndarray, "S S 3"]:
    """The image with each uncovered texel near a covered one coloured like the nearest, and others like the mean.

    Smaller versions of the texture (mipmaps) then mix in no strange colour at the rims of charts.
    """
    if not covered.any():
        return image
    found: Any = ndimage.distance_transform_edt(~covered, return_indices=True)
    distance, nearest = found
    near = distance <= max(2.0, _MARGIN * len(image))
    filled = image[nearest[0], nearest[1]]
    return np.where(near[..., None], filled, image[covered].mean(axis=0, dtype=np.float64)).astype(np.float32)
