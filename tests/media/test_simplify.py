"""Light meshes are closed, keep their volume, and stand flat."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from portrait360.media.mesh import Mesh, extract_mesh, signed_volume, smoothed_normals
from portrait360.media.simplify import largest_piece, light_mesh, merged, opened_pinches, smoothed
from support.ball_portrait import BALL_BOX, BALL_CENTRE, BALL_RADIUS, BallPortrait

STEP = 0.4 / 60


def as_trimesh(vertices, faces) -> trimesh.Trimesh:
    return trimesh.Trimesh(vertices, faces, process=False)


@pytest.fixture(scope="module")
def dense() -> Mesh:
    return extract_mesh(BallPortrait().query, *BALL_BOX, step=STEP)


@pytest.fixture(scope="module")
def light(dense) -> Mesh:
    return light_mesh(dense, 3000, floor=BALL_BOX[0][1], step=STEP)


def test_a_light_mesh_is_closed_and_as_large(dense, light):
    mesh = as_trimesh(light.vertices, light.faces)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.body_count == 1
    assert 2500 < len(light.faces) <= 3000 < len(dense.faces)
    assert mesh.volume == pytest.approx(signed_volume(dense.vertices, dense.faces), rel=0.02)
    assert np.abs(np.linalg.norm(light.normals, axis=1) - 1).max() < 1e-5
    head = light.vertices[light.vertices[:, 1] > 0.05]
    assert np.abs(np.linalg.norm(head - np.array(BALL_CENTRE), axis=1) - BALL_RADIUS).max() < STEP


def test_it_stands_on_a_flat_floor(dense, light):
    floor = BALL_BOX[0][1]
    low = light.vertices[:, 1]
    assert low.min() == np.float32(floor)
    assert not ((low > floor) & (low < floor + 0.5 * STEP)).any()
    mesh = as_trimesh(light.vertices, light.faces)
    below = mesh.area_faces[mesh.face_normals[:, 1] < -0.999].sum()
    assert below > 0.9 * 0.32 * 0.14
    # a mesh that nothing cuts has no floor to stand on
    high = light_mesh(dense, 3000, floor=-0.5, step=STEP)
    assert as_trimesh(high.vertices, high.faces).is_watertight


def test_small_meshes_are_only_smoothed(dense):
    kept = light_mesh(dense, 10**6, floor=BALL_BOX[0][1], step=STEP)
    assert len(kept.faces) == len(dense.faces)


def test_smoothing_takes_out_noise_and_keeps_the_size():
    ball = trimesh.creation.icosphere(subdivisions=4)
    noise = np.random.default_rng(0).normal(0, 0.01, (len(ball.vertices), 1))
    after = smoothed(ball.vertices * (1 + noise), ball.faces, floor=-9.0)
    radius = np.linalg.norm(after, axis=1)
    assert radius.std() < 0.4 * noise.std()
    assert radius.mean() == pytest.approx(1.0, abs=0.005)


def test_normals_without_wrinkles_are_those_of_the_shape():
    ball = trimesh.creation.icosphere(subdivisions=4)
    vertices = np.asarray(ball.vertices, np.float32)
    rough = vertices + np.random.default_rng(0).normal(0, 0.4, vertices.shape).astype(np.float32)
    rough /= np.linalg.norm(rough, axis=1, keepdims=True)
    mesh = Mesh(vertices, np.asarray(ball.faces, np.int32), rough)
    agreement = [(smoothed_normals(mesh, passes) * vertices).sum(1).mean() for passes in (0, 5, 10)]
    assert agreement[0] < 0.9 < 0.99 < agreement[1] < agreement[2]


def test_the_largest_piece_is_by_volume():
    big, small = trimesh.creation.icosphere(subdivisions=1), trimesh.creation.icosphere(subdivisions=3, radius=0.3)
    small.apply_translation((3, 0, 0))
    vertices = np.concatenate([small.vertices, big.vertices])
    faces = np.concatenate([small.faces, big.faces + len(small.vertices)])
    kept, left = largest_piece(vertices, faces)
    assert np.array_equal(kept[left], big.vertices[big.faces])
    assert len(kept) == len(big.vertices)


def test_edges_of_four_triangles_become_pairs():
    # Two tetrahedra that share one edge: closed, but not a manifold.
    corners = np.array(
        [[0, 0, 0], [0, 0, 1], [1, 0, 0.5], [0.5, 0.7, 0.5], [-1, 0, 0.5], [-0.5, -0.7, 0.5]], np.float32
    )
    faces = []
    for four in ((0, 1, 2, 3), (0, 1, 4, 5)):
        hull = trimesh.convex.convex_hull(corners[list(four)])
        numbers = [four[int(np.argmin(np.abs(corners[list(four)] - v).sum(1)))] for v in hull.vertices]
        faces.append(np.array(numbers)[hull.faces])
    faces = np.concatenate(faces).astype(np.int32)
    assert not as_trimesh(corners, faces).is_watertight
    vertices, opened = opened_pinches(corners, faces)
    mesh = as_trimesh(vertices, opened)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(signed_volume(corners, faces), rel=1e-6)
    assert len(vertices) == 7
    again = opened_pinches(vertices, opened)
    assert again[0] is vertices
    assert again[1] is opened


def test_merging_leaves_out_lines_and_triangles_back_to_back():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [2, 0, 0]], np.float32)
    faces = np.array([[0, 1, 2], [3, 2, 1], [0, 3, 4], [1, 4, 2]], np.int32)
    merged_vertices, merged_faces = merged(vertices, faces)
    assert len(merged_vertices) == 4
    assert len(merged_faces) == 1
    assert sorted(merged_vertices[merged_faces[0]].tolist()) == sorted(vertices[[1, 4, 2]].tolist())
