"""The deformation: exact transfer against the original's numbers, field against twin, truth and exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.geometry.body import bone_transforms, load_body, posed_vertices
from portrait360.geometry.cameras import mirror_body_pose
from portrait360.geometry.deformation import (
    FIELD_MAX,
    FIELD_MIN,
    FIELD_SHAPE,
    apply_field,
    deform_exact,
    deformation_field,
    deformation_field_reference,
    field_axes,
    posing_jacobian,
    transfer,
)
from portrait360.geometry.nearest import nearest_triangles
from portrait360.geometry.weights import look_up, weight_volume
from tools.deformation_report import (
    PORTRAIT_MAX,
    PORTRAIT_MIN,
    folded_share,
    measure,
    points_near_skin,
    random_poses,
    seconds_per_image,
    single_axis_poses,
)

BODY = load_body()
FLIP = torch.tensor([-1.0, 1.0, 1.0])
SMALL = (7, 8, 6)
MIDDLE = (12, 14, 10)
FINE = (36, 42, 30)


# --- exact transfer ---


def test_exact_transfer_matches_the_original() -> None:
    golden = np.load(Path(__file__).parent / "golden_deformation.npz")
    rest, posed, points, expected = (
        torch.from_numpy(golden[name]) for name in ("rest", "posed", "points", "canonical")
    )
    moved = transfer(points, rest, posed, 0.25)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)
    assert ((moved - points).norm(dim=-1) > 0.1).any()
    assert (moved == points).all(-1).any()


def test_exact_transfer_at_zero_pose_changes_nothing() -> None:
    points = points_near_skin(BODY.vertices, BODY, 500)[None]
    torch.testing.assert_close(deform_exact(points, BODY, torch.zeros(1, 6)), points, atol=1e-6, rtol=0)


def test_exact_transfer_takes_face_points_and_their_normals_home() -> None:
    # a point just above a face centre keeps its height and, on a rigid part, its place on the face
    pose = random_poses(2, seed=3)
    posed = posed_vertices(BODY, pose)
    rigid = BODY.faces[(BODY.weights[BODY.faces, 4] == 1).all(1)][::37]

    def above(vertices: torch.Tensor) -> torch.Tensor:
        corner = vertices[..., rigid, :]
        normal = torch.linalg.cross(corner[..., 1, :] - corner[..., 0, :], corner[..., 2, :] - corner[..., 0, :])
        return corner.mean(-2) + 1e-4 * torch.nn.functional.normalize(normal, dim=-1)

    torch.testing.assert_close(
        deform_exact(above(posed), BODY, pose), above(BODY.vertices).expand(2, -1, -1), atol=2e-6, rtol=0
    )


def test_points_beyond_the_thickness_stay() -> None:
    points = points_near_skin(BODY.vertices, BODY, 400)[None]
    pose = random_poses(1, seed=4)
    thin, thick = deform_exact(points, BODY, pose, 0.01), deform_exact(points, BODY, pose, 0.25)
    stays = (thin == points).all(-1)
    assert 0.2 < stays.float().mean() < 0.95
    assert torch.equal(thin[~stays], thick[~stays])
    assert not torch.equal(thick[stays], points[stays])


def test_exact_transfer_is_differentiable_in_pose_and_points() -> None:
    body = BODY.to("cpu", torch.float64)
    pose = random_poses(1, seed=5).double().requires_grad_()
    points = points_near_skin(posed_vertices(BODY, pose.float().detach())[0], BODY, 3, seed=1)[None]
    points = points.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, x: deform_exact(x, body, p), (pose, points), eps=1e-7, atol=1e-5)


def test_exact_transfer_is_mirror_equivariant() -> None:
    points = points_near_skin(BODY.vertices, BODY, 500)[None]
    pose = random_poses(1, seed=6)
    mirrored = deform_exact(points * FLIP, BODY, mirror_body_pose(pose)) * FLIP
    # mirrored faces start at another corner, which shows where skinning stretches or turns them
    apart = (mirrored - deform_exact(points, BODY, pose)).norm(dim=-1)
    assert apart.median() < 1e-6
    assert apart.mean() < 4e-4


# --- field ---


def test_field_has_its_nodes_on_the_box() -> None:
    assert deformation_field(BODY, torch.zeros(1, 6)).shape == (1, *FIELD_SHAPE, 3)
    for axis, low, high, count in zip(field_axes(), FIELD_MIN, FIELD_MAX, reversed(FIELD_SHAPE), strict=True):
        assert len(axis) == count
        assert abs(axis[0].item() - low) < 1e-7
        assert abs(axis[-1].item() - high) < 1e-7


def test_zero_pose_gives_exactly_the_zero_field() -> None:
    zero = torch.zeros(2, 6)
    assert torch.equal(deformation_field(BODY, zero), torch.zeros(2, *FIELD_SHAPE, 3))
    assert torch.equal(deformation_field_reference(BODY, zero, SMALL), torch.zeros(2, *SMALL, 3))


@pytest.mark.parametrize(("scale", "shape"), [(0.3, MIDDLE), (1.0, MIDDLE), (2.0, MIDDLE), (1.0, FINE)])
def test_fast_field_agrees_with_its_plain_twin(scale: float, shape: tuple[int, int, int]) -> None:
    pose = random_poses(3, seed=1) * scale
    fast, plain = deformation_field(BODY, pose, shape), deformation_field_reference(BODY, pose, shape)
    apart = (fast - plain).norm(dim=-1)
    assert fast.norm(dim=-1).max() > 0.02
    assert apart.quantile(0.999) < 1e-6
    # where space folds, rounding decides which branch is found
    assert (apart > 1e-5).float().mean() < 1e-4


@pytest.mark.parametrize("shape", [MIDDLE, FINE])
def test_fast_gradient_agrees_with_that_of_the_plain_twin(shape: tuple[int, int, int]) -> None:
    gradients = []
    upstream = torch.randn(3, *shape, 3, generator=torch.Generator().manual_seed(0))
    for make in (deformation_field, deformation_field_reference):
        pose = random_poses(3, seed=2).requires_grad_()
        make(BODY, pose, shape).backward(upstream)
        assert pose.grad is not None
        gradients.append(pose.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-3, rtol=1e-4)


def test_gradient_agrees_with_finite_differences() -> None:
    body = BODY.to("cpu", torch.float64)
    pose = random_poses(1, seed=8).double().requires_grad_()

    def smooth(p: torch.Tensor) -> torch.Tensor:
        return deformation_field_reference(body, p, (5, 6, 5))

    jacobian = torch.autograd.functional.jacobian(smooth, pose)[..., 0, :]
    step = 1e-4
    for entry in range(6):
        shift = torch.zeros(1, 6, dtype=torch.float64)
        shift[0, entry] = step
        numeric = (smooth(pose.detach() + shift) - smooth(pose.detach() - shift)) / (2 * step)
        # the trilinear weights have kinks: a few nodes may cross one within the step
        error = (jacobian[..., entry] - numeric).abs()
        assert error.quantile(0.95) < 1e-4
        assert error.max() < 0.05
        assert numeric.abs().max() > 0.02


def test_gradient_at_zero_pose_is_finite_and_turns_the_head() -> None:
    pose = torch.zeros(1, 6, requires_grad=True)
    field = deformation_field(BODY, pose)
    crown = apply_field(field, torch.tensor([[[0.0, 0.16, 0.0]]]))
    (gradient,) = torch.autograd.grad(crown[0, 0, 2], pose)
    # nodding down moves the crown forward, so a fixed point's canonical place moves back
    assert gradient[0, 0] < -0.05
    assert gradient[0, 3] < -0.05
    assert gradient[0, [1, 2, 4, 5]].abs().max() < 0.01


def test_solution_of_every_node_poses_back_to_the_node() -> None:
    pose = single_axis_poses(20)
    field = deformation_field(BODY, pose)
    x, y, z = field_axes()
    nodes = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
    canonical = (nodes + field).flatten(1, 3)
    weights, _ = look_up(weight_volume(BODY), canonical)
    motions = bone_transforms(BODY, pose)[:, list(BODY.moving)]
    homogeneous = torch.cat([canonical, torch.ones_like(canonical[..., :1])], dim=-1)
    per_bone = torch.einsum("bmij,bnj->bnmi", motions, homogeneous)
    posed = canonical * (1 - weights.sum(-1, keepdim=True)) + (weights[..., None] * per_bone).sum(2)
    residual = (posed - nodes.flatten(0, 2)).norm(dim=-1)
    assert residual.flatten()[::7].quantile(0.9999) < 3e-4
    assert residual.max() < 5e-3
    assert residual.mean() < 1e-6


def test_field_is_mirror_equivariant() -> None:
    pose = random_poses(4, seed=3)
    mirrored = deformation_field(BODY, mirror_body_pose(pose)).flip(3) * FLIP
    apart = (mirrored - deformation_field(BODY, pose)).norm(dim=-1)
    assert apart.quantile(0.99) < 1e-4
    assert apart.mean() < 1e-5


def test_shoulders_stay_exactly_where_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 4000, 3, generator=generator) * torch.tensor([0.5, 0.1, 0.16]) - torch.tensor(
        [0.25, 0.33, 0.08]
    )
    pose = torch.cat([random_poses(8), single_axis_poses(20)])
    field = deformation_field(BODY, pose)
    clouds = points.expand(len(pose), -1, -1)
    assert (apply_field(field, clouds) - clouds).norm(dim=-1).max() < 2e-4
    beyond = points * torch.tensor([1.0, 0.5, 1.0]) + torch.tensor([0.0, -0.2, 0.0])
    assert (apply_field(field, beyond.expand_as(clouds)) - beyond).norm(dim=-1).max() < 2e-4


@pytest.mark.parametrize(
    ("poses", "limits"),
    [
        (random_poses(16), (0.0003, 0.003, 0.006, 0.002)),
        (single_axis_poses(20), (0.0003, 0.003, 0.006, 0.002)),
    ],
    ids=["random", "single-axes"],
)
def test_accuracy_stays_within_the_documented_bounds(
    poses: torch.Tensor, limits: tuple[float, float, float, float]
) -> None:
    found = measure(BODY, poses, points_per_pose=1500)
    mean, p99, p99_moved, p99_truth = limits
    assert found.field_to_exact.mean < mean
    assert found.field_to_exact.p99 < p99
    assert found.field_to_exact_moved.p99 < p99_moved
    assert found.field_to_vertices.mean < mean
    assert found.field_to_vertices.p99 < p99_truth
    assert found.exact_to_vertices.p99 < p99_truth
    # the bounds mean something only if the poses move the points far
    assert (posed_vertices(BODY, poses) - BODY.vertices).norm(dim=-1).amax() > 0.03


def test_nothing_folds_near_the_skin_at_twenty_degrees() -> None:
    assert folded_share(BODY, single_axis_poses(20), 4000).max() == 0
    assert folded_share(BODY, random_poses(32), 4000).mean() < 2e-4


def test_jacobian_of_the_zero_pose_is_the_identity() -> None:
    points = points_near_skin(BODY.vertices, BODY, 50)[None]
    assert torch.equal(posing_jacobian(BODY, torch.zeros(1, 6), points), torch.eye(3).expand(1, 50, 3, 3))


def test_extreme_poses_stay_finite_and_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(12, 2, 3, generator=generator), dim=-1)
    pose = torch.cat([axes.flatten(1), torch.eye(3).repeat(1, 2), -torch.eye(3).repeat(1, 2)]) * math.radians(45)
    for turn in (pose, pose * 4):
        turn = turn.clone().requires_grad_()
        field = deformation_field(BODY, turn)
        field.square().sum().backward()
        assert field.isfinite().all()
        assert field.norm(dim=-1).max() < 0.85
        assert turn.grad is not None
        assert turn.grad.isfinite().all()
    calm = (deformation_field(BODY, pose).norm(dim=-1) > 0.6).float().mean()
    assert calm == 0


def test_bodies_with_other_bones_use_the_same_field() -> None:
    # three bones as SMPL has them: torso, neck, head
    weights = torch.stack([BODY.weights[:, 0], BODY.weights[:, 1:4].sum(1), BODY.weights[:, 4]], dim=1)
    three = replace(
        BODY,
        weights=weights,
        joints=BODY.joints[[0, 2, 4]],
        parents=(-1, 0, 1),
        drive=(None, ("neck", 1.0), ("head", 1.0)),
    )
    # and one with more moving bones than the kernel takes
    many = replace(
        BODY,
        weights=torch.cat([BODY.weights[:, :4], BODY.weights[:, 4:] / 2, BODY.weights[:, 4:] / 2], dim=1),
        joints=BODY.joints[[0, 1, 2, 3, 4, 4]],
        parents=(-1, 0, 1, 2, 3, 4),
        drive=(*BODY.drive, None),
    )

    # Both have a field; the first agrees with its twin, and both bring posed heads home.
    pose = single_axis_poses(10)[[0, 4]]
    assert torch.equal(deformation_field(three, pose * 0), torch.zeros(2, *FIELD_SHAPE, 3))
    apart = deformation_field(three, pose, SMALL) - deformation_field_reference(three, pose, SMALL)
    assert apart.abs().max() < 1e-5
    for body in (three, many):
        back = apply_field(deformation_field(body, pose, MIDDLE), posed_vertices(body, pose))
        head = BODY.weights[:, 4] == 1
        assert (back - BODY.vertices)[:, head].norm(dim=-1).mean() < 3e-4


# --- interpolation ---


def test_apply_field_is_exact_at_nodes_and_linear_between() -> None:
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(2, *SMALL, 3, generator=generator, dtype=torch.float64)
    x, y, z = (axis.double() for axis in field_axes(SMALL))
    nodes = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1).reshape(1, -1, 3).expand(2, -1, -1)
    torch.testing.assert_close(apply_field(field, nodes) - nodes, field.flatten(1, 3), atol=1e-5, rtol=0)
    slope = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    linear = (nodes @ slope).reshape(2, *SMALL, 3)
    points = torch.rand(2, 100, 3, generator=generator, dtype=torch.float64) * 0.4 - 0.2
    torch.testing.assert_close(apply_field(linear, points), points + points @ slope, atol=1e-6, rtol=0)


def test_apply_field_continues_the_border_beyond_the_box() -> None:
    field = torch.randn(1, *SMALL, 3, generator=torch.Generator().manual_seed(0))
    outside = torch.tensor([[[0.5, 0.1, 0.1], [0.1, -2.0, 0.1], [0.1, 0.1, 9.0]]])
    border = torch.minimum(torch.maximum(outside, torch.tensor(FIELD_MIN)), torch.tensor(FIELD_MAX))
    torch.testing.assert_close(apply_field(field, outside) - outside, apply_field(field, border) - border)


def test_apply_field_is_differentiable_in_field_and_points() -> None:
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, 3, 4, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    points = torch.rand(1, 4, 3, generator=generator, dtype=torch.float64) * 0.4 - 0.2
    assert torch.autograd.gradcheck(apply_field, (field, points.requires_grad_()))


# --- measuring ---


def test_points_near_the_skin_lie_where_they_should() -> None:
    points = points_near_skin(BODY.vertices, BODY, 2000)
    assert (points >= torch.tensor(PORTRAIT_MIN)).all()
    assert (points <= torch.tensor(PORTRAIT_MAX)).all()
    distance = nearest_triangles(points, BODY.vertices[BODY.faces])[2]
    assert distance.max() <= 0.03 + 1e-5
    assert distance.mean() > 0.005
    assert torch.equal(points, points_near_skin(BODY.vertices, BODY, 2000))


def test_timing_returns_positive_seconds() -> None:
    forward, backward = seconds_per_image(BODY, batch=2, repeats=2)
    assert 0 < forward < 1
    assert 0 < backward < 1
