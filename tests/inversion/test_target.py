"""Targets: images of photos and their windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.geometry.cameras import camera_label, project
from portrait360.inversion.target import Target, resized


def target(side: int = 40) -> Target:
    draws = np.random.default_rng(0)
    image = draws.integers(0, 256, (side, side, 3)).astype(np.uint8)
    mask = np.full((side, side), 255, np.uint8)
    mask[: side // 2] = 0
    return Target.from_arrays(image, mask, camera_label(0.3)[0], torch.zeros(6))


def test_pixels_off_the_person_are_grey():
    made = target()
    assert float(made.image[..., :20, :].abs().max()) == 0.0
    assert float(made.image[..., 20:, :].abs().max()) > 0.9
    assert made.known.min() == 1.0


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_a_window_shows_what_its_camera_sees(share):
    made = target()
    window = made.window(share, 20)
    point = torch.tensor([[[0.01, 0.08, 0.02]]])
    whole, part = (project(camera, point)[0] for camera in (made.camera, window.camera))
    torch.testing.assert_close((whole - 0.5) / share, part - 0.5, atol=1e-5, rtol=0)


def test_a_window_of_the_same_side_is_the_middle_of_the_image():
    made = target()
    torch.testing.assert_close(made.window(0.5, 20).image, made.image[..., 10:30, 10:30])


def test_shrinking_averages():
    values = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(resized(values, 2)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert resized(values, 8).shape == (1, 1, 8, 8)
