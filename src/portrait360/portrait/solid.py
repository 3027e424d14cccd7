"""A portrait's surface, textured and rigged, to be saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from portrait360.config import Vector3
from portrait360.geometry.conventions import OURS, model_points, world_points
from portrait360.geometry.rig import joint_rotations, make_rig, skinned
from portrait360.media.glb import TexturedMesh, glb_bytes
from portrait360.media.mesh import Query, extract_mesh, vertex_normals
from portrait360.media.obj import write_obj
from portrait360.media.texture import Recolour, bake_texture
from portrait360.media.unwrap import light_and_flat
from portrait360.portrait.scene import SceneRenderer, mesh_box
from portrait360.runtime.files import atomic_write
from portrait360.types import BODY_POSE_SIZE, InputError

METRES_PER_UNIT = 1.41459
"""World units become metres in files: a skull reaches 0.165 units, or 0.233 m, above the neck joint."""
TRIANGLES = 16_000
"""Of a mesh, at most. More show no better (docs/lab), and the texture falls into more charts."""


@dataclass(frozen=True)
class PortraitMesh:
    """A closed triangle mesh of a portrait at rest, with a texture and with joints for neck and head."""

    textured: TexturedMesh
    """Surface, layout, texture and rig; world units (docs/conventions.md)."""
    name: str
    extras: dict[str, Any]
    """JSON that programs find in the file: where the portrait comes from, its licence, and its pose."""
    body_pose: Float[Tensor, " 6"]
    """Radians: how the joints are turned in the file."""

    def save(self, path: str | Path) -> Path:
        """Write a file that Blender, browsers and game engines open; in metres, Y up, facing +Z.

        Args:
            path: .glb (binary glTF 2.0: one file with texture and joints, which open as posed), or .obj (with .mtl and
                .png beside it; no joints, the pose is baked in).

        Raises:
            InputError: `path` has another ending, or cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".glb":
            with atomic_write(path) as temporary:
                temporary.write_bytes(self.to_glb())
        elif path.suffix.lower() == ".obj":
            vertices = self.posed_vertices()
            normals = vertex_normals(vertices, self.textured.surface.faces)
            write_obj(path, self.textured, vertices, normals, metres=METRES_PER_UNIT)
        else:
            raise InputError(f"`path` must be a .glb or .obj file, not {path}.", f"Try {path.with_suffix('.glb')}.")
        return path

    def to_glb(self) -> bytes:
        """The content of a .glb file; the same portrait gives the same bytes."""
        return glb_bytes(
            self.textured,
            name=self.name,
            extras=self.extras,
            metres=METRES_PER_UNIT,
            rotations=joint_rotations(self.body_pose),
        )

    def posed_vertices(self) -> Float[ndarray, "V 3"]:
        """The surface's vertices as the joints move them, world units."""
        vertices = self.textured.surface.vertices
        if not self.body_pose.any():
            return vertices
        return skinned(self.textured.rig, vertices, self.body_pose).astype(np.float32)

    def __repr__(self) -> str:
        surface, side = self.textured.surface, len(self.textured.texture)
        return f"PortraitMesh({len(surface.vertices)} vertices, {len(surface.faces)} triangles, texture {side})"


@torch.no_grad()
def textured_mesh(renderer: SceneRenderer, side: int, *, step: float) -> TexturedMesh:
    """The surface of a person at rest, light, laid out flat, textured and rigged.

    Args:
        renderer: the person.
        side: of the texture, texels.
        step: world units between the points where the density is read.

    Raises:
        InputError: there is nothing solid.
    """
    camera = renderer.camera
    box = mesh_box(renderer.bounds, torch.zeros(BODY_POSE_SIZE), renderer.body, camera)
    low, high = (_corner(world_points(torch.tensor(corner, dtype=torch.float64), camera)) for corner in box)
    query = _query_in_our_world(renderer)
    dense = extract_mesh(query, low, high, step=step, smallest_share=1.0)
    light, flat = light_and_flat(dense, TRIANGLES, floor=low[1], step=step)
    texture = bake_texture(query, light, flat, side, step=step, recolour=photo_colours(renderer))
    return TexturedMesh(light, flat, texture, make_rig(renderer.body, light.vertices))


def _corner(point: Float[Tensor, " 3"]) -> Vector3:
    x, y, z = point.tolist()
    return x, y, z


def _query_in_our_world(renderer: SceneRenderer) -> Query:
    """`renderer.query` at points of this project's world, density per unit of it."""
    camera = renderer.camera
    if camera == OURS:
        return renderer.query

    def query(points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        density, colour = renderer.query(model_points(points, camera))
        return density * camera.scale, colour

    return query


def photo_colours(renderer: SceneRenderer) -> Recolour | None:
    """What photos make of the field's colours at points of the surface; None for portraits that are not from photos."""
    appearance = renderer.appearance
    if appearance is None:
        return None

    def recolour(points: Float[ndarray, "N 3"], colours: Float[ndarray, "N 3"]) -> Float[ndarray, "N 3"]:
        added = appearance.at(renderer.body, torch.from_numpy(points).float())
        return colours + 0.5 * added.numpy()  # from [-1, 1] to [0, 1]

    return recolour
