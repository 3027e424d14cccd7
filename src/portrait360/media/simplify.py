"""From the dense mesh of a grid to a light one: smoothed, simplified, still closed, and flat where it stands."""

from __future__ import annotations

import fast_simplification
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from portrait360.media.mesh import Mesh, neighbours, signed_volume, vertex_normals

PASSES = 10
"""Of smoothing: they take out the steps of the grid, and noise as fine as it."""
_SHRINK, _GROW = 0.5, -0.53
"""Weights of the two halves of a pass; the second undoes the shrinking of the first (Taubin 1995)."""


def light_mesh(mesh: Mesh, triangles: int, *, floor: float, step: float) -> Mesh:
    """The outer surface of a closed mesh, smoothed and simplified.

    Args:
        mesh: closed, of a grid.
        triangles: how many are left, about; no more than that before pinched edges are opened.
        floor: height at which the solid was cut; the surface within half a `step` of it is made flat.
        step: world units between the nodes of the grid.
    """
    # The outer surface, its floor flat.
    vertices, faces = largest_piece(mesh.vertices.astype(np.float64), mesh.faces)
    vertices[np.abs(vertices[:, 1] - floor) < 0.6 * step, 1] = floor

    # Smooth, simplify, and make the floor flat again.
    vertices = smoothed(vertices, faces, floor)
    if len(faces) > triangles:
        points, corners, *_ = fast_simplification.simplify(vertices, faces.astype(np.int32), target_count=triangles)
        vertices, faces = np.asarray(points, np.float64), np.asarray(corners, np.int32)
    vertices[np.abs(vertices[:, 1] - floor) < 0.6 * step, 1] = floor

    # Keep it closed, and facing outward.
    vertices, faces = merged(vertices.astype(np.float32), faces)
    vertices, faces = largest_piece(*opened_pinches(vertices, faces))
    if signed_volume(vertices, faces) < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def largest_piece(
    vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"]
) -> tuple[Float[ndarray, "V2 3"], Int[ndarray, "F2 3"]]:
    """The piece of the surface, connected by vertices, that encloses most; unused vertices are left out."""
    _, piece = connected_components(neighbours(faces, len(vertices)), directed=False)
    of_face = piece[faces[:, 0]]
    volumes = [abs(signed_volume(vertices, faces[of_face == one])) for one in np.unique(of_face)]
    faces = faces[of_face == np.unique(of_face)[int(np.argmax(volumes))]]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3).astype(np.int32)


def smoothed(vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"], floor: float) -> Float[ndarray, "V 3"]:
    """Vertices drawn towards the mean of their neighbours and back, so that the solid does not shrink.

    Vertices at the height `floor` stay at that height. Source: Taubin, A signal processing approach to fair surface
    design (1995).
    """
    average = neighbours(faces, len(vertices))
    average = sparse.diags(1.0 / np.asarray(average.sum(axis=1)).ravel()) @ average
    vertices, standing = vertices.copy(), vertices[:, 1] == floor
    for _ in range(PASSES):
        for weight in (_SHRINK, _GROW):
            vertices += weight * (average @ vertices - vertices)
            vertices[standing, 1] = floor
    return vertices


def merged(
    vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"]
) -> tuple[Float[ndarray, "V2 3"], Int[ndarray, "F2 3"]]:
    """Vertices at the same place made one; triangles that become lines are left out, and pairs that cancel out."""
    vertices, same = np.unique(vertices, axis=0, return_inverse=True)
    faces = same.reshape(-1)[faces].astype(np.int32)
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]

    # Two triangles back to back enclose nothing: without both, the rest is as closed as before.
    _, which, count = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    return vertices, faces[count[which.reshape(-1)] == 1]


def opened_pinches(
    vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"]
) -> tuple[Float[ndarray, "V2 3"], Int[ndarray, "F2 3"]]:
    """Edges where the surface touches itself (four triangles or more) given to two triangles each.

    All pairs of triangles but one get a vertex of their own in the middle of the edge, which leaves the shape alone.
    """
    triangles = [tuple(int(v) for v in face) for face in faces]
    added: list[ndarray] = []
    for a, b in _pinched_edges(faces):
        # The triangles at the edge, by the direction in which they run along it.
        at = [i for i, face in enumerate(triangles) if a in face and b in face] if added else _around(faces, a, b)
        forth = [i for i in at if _runs(triangles[i], a, b)]
        back = [i for i in at if not _runs(triangles[i], a, b)]
        for one, other in list(zip(forth, back, strict=False))[1:]:
            middle = len(vertices) + len(added)
            added.append((vertices[a] + vertices[b]) * np.float32(0.5))
            for i in (one, other):
                first, second = (a, b) if i == one else (b, a)
                third = next(v for v in triangles[i] if v not in (a, b))
                triangles[i] = (first, middle, third)
                triangles.append((middle, second, third))
    if not added:
        return vertices, faces
    return np.concatenate([vertices, np.stack(added)]), np.array(triangles, np.int32)


def _pinched_edges(faces: ndarray) -> list[tuple[int, int]]:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, count = np.unique(edges, axis=0, return_counts=True)
    return [(int(a), int(b)) for a, b in edges[count > 2]]


def _around(faces: ndarray, a: int, b: int) -> list[int]:
    return np.flatnonzero((faces == a).any(axis=1) & (faces == b).any(axis=1)).tolist()


def _runs(face: tuple[int, ...], a: int, b: int) -> bool:
    """Whether a triangle runs along an edge from a to b."""
    return face[(face.index(a) + 1) % 3] == b
