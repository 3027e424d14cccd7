"""The nod of canonical heads is found by comparing them with the body template."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.geometry.body import load_body, posed_vertices
from portrait360.geometry.nearest import nearest_triangles
from portrait360.model.generator import Generator
from portrait360.poses.alignment import SOFTNESS, CanonicalTilt, nod_degrees, signed_distance
from support.presets import TINY
from support.shrunken import shrunken


@pytest.fixture(scope="module")
def tilt():
    return CanonicalTilt(load_body())


def pose(neck, head):
    return torch.tensor([[math.radians(neck), 0.0, 0.0, math.radians(head), 0.0, 0.0]])


@pytest.mark.slow
def test_the_template_at_rest_does_not_nod(tilt):
    body = load_body()
    outside, _ = signed_distance(tilt.points, body.vertices, body.faces)
    neck, head = nod_degrees(tilt.fit(torch.sigmoid(-outside / SOFTNESS)))
    assert abs(neck) < 0.5
    assert abs(head) < 0.5


@pytest.mark.parametrize("nod", [-8.0, 8.0])
def test_a_leaning_head_is_seen_in_a_generator(tilt, nod):
    """Sharp heads, leaning by a pair of nods: the face's way is found, neck and head share it differently."""
    body = load_body()
    vertices = posed_vertices(body, pose(nod, nod))[0]

    class Leaning(Generator):
        def query(self, scene, points, body_pose=None):
            outside, _ = signed_distance(points[0], vertices, body.faces)
            density = torch.where(outside < 0, 1000.0, 0.0)[None, :, None]
            return density, density.expand(-1, -1, 3)

    torch.manual_seed(3)
    generator = Leaning(shrunken(TINY).model)
    before = torch.get_rng_state()
    neck, head = nod_degrees(tilt.measure(generator))
    assert torch.equal(torch.get_rng_state(), before)
    whole = 0.1 * nod + 0.05 * nod
    assert (0.1 * neck + 0.05 * head) / whole == pytest.approx(1.0, abs=0.35)


def test_inside_is_negative(tilt):
    body = load_body()
    points = torch.tensor([[0.0, 0.08, 0.03], [0.0, 0.08, 0.3]])
    outside, forward = signed_distance(points, body.vertices, body.faces)
    assert outside[0] < 0 < outside[1]
    assert forward[1] > 0.2
    torch.testing.assert_close(outside.abs(), nearest_triangles(points, body.vertices[body.faces])[2])
