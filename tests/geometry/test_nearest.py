"""The nearest-triangle search against its plain twin and against dense sampling."""

from __future__ import annotations

import pytest
import torch

from portrait360.geometry.body import load_body
from portrait360.geometry.nearest import nearest_triangles, nearest_triangles_reference

BODY = load_body()
TRIANGLES = BODY.vertices[BODY.faces].double()


def cloud(count: int, scale: float = 0.6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5) * scale


def test_tree_search_agrees_with_its_plain_twin() -> None:
    points = cloud(100)
    index, barycentric, distance = nearest_triangles(points, TRIANGLES)
    expected_index, expected_distance = nearest_triangles_reference(points, TRIANGLES)
    torch.testing.assert_close(distance, expected_distance, atol=1e-12, rtol=0)
    # triangles that share the nearest corner or edge tie up to rounding; nothing else may differ
    differing = index != expected_index
    assert differing.float().mean() < 0.2
    shared = (BODY.faces[index][:, :, None] == BODY.faces[expected_index][:, None]).any(-1).any(-1)
    assert shared[differing].all()
    closest = (barycentric[..., None] * TRIANGLES[index]).sum(1)
    torch.testing.assert_close((closest - points).norm(dim=1), distance, atol=1e-12, rtol=0)
    assert (barycentric >= 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 63])
def test_small_meshes_of_any_size(count: int) -> None:
    triangles = cloud(3 * count, seed=count).reshape(count, 3, 3)
    points = cloud(100, scale=1.5)
    index, _, distance = nearest_triangles(points, triangles)
    expected_index, expected_distance = nearest_triangles_reference(points, triangles, pairs_at_once=50)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected_distance, atol=1e-12, rtol=0)


def test_distance_to_one_triangle_agrees_with_dense_sampling() -> None:
    triangle = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.2, 0.8, 0.3]]], dtype=torch.float64)
    steps = torch.linspace(0, 1, 401, dtype=torch.float64)
    u, v = torch.meshgrid(steps, steps, indexing="ij")
    keep = u + v <= 1
    u, v = u[keep, None], v[keep, None]
    samples = triangle[0, 0] + u * (triangle[0, 1] - triangle[0, 0]) + v * (triangle[0, 2] - triangle[0, 0])
    points = cloud(200, scale=4.0)
    expected = torch.cdist(points, samples).amin(1)
    for distance in (
        nearest_triangles(points, triangle)[2],
        nearest_triangles_reference(points, triangle)[1],
    ):
        assert (distance <= expected + 1e-12).all()
        assert (expected - distance).max() < 2e-3


def test_first_of_equal_triangles_wins() -> None:
    triangle = cloud(3).reshape(1, 3, 3)
    copies = torch.cat([triangle + 5, triangle, triangle, triangle])
    points = cloud(20)
    assert (nearest_triangles(points, copies)[0] == 1).all()
    assert (nearest_triangles_reference(points, copies)[0] == 1).all()


def test_corners_lie_on_the_mesh() -> None:
    index, barycentric, distance = nearest_triangles(TRIANGLES[::97, 0], TRIANGLES)
    assert distance.max() == 0
    torch.testing.assert_close((barycentric[..., None] * TRIANGLES[index]).sum(1), TRIANGLES[::97, 0])
