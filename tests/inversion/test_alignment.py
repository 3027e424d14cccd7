"""Cameras and body poses corrected by Gauss-Newton."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.geometry.cameras import camera_label
from portrait360.inversion.alignment import ERRORS, Alignment, align
from portrait360.inversion.target import Target
from support.ball_portrait import BallPortrait


@pytest.fixture(scope="module")
def ball():
    return BallPortrait()


def render_of(ball):
    def render(camera, pose, side):
        out = ball.render(camera, pose, side)
        return out.image, out.mask

    return render


def seen(ball, camera, side: int = 64) -> Target:
    out = ball.render(camera, torch.zeros(1, 6), side)
    return Target(out.image, out.mask, torch.ones_like(out.mask), camera, torch.zeros(1, 6))


def test_no_change_is_the_label_itself():
    camera = camera_label(0.4, 0.1, 0.2)
    camera[:, 18] += 0.03
    alignment = Alignment(camera, torch.full((1, 6), 0.1), torch.zeros(12))
    label, pose = alignment.labels(torch.zeros(1, 12))
    torch.testing.assert_close(label, camera, atol=2e-6, rtol=0)
    torch.testing.assert_close(pose, torch.full((1, 6), 0.1))


def test_a_shifted_and_scaled_crop_is_found(ball):
    true = camera_label(0.2)
    target = seen(ball, true)
    error = torch.zeros(12)
    error[3], error[4], error[5] = 0.04, 0.012, -0.012
    wrong = Alignment(true, torch.zeros(1, 6), torch.zeros(12)).labels(error[None])[0]
    start = target.seen_from(wrong, target.body_pose)
    found, alignment = align(start, Alignment.of(start), render_of(ball), 8)
    before, after = ((camera - true)[0, [16, 18, 21]].abs() for camera in (wrong, found.camera))
    assert bool((after < 0.5 * before).all())
    assert alignment.change.shape == (12,)


def test_the_true_camera_stays(ball):
    target = seen(ball, camera_label(-0.3, 0.1))
    found, alignment = align(target, Alignment.of(target), render_of(ball))
    assert float((alignment.change / ERRORS).abs().max()) < 0.05
    torch.testing.assert_close(found.camera, target.camera, atol=5e-3, rtol=0)


def test_yaw_turns_the_camera():
    alignment = Alignment(camera_label(0.0), torch.zeros(1, 6), torch.zeros(12))
    change = torch.zeros(1, 12)
    change[0, 0] = math.radians(5.0)
    label, _ = alignment.labels(change)
    torch.testing.assert_close(label, camera_label(math.radians(5.0)), atol=1e-5, rtol=0)
