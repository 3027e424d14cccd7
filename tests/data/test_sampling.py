"""Mirroring samples and balancing yaws."""

from __future__ import annotations

import torch

from portrait360.data.sampling import mirrored, yaw_histogram
from portrait360.geometry.cameras import camera_label, project


def test_mirroring_twice_changes_nothing() -> None:
    torch.manual_seed(0)
    camera = camera_label(torch.randn(4), torch.randn(4) * 0.3, torch.randn(4) * 0.1)
    sample = (torch.rand(4, 3, 8, 8), torch.rand(4, 1, 8, 8), camera, torch.randn(4, 6))
    once = mirrored(*sample)
    assert all(not torch.equal(a, b) for a, b in zip(sample, once, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(sample, mirrored(*once), strict=True))


def test_a_mirrored_camera_sees_the_mirrored_point_at_the_mirrored_pixel() -> None:
    camera = camera_label(torch.tensor([0.7, -2.0]), 0.2, 0.1)
    point = torch.tensor([[[0.1, 0.05, 0.08]], [[-0.05, 0.1, 0.02]]])
    side = 200
    uv, _ = project(camera, point)
    image = torch.zeros(2, 3, side, side)
    for b in range(2):
        column, row = (uv[b, 0] * side).long().tolist()
        image[b, :, row, column] = 1
    flipped, _, other, _ = mirrored(image, image[:, :1], camera, torch.zeros(2, 6))
    uv, _ = project(other, point * torch.tensor([-1.0, 1.0, 1.0]))
    for b in range(2):
        column, row = (uv[b, 0] * side).long().tolist()
        assert flipped[b, 0, row, column - 1 : column + 2].sum() == 1


def test_histogram_counts_every_camera_once() -> None:
    degrees = torch.tensor([-179.0, -171.0, -169.0, 0.5, 0.6, 179.9])
    counts = yaw_histogram(camera_label(degrees.deg2rad()))
    assert counts.shape == (36,)
    assert counts.sum() == 6
    assert [counts[i].item() for i in (0, 1, 18, 35)] == [2, 1, 2, 1]
