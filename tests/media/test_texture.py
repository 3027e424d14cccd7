"""Texels lie on the surface and get the colours with which the field shows there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from portrait360.geometry.nearest import nearest_triangles
from portrait360.media.mesh import extract_mesh
from portrait360.media.texture import bake_texture, barycentric, find_texels, spread, surface_colours
from portrait360.media.unwrap import light_and_flat
from support.ball_portrait import BALL_BOX, BALL_CENTRE, BALL_RADIUS, SHIRT, SKIN, BallPortrait

STEP = 0.4 / 60


@pytest.fixture(scope="module")
def ball():
    dense = extract_mesh(BallPortrait().query, *BALL_BOX, step=STEP)
    return light_and_flat(dense, 3000, floor=BALL_BOX[0][1], step=STEP)


def test_texels_lie_on_the_surface(ball):
    mesh, flat = ball
    texels = find_texels(mesh, flat, 128)
    assert texels.covered.mean() == pytest.approx(flat.coverage, abs=0.02)
    assert len(texels.points) == len(texels.normals) == texels.covered.sum()
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    face, _, distance = nearest_triangles(torch.from_numpy(texels.points), torch.from_numpy(mesh.vertices[mesh.faces]))
    assert distance.max() < 1e-5
    assert np.mean((texels.normals * surface.face_normals[face.numpy()]).sum(1)) > 0.95
    assert np.abs(np.linalg.norm(texels.normals, axis=1) - 1).max() < 1e-5


def test_texels_are_found_where_their_places_say(ball):
    """A function of the vertices is the same function of the texels, where it is linear."""
    mesh, flat = ball
    texels = find_texels(mesh, flat, 64)
    rows, columns = np.nonzero(texels.covered)
    place = np.stack([columns + 0.5, rows + 0.5], 1) / 64
    corners = flat.uv[flat.faces]
    for i in range(0, len(place), 97):
        shares = barycentric(np.repeat(place[i : i + 1], len(corners), 0), corners.astype(np.float64))
        inside = np.flatnonzero(shares.min(1) > -1e-6)
        found = (mesh.vertices[mesh.faces[inside]] * shares[inside][..., None]).sum(1)
        assert np.abs(found - texels.points[i]).max(1).min() < 1e-5


def test_colours_are_those_of_the_field(ball):
    mesh, flat = ball
    texture = bake_texture(BallPortrait().query, mesh, flat, 256, step=STEP) / 255.0
    texels = find_texels(mesh, flat, 256)
    colours, points = texture[texels.covered], texels.points
    face = (points[:, 1] > 0.0) & (points[:, 2] > 0.03)
    shade = 0.75 + 0.25 * (points[face, 2:] - BALL_CENTRE[2]) / BALL_RADIUS
    assert np.abs(colours[face] - np.array(SKIN) * shade).max() < 0.04
    shirt = (points[:, 1] < -0.09) & (points[:, 1] > -0.17)
    assert np.abs(colours[shirt] - SHIRT).max() < 0.01


def test_a_thin_veil_shows_what_is_behind_it():
    """All densities of the short ray count: half of the light stops in a red layer, the rest at the blue solid."""
    thick = 3 * 0.75 * 0.01
    veil = np.log(2.0) / thick

    def query(points):
        deep = points[:, 2] < -thick + 1e-5
        density = torch.where(deep, 1e4, torch.where(points[:, 2] < 0.0037, veil, 0.0))
        red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
        return density, torch.where(deep[:, None], blue, red)

    # at 45 degrees the layer is longer: between one half and 1 - 0.5^sqrt(2)
    colour = surface_colours(query, np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]]), 0.01)[0]
    assert 0.5 - 1e-3 < colour[0] < 0.66
    assert colour[0] + colour[2] == pytest.approx(1.0, abs=1e-3)


def test_emptiness_has_a_colour_and_no_points_none():
    def nothing(points):
        return torch.zeros(len(points)), torch.full((len(points), 3), 0.25)

    up = np.array([[0.0, 1.0, 0.0]])  # no axis across it is nearest to the vertical
    assert surface_colours(nothing, np.zeros((1, 3)), up, 0.01) == pytest.approx(0.25, abs=1e-4)
    assert surface_colours(nothing, np.zeros((0, 3)), np.zeros((0, 3)), 0.01).shape == (0, 3)


def test_an_appearance_gets_points_and_colours_and_has_the_last_word(ball):
    mesh, flat = ball
    seen = {}

    def appearance(points, colours):
        seen.update(points=points, colours=colours)
        return np.where(points[:, :1] > 0, 1.5, colours)

    texture = bake_texture(BallPortrait().query, mesh, flat, 64, step=STEP, recolour=appearance)
    texels = find_texels(mesh, flat, 64)
    assert np.array_equal(seen["points"], texels.points)
    left = texels.points[:, 0] > 0
    assert (texture[texels.covered][left] == 255).all()
    plain = bake_texture(BallPortrait().query, mesh, flat, 64, step=STEP)
    assert np.array_equal(texture[texels.covered][~left], plain[texels.covered][~left])


def test_rims_are_continued_and_the_rest_is_the_mean():
    image, covered = np.zeros((128, 128, 3), np.float32), np.zeros((128, 128), bool)
    covered[10:20, 10:20] = covered[10:20, 60:70] = True
    image[10:20, 10:20], image[10:20, 60:70] = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    out = spread(image, covered)
    assert np.array_equal(out[covered], image[covered])
    assert np.array_equal(out[21, 15], [1.0, 0.0, 0.0])
    assert np.array_equal(out[21, 65], [0.0, 0.0, 1.0])
    assert np.allclose(out[100, 100], [0.5, 0.0, 0.5])
    assert np.array_equal(spread(image, np.zeros_like(covered)), image)
