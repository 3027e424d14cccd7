"""Cameras and places of converted models: what corresponds to what, and back."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.config import PRESETS, CameraConfig
from portrait360.geometry.cameras import FOCAL, LOOK_AT, RADIUS, camera_label, project, zoom_camera
from portrait360.geometry.conventions import (
    OURS,
    model_camera,
    model_crop,
    model_points,
    own_camera,
    translated,
    view_camera,
    world_camera,
    world_points,
)

HEAD = PRESETS["panohead-512"].model.camera
ANGLES = torch.tensor([0.0, 0.4, -1.3, math.pi, 2.5]), torch.tensor([0.0, 0.3, -0.5, 0.1, 0.0]), 0.2
EYES = torch.tensor([[0.0215, 0.077, 0.088], [-0.0215, 0.077, 0.088]])
"""Centres of the packaged body's eyes, left then right."""
MOUTH = torch.tensor([0.0, 0.031, 0.098])


def test_this_projects_cameras_are_the_default():
    assert (OURS.radius, OURS.focal, OURS.look_at) == (RADIUS, FOCAL, LOOK_AT)
    label, points = camera_label(0.3), torch.randn(4, 3)
    assert model_camera(label, OURS) is label
    assert world_camera(label, OURS) is label
    assert model_points(points, OURS) is points
    assert world_points(points, OURS) is points
    centre, side = model_crop(label, OURS)
    assert centre.tolist() == [[0.5, 0.5]]
    assert side.tolist() == [1.0]
    assert all(PRESETS[name].model.camera == OURS for name in PRESETS if not name.startswith("panohead"))


def test_cameras_correspond_by_their_angles():
    found = model_camera(camera_label(*ANGLES), HEAD)
    torch.testing.assert_close(found, own_camera(HEAD, *ANGLES), atol=1e-6, rtol=0)


def test_yaw_0_looks_at_the_face_of_a_head():
    label = model_camera(camera_label(0.0), HEAD)[0]
    expected = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]
    torch.testing.assert_close(label, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("camera", [HEAD, CameraConfig(radius=4.0, focal=2.0, look_at=(0.1, -0.2, 0.3))])
def test_any_camera_goes_there_and_back(camera):
    label = zoom_camera(camera_label(*ANGLES), 1.3)
    label[:, 3] += 0.05  # off the sphere and not looking at the point
    label[:, 18] += 0.1
    there = model_camera(label, camera)
    torch.testing.assert_close(world_camera(there, camera), label, atol=2e-6, rtol=0)
    rotation = there[:, :16].unflatten(1, (4, 4))[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)


def test_gradients_reach_the_angles():
    yaw = torch.tensor([0.7], requires_grad=True)
    (slope,) = torch.autograd.grad(model_camera(camera_label(yaw), HEAD)[0, 3], yaw)
    assert float(slope) == pytest.approx(2.7 * math.cos(0.7), rel=1e-4)


def test_points_go_there_and_back():
    points = torch.randn(7, 3)
    there = model_points(points, HEAD)
    torch.testing.assert_close(world_points(there, HEAD), points)
    torch.testing.assert_close(there[1] - there[0], (points[1] - points[0]) * HEAD.scale)
    torch.testing.assert_close(world_points(torch.zeros(3), HEAD), torch.tensor(HEAD.origin))


def test_a_shift_moves_the_camera_but_not_its_axes():
    label, shift = camera_label(torch.tensor([0.3, 2.0])), torch.tensor([[0.1, 0.2, 0.3], [0.0, -0.1, 0.0]])
    moved = translated(label, shift)
    torch.testing.assert_close(moved[:, [3, 7, 11]] - label[:, [3, 7, 11]], shift)
    others = [i for i in range(25) if i not in (3, 7, 11)]
    assert torch.equal(moved[:, others], label[:, others])


@pytest.mark.parametrize("yaw", [0.0, 0.9, -2.0])
def test_the_crop_of_a_photo_shows_what_the_models_camera_shows(yaw):
    """Places in the plane of the head's middle, to the few per cent that perspective makes."""
    label = camera_label(yaw)
    right = label[:, [0, 4, 8]]
    middle = torch.tensor([HEAD.origin])
    places = torch.stack([middle, middle + 0.05 * right, middle + torch.tensor([[0.0, 0.06, 0.0]])], dim=1)
    centre, side = model_crop(label, HEAD)
    in_photo = project(label, places)[0]
    in_crop = (in_photo - centre[:, None]) / side[:, None, None] + 0.5
    in_model = project(model_camera(label, HEAD), model_points(places, HEAD))[0]
    torch.testing.assert_close(in_crop, in_model, atol=0.012, rtol=0)


@pytest.mark.parametrize("yaw", [0.0, 0.9, -2.0])
def test_one_camera_of_our_world_sees_what_the_models_camera_sees(yaw):
    label = camera_label(yaw, 0.2, 0.1)
    places = torch.tensor([[[0.02, 0.1, 0.05], [-0.05, 0.0, 0.0], [0.0, 0.2, -0.1]]])
    ours, depth = project(view_camera(label, HEAD), places)
    own, own_depth = project(model_camera(label, HEAD), model_points(places, HEAD))
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    torch.testing.assert_close(depth * HEAD.scale, own_depth, atol=1e-4, rtol=0)
    assert torch.equal(view_camera(label, OURS), label)


def test_heads_lie_where_the_authors_crops_put_eyes_and_mouth():
    """Equations 15.1: the image is 1.1 times the square around the middle of eyes and mouth, and 5 % of it higher."""
    shown = project(own_camera(HEAD, 0.0), model_points(torch.stack([*EYES, MOUTH]), HEAD)[None])[0][0]
    left, right, mouth = shown
    between, down = left - right, mouth - (left + right) / 2
    square = 2.0 * max(2.0 * float(between.norm()), 1.8 * float(down.norm()))
    assert 1.1 * square == pytest.approx(1.0, abs=0.03)
    middle = (left + right) / 2 + 0.1 * down
    assert float(middle[0]) == pytest.approx(0.5, abs=0.01)
    assert float(middle[1]) == pytest.approx(0.5 + 0.05 * square, abs=0.01)


def test_the_head_lies_in_the_box():
    """From the crown to the chin, ears included."""
    render = PRESETS["panohead-512"].model.render
    extent = model_points(
        torch.tensor([[0.0, 0.165, 0.0], [0.0, 0.0, 0.09], [0.055, 0.07, 0.0], [0.0, 0.05, 0.108]]), HEAD
    )
    assert extent.abs().max() < render.box_half[0]
    assert extent[:, [0, 2]].abs().max() < render.crop
