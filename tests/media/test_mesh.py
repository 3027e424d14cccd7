from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from portrait360.media.mesh import (
    extract_mesh,
    fill_cavities,
    keep_pieces,
    sample_density,
    signed_volume,
    vertex_normals,
)
from portrait360.types import InputError
from support.ball_portrait import BALL_BOX, BALL_CENTRE, BALL_RADIUS, BallPortrait

RADIUS = 0.3
# A skin of 0.012 halves light where the density is log(2) / 0.012; the ball of `shell` has that here.
SURFACE = RADIUS + np.log(800.0 * 0.012 / np.log(2.0) - 1.0) / 200.0


def shell(inner: float = -1.0, centre=(0.02, 0.0, -0.01), density: float = 800.0, sharp: float = 200.0):
    """A ball of RADIUS with a soft skin, hollow below `inner`; colours are the position."""

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distance = (points - torch.tensor(centre)).norm(dim=1)
        inside = torch.sigmoid((RADIUS - distance) * sharp) * torch.sigmoid((distance - inner) * sharp)
        return density * inside, (points + 0.5).clamp(0, 1)

    return query


def crumbs(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    density, colour = shell()(points)
    far = (points - torch.tensor([0.42, 0.42, 0.42])).norm(dim=1) < 0.04
    return density + far * 800.0, colour


def as_trimesh(mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


BOX = ((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def ball():
    return extract_mesh(shell(), *BOX, step=1 / 64)


def test_ball_has_the_right_radius(ball):
    radius = np.linalg.norm(ball.vertices - np.array([0.02, 0.0, -0.01]), axis=1)
    assert np.abs(radius - SURFACE).max() < 0.5 / 64
    assert abs(radius.mean() - SURFACE) < 0.1 / 64


def test_ball_is_closed_and_faces_outward(ball):
    mesh = as_trimesh(ball)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.body_count == 1
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * SURFACE**3, rel=0.01)
    assert signed_volume(ball.vertices, ball.faces) == pytest.approx(mesh.volume, rel=1e-4)
    outward = ball.vertices - np.array([0.02, 0.0, -0.01])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    assert (ball.normals * outward).sum(1).min() > 0.97
    assert np.abs(np.linalg.norm(ball.normals, axis=1) - 1).max() < 1e-5


def test_hidden_cavities_are_filled():
    full, hollow = (extract_mesh(shell(inner), *BOX, step=1 / 48) for inner in (-1.0, 0.15))
    assert as_trimesh(hollow).body_count == 1
    assert as_trimesh(hollow).volume == pytest.approx(as_trimesh(full).volume, rel=1e-3)


def test_matter_is_capped_where_the_box_cuts_it():
    low, high = (-0.5, 0.0, -0.5), (0.5, 0.5, 0.5)
    half = as_trimesh(extract_mesh(shell(0.15, centre=(0.0, 0.0, 0.0)), low, high, step=1 / 48))
    assert half.is_watertight
    assert half.body_count == 1
    assert half.volume == pytest.approx(2 / 3 * np.pi * SURFACE**3, rel=0.05)
    assert half.bounds[0, 1] == pytest.approx(0.0, abs=1 / 48)


def test_crumbs_are_dropped():
    kept = as_trimesh(extract_mesh(crumbs, *BOX, step=1 / 48, smallest_share=1e-6))
    swept = as_trimesh(extract_mesh(crumbs, *BOX, step=1 / 48))
    assert kept.body_count == 2
    assert swept.body_count == 1
    assert swept.bounds[1].max() < 0.4


def test_nothing_solid_is_an_error():
    with pytest.raises(InputError, match="nothing solid"):
        extract_mesh(shell(density=1e-3), *BOX, step=1 / 16)


def test_boxes_need_not_be_cubes():
    portrait = BallPortrait()
    mesh = extract_mesh(portrait.query, *BALL_BOX, step=0.4 / 80)
    check = as_trimesh(mesh)
    assert check.is_watertight
    top = mesh.vertices[:, 1].max()
    assert top == pytest.approx(BALL_CENTRE[1] + BALL_RADIUS, abs=0.4 / 80)


def test_a_posed_query_gives_a_posed_mesh():
    portrait = BallPortrait()
    pose = torch.tensor([0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    mesh = extract_mesh(lambda points: portrait.query(points, pose), *BALL_BOX, step=0.4 / 64)
    head = mesh.vertices[mesh.vertices[:, 1] > 0.0]
    # Rotation +Z turns +Y towards -X: the head tilts to the subject's right.
    assert head.mean(0)[0] < -0.02


def test_coarse_to_fine_reads_the_same_as_everything_at_once():
    low, step, shape = np.array([-0.5, -0.5, -0.5]), 1 / 40, (41, 33, 37)
    portrait = BallPortrait()
    query = shell()
    nodes = torch.from_numpy((low + np.argwhere(np.ones(shape)) * step).astype(np.float32))
    full = query(nodes)[0].numpy().reshape(shape)
    fast = sample_density(query, low, step, shape)
    opaque = 1 - np.exp(-full * 0.012) > 0.05
    assert np.allclose(fast[opaque], full[opaque])
    assert (fast == 0).mean() > 0.4
    sample_density(portrait.query, low, step, shape)
    assert portrait.queries < 0.5 * np.prod(shape)


def test_fill_cavities_closes_outlines_on_the_border():
    solid = np.zeros((8, 8, 8), bool)
    solid[0:6, 1:7, 1:7] = True
    solid[0:5, 2:6, 2:6] = False  # a cup that opens at the border
    filled = fill_cavities(solid)
    assert filled[0:6, 1:7, 1:7].all()
    assert filled.sum() == 6 * 6 * 6


def test_keep_pieces_compares_with_the_largest():
    solid = np.zeros((12, 12, 12), bool)
    solid[:6, :6, :6] = True
    solid[8:11, 8:11, 8:11] = True
    solid[0, 0, 11] = True
    assert keep_pieces(solid, 0.05).sum() == 6**3 + 3**3
    assert keep_pieces(solid, 0.5).sum() == 6**3
    assert keep_pieces(solid, 0.0).sum() == solid.sum()
    assert not keep_pieces(np.zeros((3, 3, 3), bool), 0.1).any()


def test_vertex_normals_of_an_octahedron():
    vertices = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
    hull = trimesh.convex.convex_hull(vertices)
    normals = vertex_normals(np.asarray(hull.vertices, np.float32), np.asarray(hull.faces, np.int32))
    assert np.allclose(normals, hull.vertices, atol=1e-6)
