"""Light, skin, hair colours and expressions of synthetic people."""

from __future__ import annotations

import numpy as np
import pytest

from portrait360.kernels import surroundings
from portrait360.synthetic.body import SKIN_VERTICES, AnnyBody
from portrait360.synthetic.face import sample_expression, sample_shape
from portrait360.synthetic.light import radiance, sample_lighting, spread_directions, toward
from portrait360.synthetic.skin import SkinRegions, sample_complexion
from portrait360.synthetic.source import PortraitSource

LUMINANCE = np.array([0.21, 0.72, 0.07])


def test_light_in_the_open_is_the_cosine_weighted_mean_of_the_surroundings() -> None:
    around = sample_lighting(np.random.default_rng(3), 0.0).surroundings
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(20000, 3))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    normal = toward(0.4, 0.2)
    cosine = np.maximum(directions @ normal, 0)
    expected = cosine @ np.stack([radiance(around, d) for d in directions]) / cosine.sum()

    # the kernel, with nothing in the way, over the directions that the renderer takes
    total, seen = np.zeros(1, np.float32), np.zeros(1, np.float32)
    irradiance, nothing = np.zeros((1, 3), np.float32), np.full(16, np.inf, np.float32)
    point, soft = np.zeros((1, 3), np.float32), np.zeros(1, bool)
    for d in spread_directions(400):
        axes = np.eye(3, dtype=np.float32)
        light = radiance(around, d)
        surroundings.add_direction(
            point, normal[None], soft, d, light, axes, 1.0, nothing, 4, np.float32(0), total, seen, irradiance
        )
    assert np.allclose(irradiance / total, expected, rtol=0.06)
    assert np.allclose(seen, total)


def test_most_lights_know_nothing_of_the_camera() -> None:
    same = [
        np.allclose(
            sample_lighting(np.random.default_rng(seed), 0.0).direction,
            sample_lighting(np.random.default_rng(seed), 2.5).direction,
        )
        for seed in range(200)
    ]
    assert 0.7 < np.mean(same) < 0.9


def test_regions_of_the_face_are_symmetric_and_lie_where_they_should(body: AnnyBody) -> None:
    rest = body.rest({}, {}, {}).vertices
    painted = np.full((SKIN_VERTICES, 3), 0.4, np.float32)
    eyes = rest[14598:14742].mean(0)
    height = rest[:SKIN_VERTICES, 1] - eyes[1]
    mouth = (np.abs(rest[:SKIN_VERTICES, 0]) < 0.024) & (np.abs(height + 0.0755) < 0.008)
    painted[mouth] = (0.5, 0.2, 0.2)
    regions = SkinRegions(rest, painted)
    mirror = body.mirror[:SKIN_VERTICES]
    for share in (regions.blush, regions.lips, regions.lids, regions.circles):
        assert np.allclose(share, share[mirror], atol=2e-3)
        assert 0 <= share.min() < 0.01 < 0.9 < share.max() <= 1
    front = rest[:SKIN_VERTICES, 2] > eyes[2] - 0.03
    assert regions.lips[mouth & front].min() > 0.5
    assert regions.lips[np.abs(height + 0.0755) > 0.02].max() == 0
    assert regions.lids[height < -0.01].max() < 0.05
    assert regions.circles[height > 0.0].max() < 0.05


@pytest.mark.parametrize("age", ["child", "young", "middleage", "old"])
def test_complexions_are_colours_of_people(age: str) -> None:
    rng = np.random.default_rng(1)
    for share in np.linspace(0, 1, 60).tolist():
        look = sample_complexion(rng, share > 0.5, age, {"african": share, "asian": (1 - share) / 2, "caucasian": 0.2})
        red, green, blue = look.skin
        assert red > green > blue > 0
        assert look.luminance < 0.75
        assert np.all(look.lips < 1.0) or age != "child"
        assert look.iris @ LUMINANCE < look.sclera @ LUMINANCE
    dark = [sample_complexion(rng, True, age, {"african": 1.0, "asian": 0.0, "caucasian": 0.0}) for _ in range(40)]
    light = [sample_complexion(rng, True, age, {"african": 0.0, "asian": 0.0, "caucasian": 1.0}) for _ in range(40)]
    assert max(d.luminance for d in dark) < min(x.luminance for x in light)


def test_hair_beard_and_skin_go_together(source: PortraitSource) -> None:
    subjects = [source.describe(17, index) for index in range(250)]
    for subject in subjects:
        skin = subject.complexion.luminance
        assert subject.brow_colour @ LUMINANCE < 0.25 * skin
        if subject.race_mix["african"] > 0.7 and subject.age in ("child", "young"):
            assert subject.hair.beard_colour @ LUMINANCE < 0.06
    fair = [s.hair.colour @ LUMINANCE > 0.12 for s in subjects if s.race_mix["caucasian"] > 0.8 and s.age == "young"]
    dark = [s.hair.colour @ LUMINANCE > 0.12 for s in subjects if s.race_mix["caucasian"] < 0.2 and s.age == "young"]
    assert np.mean(fair) > 0.2
    assert np.mean(dark) < 0.1


def test_faces_are_at_ease_and_mouths_mostly_closed(body: AnnyBody) -> None:
    rng = np.random.default_rng(2)
    faces = [sample_expression(rng) for _ in range(400)]
    for face in faces:
        assert set(face) <= set(body.facial_labels)
        assert all(0 <= value <= 1 for value in face.values())
    assert np.mean(["jawOpen" in face for face in faces]) < 0.3
    assert np.mean([face.get("mouthSmileLeft", 0) > 0.2 for face in faces]) > 0.4
    assert np.mean([face.get("browDownLeft", 0) > 0 for face in faces]) < 0.1


def test_shapes_differ_and_are_nearly_symmetric(body: AnnyBody) -> None:
    rng = np.random.default_rng(5)
    shapes = [sample_shape(rng, body) for _ in range(50)]
    assert all(set(shape) <= set(body.local_labels) for shape in shapes)
    left = np.array([[v for k, v in shape.items() if k.startswith("l-")] for shape in shapes])
    right = np.array([[shape["r-" + k[2:]] for k in shape if k.startswith("l-")] for shape in shapes])
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.95
    assert left.std(0).min() > 0.1
    assert "nose-trans-out" not in shapes[0]
    assert "l-eye-trans-out" in shapes[0]
