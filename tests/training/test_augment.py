"""Blur, mirroring and swapping."""

from __future__ import annotations

import math

import torch

from portrait360.geometry.cameras import camera_label, project, yaw_pitch
from portrait360.media.images import blur
from portrait360.training.augment import mirror_some, swap_some, zoom_some


def test_blur_against_a_loop():
    """Equations 10.3: kernel 2^(-(i / sigma)^2), radius floor(3 sigma), zero padding, separable."""
    sigma, side = 0.9, 7
    x = torch.randn(1, 1, side, side)
    radius = math.floor(3 * sigma)
    weights = {i: 2 ** (-((i / sigma) ** 2)) for i in range(-radius, radius + 1)}
    total = sum(weights.values())
    expected = torch.zeros_like(x)
    for r in range(side):
        for c in range(side):
            for i, a in weights.items():
                for j, b in weights.items():
                    if 0 <= r + i < side and 0 <= c + j < side:
                        expected[0, 0, r, c] += a * b / total**2 * x[0, 0, r + i, c + j]
    torch.testing.assert_close(blur(x, sigma), expected, atol=1e-5, rtol=1e-4)


def test_small_blur_is_the_identity():
    x = torch.randn(1, 3, 4, 4)
    assert blur(x, 0.3) is x


def test_mirroring_flips_image_and_labels_together():
    image, mask = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    camera = camera_label(torch.tensor([0.7, 0.7]), torch.tensor([0.2, 0.2]))
    pose = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]).repeat(2, 1)
    flags = torch.tensor([True, False])
    i, m, c, p = mirror_some(flags, image, mask, camera, pose)
    assert torch.equal(i[0], image[0].flip(2))
    assert torch.equal(m[0], mask[0].flip(2))
    assert torch.equal(i[1], image[1])
    yaw, pitch = yaw_pitch(c)
    torch.testing.assert_close(yaw, torch.tensor([-0.7, 0.7]))
    torch.testing.assert_close(pitch, torch.tensor([0.2, 0.2]))
    torch.testing.assert_close(p[0], torch.tensor([0.1, -0.2, -0.3, 0.4, -0.5, -0.6]))
    assert torch.equal(p[1], pose[1])


def test_swapping_takes_the_previous_sample_in_all_tensors():
    a, b = torch.arange(4.0)[:, None], torch.arange(8.0).reshape(4, 2)
    x, y = swap_some(torch.tensor([True, False, True, False]), a, b)
    assert x[:, 0].tolist() == [3.0, 1.0, 1.0, 3.0]
    assert torch.equal(y[0], b[3])
    assert torch.equal(y[1], b[1])


def test_zooming_shows_the_middle_with_a_camera_that_saw_just_that():
    """A bright spot lies where the camera projects its point, zoomed in or not."""
    side, window = 40, 0.5
    camera = camera_label(torch.tensor([0.4, 0.4]))
    point = torch.tensor([0.02, 0.09, 0.01])
    u, v = project(camera, point.expand(2, 1, 3))[0][0, 0].tolist()
    image = torch.zeros(2, 3, 2 * side, 2 * side)
    image[:, :, int(v * 2 * side), int(u * 2 * side)] = 1.0
    shown, mask, cameras = zoom_some(torch.tensor([2, 0]), image, image[:, :1], camera, (0.8, window), side)
    assert shown.shape == (2, 3, side, side)
    assert torch.equal(mask, shown[:, :1])
    assert torch.equal(cameras[1], camera[1])
    for image, label in zip(mask[:, 0], cameras, strict=True):
        u, v = project(label[None], point.expand(1, 1, 3))[0][0, 0].tolist()
        row, column = divmod(int(image.argmax()), side)
        assert (row, column) == (int(v * side), int(u * side))
    assert shown[0].max() == 1.0  # half the image at half the pixels: nothing is averaged
    torch.testing.assert_close(shown[1].max(), torch.tensor(0.25))


def test_mirroring_and_zooming_can_change_places():
    image, mask = torch.randn(2, 3, 20, 20), torch.rand(2, 1, 20, 20)
    camera, pose = camera_label(torch.tensor([0.7, -2.0]), torch.tensor([0.2, 0.1])), torch.randn(2, 6)
    every = torch.tensor([True, True])
    levels = torch.tensor([1, 2])
    zoomed = zoom_some(levels, image, mask, camera, (0.6, 0.4), 12)
    one = mirror_some(every, *zoomed, pose)
    i, m, c, _ = mirror_some(every, image, mask, camera, pose)
    for a, b in zip(one, zoom_some(levels, i, m, c, (0.6, 0.4), 12), strict=False):
        torch.testing.assert_close(a, b)
