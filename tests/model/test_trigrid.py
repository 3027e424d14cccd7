"""The tri-grid's symmetric features."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.model.generator import Generator
from portrait360.model.trigrid import split_planes, symmetrize, symmetrize_plain
from support.presets import TINY


def test_symmetrize_equals_its_plain_twin_in_values_and_gradients():
    torch.manual_seed(0)
    image = torch.randn(2, 3 * 3 * 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 3, 8, 3, 6, 6)
    results = []
    for function in (symmetrize, symmetrize_plain):
        out = function(split_planes(image, 3), 5)
        (gradient,) = torch.autograd.grad((out * weight).sum(), image)
        results.append((out, gradient))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)


def test_symmetrize_keeps_the_order_in_memory_that_the_fused_renderer_reads():
    planes = split_planes(torch.randn(1, 3 * 3 * 8, 6, 6).contiguous(memory_format=torch.channels_last), 3)
    assert symmetrize(planes, 4).stride() == planes.stride()


@pytest.mark.parametrize(("features", "symmetric"), [(0, False), (4, False), (8, True)])
def test_a_portrait_of_symmetric_features_is_the_same_left_and_right(features, symmetric):
    torch.manual_seed(1)
    model = dataclasses.replace(TINY.model, symmetric_features=features)
    generator = Generator(model).eval()
    points = (torch.rand(1, 50, 3) - 0.5) * 0.3
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0])
    with torch.no_grad():
        scene = generator.scene(torch.randn(1, model.w_dim))
        here, there = generator.query(scene, points)[0], generator.query(scene, mirrored)[0]
    assert torch.allclose(here, there, rtol=1e-4) == symmetric
