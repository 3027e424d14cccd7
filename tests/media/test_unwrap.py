"""A layout cuts a mesh open and changes nothing else; its charts lie apart in the square."""

from __future__ import annotations

import numpy as np
import pytest

from portrait360.media import unwrap as module
from portrait360.media.mesh import extract_mesh
from portrait360.media.simplify import light_mesh
from portrait360.media.texture import covering_faces
from portrait360.media.unwrap import light_and_flat, unwrap
from support.ball_portrait import BALL_BOX, BallPortrait

STEP = 0.4 / 60


@pytest.fixture(scope="module")
def dense():
    return extract_mesh(BallPortrait().query, *BALL_BOX, step=STEP)


@pytest.fixture(scope="module")
def light(dense):
    return light_mesh(dense, 3000, floor=BALL_BOX[0][1], step=STEP)


@pytest.fixture(scope="module")
def flat(light):
    return unwrap(light)


def test_cutting_keeps_every_triangle(light, flat):
    assert np.array_equal(flat.source[flat.faces], light.faces)
    assert len(flat.uv) == len(flat.source) >= len(light.vertices)
    assert set(flat.source) == set(range(len(light.vertices)))


def test_the_layout_fills_the_square_in_few_charts(flat):
    assert 1 <= flat.charts <= module.MOST_CHARTS
    assert module.LEAST_COVERAGE <= flat.coverage < 1
    assert 0 <= flat.uv.min() <= flat.uv.max() <= 1


def test_no_two_triangles_share_a_place(flat):
    """Each sample of the square lies in one triangle: those that two cover are on their common edges."""
    side = 512
    screen = np.column_stack([flat.uv.astype(np.float64) * side, np.ones(len(flat.uv))])
    covered = (covering_faces(screen, flat.faces, side) >= 0).mean()
    assert covered == pytest.approx(flat.coverage, abs=0.01)


def test_the_same_mesh_gets_the_same_layout(light, flat):
    again = unwrap(light)
    assert np.array_equal(again.uv, flat.uv)
    assert np.array_equal(again.faces, flat.faces)


def test_a_shredded_layout_is_tried_again_with_fewer_triangles(dense, flat, monkeypatch):
    triangles = []

    def shredded(mesh):
        triangles.append(len(mesh.faces))
        return module.Unwrapped(flat.source, flat.faces, flat.uv, 500 if len(triangles) < 3 else 300)

    monkeypatch.setattr(module, "unwrap", shredded)
    light, found = light_and_flat(dense, 3000, floor=BALL_BOX[0][1], step=STEP)
    assert found.charts == 300
    assert len(light.faces) == triangles[-1] < triangles[1] < triangles[0]
    monkeypatch.setattr(module, "LEAST_COVERAGE", 2.0)
    assert light_and_flat(dense, 3000, floor=BALL_BOX[0][1], step=STEP)[1].charts == 300
