"""Statistics of meshes and heads, and the bodies that they are compared with."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch
import trimesh

from portrait360.evaluation.geometry import (
    MEDIAN,
    NOTHING,
    SLAB,
    SMALLEST_SHARE,
    HeadMeasures,
    against_bodies,
    head_measures,
    load_body_statistics,
    mesh_statistics,
    portrait_geometry,
)
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import FOCAL, LOOK_AT, RADIUS
from portrait360.media.mesh import extract_mesh
from portrait360.types import InputError
from support.ball_portrait import BALL_CENTRE, BALL_RADIUS, SHOULDERS, BallPortrait
from tools.body_statistics import measure_bodies

STEP = 0.008
MEASURES = [field.name for field in dataclasses.fields(HeadMeasures)]


class Balls(BallPortrait):
    """Balls ((x, y, z), radius) and nothing else; behind `flat` (a z) there is nothing."""

    def __init__(self, *balls: tuple, flat: float = -1.0) -> None:
        super().__init__()
        self.balls, self.flat = balls, flat

    def query(self, points, body_pose=None):
        # Density falls off over a node or so, as marching cubes want it to place the surface between nodes.
        outside = torch.stack([(points - torch.tensor(c)).norm(dim=1) - r for c, r in self.balls]).amin(0)
        outside = torch.maximum(outside, self.flat - points[:, 2])
        density = 58.0 * 2.0 ** (-outside / 0.004).clamp(-10.0, 10.0)
        return density, torch.ones_like(points) * 0.5


def ball(centre: tuple = (0.0, 0.0, 0.0), radius: float = 0.1) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    assert isinstance(mesh, trimesh.Trimesh)
    mesh.apply_translation(centre)
    return mesh


def joined(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    mesh = trimesh.util.concatenate(list(meshes))
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def test_a_ball_is_one_watertight_piece_of_known_depth():
    found = portrait_geometry(Balls((BALL_CENTRE, BALL_RADIUS)), step=0.005)
    assert found.whole
    assert (found.pieces, found.crumbs, found.watertight) == (1, 0, True)
    assert found.floating == 0.0
    half = math.sqrt(BALL_RADIUS**2 - (SLAB[0] - BALL_CENTRE[1]) ** 2)
    assert found.head.front == pytest.approx(BALL_CENTRE[2] + half, abs=0.002)
    assert found.head.back == pytest.approx(half - BALL_CENTRE[2], abs=0.002)
    assert found.head.depth == pytest.approx(2 * half, abs=0.003)
    assert found.head.width == pytest.approx(2 * half, abs=0.003)


def test_a_head_that_floats_above_its_shoulders_is_two_pieces():
    found = portrait_geometry(BallPortrait(neck=False), step=0.004)
    assert found.watertight
    assert not found.whole
    assert found.pieces == 2
    floor = LOOK_AT[1] - 0.5 * RADIUS / FOCAL  # the box below is cut there
    low, high = SHOULDERS
    box = (high[0] - low[0]) * (high[1] - floor) * (high[2] - low[2])
    ball = 4.0 / 3.0 * math.pi * BALL_RADIUS**3
    assert found.floating == pytest.approx(box / (box + ball), abs=0.02)


@pytest.mark.parametrize("small", [0.02, 0.05])
def test_floating_matter_is_a_share_of_the_volume(small):
    mesh = joined(ball(), ball((0.2, 0.0, 0.0), small))
    found = mesh_statistics(mesh)
    expected = small**3 / (0.1**3 + small**3)
    assert found.floating == pytest.approx(expected, rel=1e-2)
    assert (found.pieces, found.crumbs) == ((2, 0) if small == 0.05 else (1, 1))
    assert found.watertight
    assert found.whole == (small == 0.02)  # what the extraction drops does not count


def test_floating_matter_of_a_portrait_is_counted_with_its_crumbs():
    found = portrait_geometry(Balls((BALL_CENTRE, 0.1), ((0.15, -0.08, 0.05), 0.03)), step=0.005)
    assert found.floating == pytest.approx(0.03**3 / (0.1**3 + 0.03**3), rel=0.15)
    assert found.pieces == 2
    found = portrait_geometry(Balls((BALL_CENTRE, 0.1), ((0.15, -0.08, 0.05), 0.018)), step=0.005)
    assert (found.pieces, found.crumbs, found.whole) == (1, 1, True)
    assert 0.0 < found.floating < SMALLEST_SHARE


def test_floating_matter_does_not_change_the_head():
    head = ball((0.0, 0.08, 0.0))
    behind = ball((0.0, 0.12, -0.3), 0.03)
    assert mesh_statistics(joined(head, behind)).head == mesh_statistics(head).head


def test_front_and_back_are_measured_in_the_middle_and_width_everywhere():
    middle, height = 0.9 * MEDIAN, 0.5 * (SLAB[0] + SLAB[1])
    beside, above = 1.1 * MEDIAN, 1.1 * SLAB[1]
    points = [(0.0, height, 0.07), (middle, height, -0.05), (beside, height, -0.2), (-beside, height, 0.2),
              (0.0, above, 0.3), (0.5, 0.9 * SLAB[0], -0.3)]  # fmt: skip
    head = head_measures(np.array(points))
    assert dataclasses.astuple(head) == pytest.approx((0.05, 0.07, 0.12, 2 * beside))


def test_a_flat_back_has_less_depth():
    round_back, flat_back = (
        portrait_geometry(Balls(((0.0, 0.08, 0.01), 0.1), flat=flat), step=0.005) for flat in (-1.0, -0.02)
    )
    assert flat_back.whole
    assert flat_back.head.back == pytest.approx(0.02, abs=0.003)
    assert round_back.head.back > 0.08
    assert flat_back.head.front == pytest.approx(round_back.head.front, abs=1e-4)
    assert flat_back.head.depth < round_back.head.depth - 0.06


def test_the_cut_at_the_floor_is_closed():
    # half of the ball lies below the box's floor, where `mesh_box` cuts
    found = portrait_geometry(Balls(((0.0, -0.14, 0.0), 0.1)), step=0.005)
    assert found.watertight
    assert found.whole
    assert math.isnan(found.head.depth)  # and nothing of it is a head


def test_a_mesh_with_a_rim_is_not_watertight_and_measured_by_area():
    bowl = ball()
    bowl = trimesh.Trimesh(bowl.vertices, bowl.faces[bowl.triangles_center[:, 1] < 0.0], process=False)
    found = mesh_statistics(joined(bowl, ball((0.3, 0.0, 0.0), 0.05)))
    assert not found.watertight
    assert not found.whole
    assert found.floating == pytest.approx(4 * 0.05**2 / (2 * 0.1**2 + 4 * 0.05**2), rel=0.05)


def test_nothing_is_not_watertight():
    nobody = trimesh.Trimesh(np.zeros((0, 3)), np.zeros((0, 3), int), process=False)
    assert mesh_statistics(nobody) is NOTHING
    assert portrait_geometry(Balls(((0.0, 5.0, 0.0), 0.1)), step=STEP) is NOTHING
    assert not NOTHING.whole


def test_loose_vertices_change_nothing():
    whole = ball()
    loose = trimesh.Trimesh(np.vstack([[[9.0, 9.0, 9.0]], whole.vertices]), whole.faces + 1, process=False)
    assert mesh_statistics(loose) == mesh_statistics(whole)


def test_broken_meshes_are_refused():
    good = ball()
    broken = trimesh.Trimesh(np.where(good.vertices > 0.09, math.nan, good.vertices), good.faces, process=False)
    beyond = trimesh.Trimesh(good.vertices, good.faces + 1, process=False, validate=False)
    for mesh in (broken, beyond):
        with pytest.raises(InputError, match="the mesh has vertices") as caught:
            mesh_statistics(mesh)
        assert caught.value.hint


def test_crumbs_are_what_the_extraction_drops():
    assert inspect.signature(extract_mesh).parameters["smallest_share"].default == SMALLEST_SHARE


def test_the_packaged_body_is_measured_above_its_ears():
    head = head_measures(load_body().vertices.numpy())
    assert head.depth == pytest.approx(head.front + head.back)
    assert head.back == pytest.approx(0.049, abs=0.002)
    assert head.front == pytest.approx(0.098, abs=0.002)
    assert head.width == pytest.approx(0.109, abs=0.002)  # 0.125 with the ears


# ---- bodies ----


@pytest.fixture(scope="module")
def tiny_bodies(source):
    return measure_bodies(source, seed=3, count=6)


def test_bodies_are_measured_with_and_without_hair(tiny_bodies, tmp_path):
    assert tiny_bodies["count"] == 6
    for name in MEASURES:
        numbers = tiny_bodies["without_hair"][name]
        assert numbers["p5"] <= numbers["mean"] <= numbers["p95"]
        assert numbers["std"] > 0
    # the tiny hair is a cap just above the scalp
    assert 0.0 < tiny_bodies["with_hair"]["depth"]["mean"] - tiny_bodies["without_hair"]["depth"]["mean"] < 0.03
    path = tmp_path / "bodies.json"
    path.write_text(json.dumps(tiny_bodies), encoding="utf-8")
    assert load_body_statistics(path) == tiny_bodies


def test_the_packaged_statistics_are_those_of_people(tiny_bodies):
    packaged = load_body_statistics()
    assert packaged["count"] == 400
    assert packaged["slab"] == list(SLAB)
    assert packaged["median"] == MEDIAN
    for name in MEASURES:
        bare, hairy = packaged["without_hair"][name], packaged["with_hair"][name]
        # the tiny parts dress the same bodies
        assert tiny_bodies["without_hair"][name]["mean"] == pytest.approx(bare["mean"], abs=2.5 * bare["std"])
        assert hairy["mean"] > bare["mean"]
    metre = 0.165 / 0.2334  # of the mean adult
    assert 0.17 < packaged["without_hair"]["depth"]["mean"] / metre < 0.22  # people's heads are 19 cm long
    assert 0.13 < packaged["without_hair"]["width"]["mean"] / metre < 0.17  # and 15 cm wide


def test_portraits_are_compared_with_bodies():
    bodies = load_body_statistics()
    typical = HeadMeasures(**{name: bodies["with_hair"][name]["mean"] for name in MEASURES})
    flat = dataclasses.replace(typical, back=typical.back - 3 * bodies["with_hair"]["back"]["std"])
    same, off = (
        against_bodies([dataclasses.replace(NOTHING, pieces=1, watertight=True, floating=0.0, head=head)] * 2)
        for head in (typical, flat)
    )
    for name in MEASURES:
        assert same["head"][name]["difference"] == pytest.approx(0.0, abs=1e-9)
        assert same["head"][name]["outside"] == 0.0
    assert off["head"]["back"]["difference"] == pytest.approx(-3.0)
    assert off["head"]["back"]["outside"] == 1.0
    assert (same["count"], same["watertight"], same["whole"], same["headless"]) == (2, 1.0, 1.0, 0)


def test_portraits_of_nothing_can_be_summed_up():
    summary = against_bodies([NOTHING])
    assert summary["watertight"] == summary["whole"] == 0.0
    assert summary["headless"] == 1
    assert summary["floating"] is None
    assert summary["head"]["back"]["difference"] is None
    json.dumps(summary, allow_nan=False)
    found = mesh_statistics(ball((0.0, 0.08, 0.0)))
    mixed = against_bodies([NOTHING, found])
    assert mixed["watertight"] == 0.5
    assert mixed["head"]["depth"]["mean"] == found.head.depth
    with pytest.raises(InputError, match="no portraits"):
        against_bodies([])


def test_statistics_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "bodies.json"
    with pytest.raises(InputError, match="cannot be read"):
        load_body_statistics(path)
    for text in ("", "[]", '{"with_hair": {}}', '{"with_hair": 3}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="cannot be read") as caught:
            load_body_statistics(path)
        assert "body_statistics" in caught.value.hint
    path.write_text(json.dumps({**load_body_statistics(), "slab": [0.0, 0.1]}), encoding="utf-8")
    with pytest.raises(InputError, match="measured elsewhere"):
        load_body_statistics(path)
