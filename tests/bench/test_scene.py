"""The head that renderers are timed on."""

from __future__ import annotations

import pytest
import torch

from portrait360.bench import scene as bench_scene
from portrait360.bench.scene import EMPTY, FLESH, FULL, shape_like_body, wanted_density
from portrait360.geometry.body import load_body
from portrait360.geometry.conventions import model_points
from portrait360.geometry.nearest import nearest_triangles
from portrait360.model.generator import Generator
from portrait360.model.rendering import query
from support.presets import ALL_PRESETS


def test_wanted_density():
    density = wanted_density(torch.tensor([0.0, FLESH, 3 * FLESH]), scale=2.0)
    assert density[0] == pytest.approx(FULL / 2, rel=1e-2)
    assert density[1] == pytest.approx((FULL / 2 + EMPTY) / 2)
    assert density[2] == pytest.approx(EMPTY, abs=1e-3)


@pytest.mark.parametrize(
    ("preset", "count"), [("tiny", 400), ("tiny-original", 400), ("tiny-head", 1000), ("tiny-pyramid", 400)]
)
def test_matter_is_where_the_body_is(preset, count, monkeypatch):
    """`count`: of points around the body, of which the box of a head holds few."""
    torch.manual_seed(0)
    monkeypatch.setattr(bench_scene, "STEPS", 120)
    generator = Generator(ALL_PRESETS[preset].model).requires_grad_(False)
    with torch.no_grad():
        before = generator.scene(torch.randn(1, generator.config.w_dim))
        scene = shape_like_body(generator, before, load_body())
    assert scene.tri_grid.shape == before.tri_grid.shape
    body, camera = load_body(), generator.config.camera
    vertices = model_points(body.vertices, camera)
    points = vertices[torch.randperm(len(vertices))[:count]] + 0.1 * camera.scale * torch.randn(count, 3)
    half = torch.tensor(generator.config.render.box_half)
    points = points[((points - torch.tensor(generator.config.render.box_centre)).abs() < half).all(dim=1)]
    distance = nearest_triangles(points, vertices[body.faces])[2] / camera.scale
    with torch.no_grad():
        raw, features = query(scene.tri_grids, generator.decoder, points[None], generator.config.render, crop=False)
    flesh, air = distance < 0.5 * FLESH, distance > 3.0 * FLESH
    assert flesh.sum() > 20
    assert air.sum() > 20
    middle = (FULL / (generator.config.render.density_scale * camera.scale) + EMPTY) / 2
    assert (raw[0, flesh, 0] > middle).float().mean() > 0.75
    assert (raw[0, air, 0] < middle).float().mean() > 0.9
    assert features.std() > 0.01
