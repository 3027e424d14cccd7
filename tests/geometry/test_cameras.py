"""Laws of camera labels: look-at values, mirroring, rays against projections, boxes against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.geometry.cameras import (
    FOCAL,
    LOOK_AT,
    RADIUS,
    cam2world,
    camera_label,
    intrinsics,
    is_left,
    mirror_body_pose,
    mirror_camera,
    project,
    ray_box,
    rays,
    yaw_pitch,
    zoom_camera,
)


def random_labels(count: int = 20, seed: int = 0, roll: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, count, generator=generator, dtype=torch.float64) * 2 - 1
    return camera_label(u[0] * math.pi, u[1] * 1.2, u[2] * roll)


def test_front_label_has_the_values_of_the_original() -> None:
    slope = 0.0649 / math.hypot(0.0649, 2.7)
    level = 2.7 / math.hypot(0.0649, 2.7)
    expected = [1, 0, 0, 0, 0, -level, slope, 0, 0, -slope, -level, 2.7, 0, 0, 0, 1]
    expected += [6.510416666666667, 0, 0.5, 0, 6.510416666666667, 0.5, 0, 0, 1]
    torch.testing.assert_close(camera_label(0.0), torch.tensor([expected], dtype=torch.float32), atol=1e-6, rtol=0)
    assert abs(level - 0.99971) < 1e-5
    assert abs(slope - 0.024033) < 1e-4


@pytest.mark.parametrize("yaw", [-3.0, -math.pi / 2, -0.3, 0.0, 1.2, math.pi / 2, 3.1])
@pytest.mark.parametrize("pitch", [-1.2, 0.0, 0.7])
def test_axes_follow_the_look_at_rule_of_the_original(yaw: float, pitch: float) -> None:
    # x' = -normalise(up x z'), y' = normalise(z' x x'), z' = normalise(L - o)
    position = (
        torch.tensor(
            [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)],
            dtype=torch.float64,
        )
        * 2.7
    )
    forward = torch.nn.functional.normalize(torch.tensor(LOOK_AT, dtype=torch.float64) - position, dim=0)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    right = -torch.nn.functional.normalize(torch.linalg.cross(up, forward), dim=0)
    down = torch.nn.functional.normalize(torch.linalg.cross(forward, right), dim=0)
    matrix = cam2world(camera_label(torch.tensor([yaw], dtype=torch.float64), pitch))[0]
    torch.testing.assert_close(matrix[:3], torch.stack([right, down, forward, position], dim=1))


def test_yaw_is_positive_towards_the_left_and_pitch_above() -> None:
    left, above = camera_label(0.5)[0], camera_label(0.0, 0.5)[0]
    assert left[3] > 0
    assert above[7] > 0
    # the subject's left (+x) appears on the right of the front image, up (+y) towards smaller v
    uv, _ = project(camera_label(0.0), torch.tensor([[[0.1, 0.0, 0.0], [0.0, 0.15, 0.0]]]))
    assert uv[0, 0, 0] > 0.5
    assert uv[0, 1, 1] < 0.5


def test_rotation_part_is_a_proper_rotation() -> None:
    rotation = cam2world(random_labels())[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20, dtype=torch.float64))


def test_cameras_stand_on_the_sphere_and_look_at_the_head_joint() -> None:
    labels = random_labels()
    radius = torch.linalg.vector_norm(cam2world(labels)[:, :3, 3], dim=1)
    torch.testing.assert_close(radius, torch.full((20,), RADIUS, dtype=torch.float64))
    uv, depth = project(labels, torch.tensor(LOOK_AT, dtype=torch.float64).expand(20, 1, 3))
    torch.testing.assert_close(uv, torch.full((20, 1, 2), 0.5, dtype=torch.float64))
    assert (depth > 2.6).all()


def test_yaw_and_pitch_are_read_back() -> None:
    yaw = torch.linspace(-3.1, 3.1, 13, dtype=torch.float64)
    pitch = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
    read_yaw, read_pitch = yaw_pitch(camera_label(yaw, pitch))
    torch.testing.assert_close(read_yaw, yaw)
    torch.testing.assert_close(read_pitch, pitch)


def test_straight_above_is_the_limit_along_the_meridian() -> None:
    above = cam2world(camera_label(torch.tensor([0.7], dtype=torch.float64), math.pi / 2))
    nearly = cam2world(camera_label(torch.tensor([0.7], dtype=torch.float64), math.pi / 2 - 1e-4))
    torch.testing.assert_close(above, nearly, atol=1e-3, rtol=0)


def test_positive_roll_turns_the_subject_counter_clockwise() -> None:
    point = torch.tensor([[[0.0, 0.2, 0.0]]])
    uv, _ = project(camera_label(0.0, roll=0.2), point)
    assert uv[0, 0, 0] < 0.5


def test_intrinsics_hold_the_focal_length() -> None:
    expected = torch.tensor([[[FOCAL, 0, 0.5], [0, FOCAL, 0.5], [0, 0, 1]]])
    torch.testing.assert_close(intrinsics(camera_label(0.3)), expected)
    assert abs(FOCAL - 6.510416666666667) < 1e-15


def test_left_is_the_side_with_positive_x() -> None:
    yaw = torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0])
    assert is_left(camera_label(yaw)).tolist() == [False, False, True, True, True]
    original = camera_label(0.0)
    original[0, 3] = -1.1805e-07
    assert not is_left(original).item()


def test_mirroring_twice_changes_nothing() -> None:
    labels, poses = random_labels(), torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mirror_camera(mirror_camera(labels)), labels)
    assert torch.equal(mirror_body_pose(mirror_body_pose(poses)), poses)


def test_mirroring_negates_yaw_and_roll() -> None:
    yaw, pitch, roll = torch.tensor([0.8, -2.0]), torch.tensor([0.3, -0.4]), torch.tensor([0.1, -0.2])
    torch.testing.assert_close(mirror_camera(camera_label(yaw, pitch, roll)), camera_label(-yaw, pitch, -roll))


def test_mirrored_camera_sees_mirrored_points_in_the_mirrored_image() -> None:
    labels = random_labels()
    points = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.4 - 0.2
    uv, depth = project(labels, points)
    mirrored_uv, mirrored_depth = project(mirror_camera(labels), points * points.new_tensor([-1, 1, 1]))
    torch.testing.assert_close(mirrored_uv, torch.stack([1 - uv[..., 0], uv[..., 1]], dim=-1))
    torch.testing.assert_close(mirrored_depth, depth)


def test_zoomed_camera_sees_the_middle_of_the_image() -> None:
    labels = random_labels()
    labels[:, [18, 21]] += 0.1  # a principal point beside the middle
    points = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.4 - 0.2
    uv, depth = project(labels, points)
    zoomed_uv, zoomed_depth = project(zoom_camera(labels, 1.6), points)
    torch.testing.assert_close(zoomed_uv, (uv - 0.5) * 1.6 + 0.5)
    torch.testing.assert_close(zoomed_depth, depth)
    torch.testing.assert_close(zoom_camera(labels, 1.0), labels)


def test_cameras_may_be_zoomed_each_by_its_own_factor() -> None:
    labels = camera_label(torch.tensor([0.3, -1.0, 2.0]))
    labels[:, [18, 21]] = 0.4
    factors = [1.0, 1.25, 2.0]
    apart = torch.cat([zoom_camera(label[None], factor) for label, factor in zip(labels, factors, strict=True)])
    assert torch.equal(zoom_camera(labels, torch.tensor(factors)), apart)


def test_mirrored_pose_is_the_reflected_rotation() -> None:
    from portrait360.geometry.rotations import axis_angle_to_matrix

    pose = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reflection = torch.diag(pose.new_tensor([-1, 1, 1]))
    expected = reflection @ axis_angle_to_matrix(pose.view(5, 2, 3)) @ reflection
    torch.testing.assert_close(axis_angle_to_matrix(mirror_body_pose(pose).view(5, 2, 3)), expected)


def test_points_on_a_ray_project_to_its_pixel_centre() -> None:
    side = 5
    labels = random_labels()
    labels[:, 17] = 0.3  # skew
    origins, directions = rays(labels, side)
    uv, _ = project(labels, origins + 2.5 * directions)
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    expected = torch.stack([centres.repeat(side), centres.repeat_interleave(side)], dim=-1)
    torch.testing.assert_close(uv, expected.expand(20, -1, -1))
    torch.testing.assert_close(
        torch.linalg.vector_norm(directions, dim=-1), torch.ones(20, side * side, dtype=torch.float64)
    )


def test_rays_hit_the_projected_point() -> None:
    labels = random_labels(8, seed=3)
    point = torch.tensor([0.05, 0.1, -0.08], dtype=torch.float64)
    uv, depth = project(labels, point.expand(8, 1, 3))
    matrix = cam2world(labels)
    camera_space = torch.cat([(uv[:, 0] - 0.5) / FOCAL, torch.ones(8, 1, dtype=torch.float64)], dim=1) * depth
    world = (matrix[:, :3, :3] @ camera_space[..., None])[..., 0] + matrix[:, :3, 3]
    torch.testing.assert_close(world, point.expand(8, 3))


def test_ray_box_agrees_with_dense_sampling() -> None:
    box_min, box_max = (-0.12, -0.2, -0.1), (0.15, 0.18, 0.2)
    origins, directions = rays(random_labels(6, seed=1, roll=0.1), 16)
    near, far, hit = ray_box(origins, directions, box_min, box_max)
    steps = torch.linspace(1.5, 4.0, 2501, dtype=torch.float64)
    points = origins[:, :, None] + directions[:, :, None] * steps[:, None]
    inside = ((points > points.new_tensor(box_min)) & (points < points.new_tensor(box_max))).all(-1)
    assert 0 < hit.float().mean() < 1
    chord = far - near
    assert (chord[~hit] == 0).all()
    assert not inside[~hit].any()
    assert inside[hit & (chord > 0.002)].any(-1).all()
    first = torch.where(inside, steps, math.inf).amin(-1)
    last = torch.where(inside, steps, -math.inf).amax(-1)
    long = hit & (chord > 0.002)
    assert (first - near)[long].abs().max() < 1.1e-3
    assert (last - far)[long].abs().max() < 1.1e-3


def test_ray_box_with_axis_parallel_rays_and_origins_inside() -> None:
    origins = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, -3.0], [0.0, 5.0, -3.0], [0.0, 0.0, 3.0], [0.999, 0.0, -3.0]]])
    directions = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(1, 5, 3)
    near, far, hit = ray_box(origins, directions, (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
    assert hit.tolist() == [[True, True, False, False, True]]
    assert near.tolist() == [[0.0, 2.0, 0.0, 0.0, 2.0]]
    assert far.tolist() == [[1.0, 4.0, 0.0, 0.0, 4.0]]
    assert torch.isfinite(near).all()


def test_labels_are_differentiable_in_the_angles() -> None:
    yaw = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    pitch = torch.tensor([0.2, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(camera_label, (yaw, pitch))
