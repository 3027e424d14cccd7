"""From a density to a closed triangle mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import ndimage, sparse
from skimage.measure import marching_cubes
from torch import Tensor

from portrait360.types import InputError

Vector3 = tuple[float, float, float]
Query = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points (N, 3) to density (N,) >= 0 per world unit and colour (N, 3) in [0, 1]."""

_CHUNK = 1 << 18
_COARSE = 4
_COARSE_OPACITY = 0.01


@dataclass(frozen=True)
class Mesh:
    """A closed triangle mesh in world units, Y up; triangles wind counter-clockwise seen from outside.

    `normals` are unit vectors that point outward.
    """

    vertices: Float[ndarray, "V 3"]
    faces: Int[ndarray, "F 3"]
    normals: Float[ndarray, "V 3"]


def extract_mesh(
    query: Query,
    box_min: Vector3,
    box_max: Vector3,
    *,
    step: float = 0.0023,
    skin: float = 0.012,
    smallest_share: float = 0.02,
) -> Mesh:
    """The surface behind which a density becomes opaque, by marching cubes.

    A node is solid where the light through `skin` world units would be halved. Enclosed cavities are
    filled, solids are capped where the box cuts them, and floating crumbs are dropped, so the result is closed.

    Args:
        query: the scene.
        box_min, box_max: the box outside of which the density is 0.
        step: world units between the nodes of the grid.
        skin: thickness in world units over which the opacity is measured.
        smallest_share: separate pieces below this share of the largest one's volume are dropped.

    Raises:
        InputError: the box holds nothing solid.
    """
    # Read the density on a grid.
    low, high = np.asarray(box_min, np.float64), np.asarray(box_max, np.float64)
    shape = np.ceil((high - low) / step - 1e-9).astype(int) + 1
    density = sample_density(query, low, step, (int(shape[0]), int(shape[1]), int(shape[2])))
    # Opacity instead of density: linear interpolation between nodes then hits the surface better, as density
    # may grow by orders of magnitude in one step.
    opacity = 1.0 - np.exp(-density * skin)

    # Fill cavities and drop crumbs.
    solid = keep_pieces(fill_cavities(opacity > 0.5), smallest_share)
    if not solid.any():
        raise InputError(
            "there is nothing solid in this portrait.",
            "Train the model for longer, use other weights, or leave the mesh out (`mesh=False`).",
        )
    opacity = np.where(solid, np.maximum(opacity, 0.5 + 1e-3), np.minimum(opacity, 0.5 - 1e-3))
    opacity[_inner(solid)] = 1.0  # filled cavities have no surface of their own

    # Extract the surface.
    closed = np.pad(opacity, 1)  # nothing outside: the surface closes where the box cuts a solid
    vertices, faces, _, _ = marching_cubes(closed, 0.5, allow_degenerate=False)
    vertices = (low + (vertices.astype(np.float64) - 1.0) * step).astype(np.float32)
    faces = faces.astype(np.int32)
    if signed_volume(vertices, faces) < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])

    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def sample_density(query: Query, low: Float[ndarray, "3"], step: float, shape: tuple[int, int, int]) -> ndarray:
    """Density at the nodes low + step * (i, j, k), float32 of `shape`.

    A grid of four times the step is read first; nodes far from any density in it count as empty.
    """
    coarse_shape = tuple(math.ceil((n - 1) / _COARSE) + 1 for n in shape)
    coarse = _read(query, _nodes(low, step * _COARSE, np.indices(coarse_shape).reshape(3, -1).T))
    busy = (1.0 - np.exp(-coarse * step * _COARSE) > _COARSE_OPACITY).reshape(coarse_shape)
    busy = ndimage.binary_dilation(busy, np.ones((3, 3, 3), bool))
    for axis in range(3):  # a coarse node stands for the fine nodes up to half a coarse step around it
        nearest = (np.arange(shape[axis]) + _COARSE // 2) // _COARSE
        busy = np.take(busy, np.minimum(nearest, busy.shape[axis] - 1), axis=axis)
    density = np.zeros(shape, np.float32)
    density[busy] = _read(query, _nodes(low, step, np.argwhere(busy)))
    return density


def _nodes(low: ndarray, step: float, indices: ndarray) -> Tensor:
    return torch.from_numpy((low + indices * step).astype(np.float32))


def _read(query: Query, points: Tensor) -> ndarray:
    parts = [query(part)[0].float().cpu().numpy() for part in points.split(_CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def fill_cavities(solid: Bool[ndarray, "X Y Z"]) -> Bool[ndarray, "X Y Z"]:
    """Solid and all that it encloses; on the faces of the grid a closed outline encloses its inside."""
    filled = solid.copy()
    for axis in range(3):
        for end in (0, -1):
            face = np.moveaxis(filled, axis, 0)
            face[end] = ndimage.binary_fill_holes(face[end])
    return np.asarray(ndimage.binary_fill_holes(filled))


def keep_pieces(solid: Bool[ndarray, "X Y Z"], smallest_share: float) -> Bool[ndarray, "X Y Z"]:
    """Solid without the face-connected pieces below `smallest_share` of the largest one's volume."""
    pieces = np.empty(solid.shape, np.int32)
    if ndimage.label(solid, output=pieces) == 0:
        return solid
    volumes = np.bincount(pieces.ravel())
    volumes[0] = 0
    return (volumes >= smallest_share * volumes.max())[pieces] & solid


def _inner(solid: ndarray) -> ndarray:
    """Solid nodes all of whose neighbours are solid (those beyond the grid count as solid)."""
    return ndimage.binary_erosion(solid, np.ones((3, 3, 3), bool), border_value=1)


def signed_volume(vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"]) -> float:
    """Volume inside a closed mesh, positive when the triangles wind counter-clockwise seen from outside."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6.0)


def vertex_normals(vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"]) -> Float[ndarray, "V 3"]:
    """Unit normals per vertex: those of the triangles around it, weighted by area."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    weighted = np.cross(b - a, c - a)
    normals = np.stack(
        [np.bincount(faces.ravel(), np.repeat(weighted[:, axis], 3), minlength=len(vertices)) for axis in range(3)],
        axis=1,
    )
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    upward = np.array([0.0, 1.0, 0.0])
    return np.where(length > 0, normals / np.maximum(length, 1e-30), upward).astype(np.float32)


def smoothed_normals(mesh: Mesh, passes: int) -> Float[ndarray, "V 3"]:
    """Normals averaged `passes` times with those of the vertices around: of the shape without its wrinkles."""
    around = neighbours(mesh.faces, len(mesh.vertices)) + sparse.identity(len(mesh.vertices), format="csr")
    average = sparse.diags(1.0 / np.asarray(around.sum(axis=1)).ravel()) @ around
    normals = mesh.normals.astype(np.float64)
    for _ in range(passes):
        normals = average @ normals
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    # where the normals around cancel out, on the tip of a needle, the vertex keeps its own
    return np.where(length > 1e-6, normals / np.maximum(length, 1e-6), mesh.normals).astype(np.float32)


def neighbours(faces: Int[ndarray, "F 3"], count: int) -> sparse.csr_matrix:
    """A matrix (count, count) with 1 where two vertices share an edge."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ones = np.ones(len(edges), np.float64)
    matrix = sparse.coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(count, count)).tocsr()
    matrix = matrix + matrix.T
    matrix.data[:] = 1.0
    return matrix
