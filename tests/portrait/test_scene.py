"""A scene in use: the same person from everywhere, and skipping empty space changes nothing that shows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.geometry.cameras import camera_label
from portrait360.model.fused import VIEWING_CELLS
from portrait360.model.generator import Generator
from portrait360.portrait.scene import SceneRenderer, joined_outputs
from portrait360.types import RenderOutput
from support.presets import TINY, TINY_ORIGINAL


@pytest.fixture(scope="module")
def generator():
    """An untrained network whose density varies strongly, so that there are both matter and empty space."""
    torch.manual_seed(4)
    model = TINY.model
    render = dataclasses.replace(model.render, density_shift=-8.0)
    generator = Generator(dataclasses.replace(model, render=render)).eval().requires_grad_(False)
    generator.decoder.net[2].weight[0] *= 12.0
    return generator


def test_same_seed_same_person(generator):
    a, b, c = (SceneRenderer.from_seed(generator, seed) for seed in (5, 5, 6))
    camera = camera_label(0.5)
    assert torch.equal(a.render(camera).image, b.render(camera).image)
    assert not torch.equal(a.render(camera).image, c.render(camera).image)


def test_skipping_empty_space_hardly_changes_images(generator):
    portrait = SceneRenderer.from_seed(generator, 5)
    assert portrait.occupied.shape == (1, *VIEWING_CELLS)
    assert 0.02 < portrait.occupied.float().mean() < 0.98
    camera = camera_label(torch.tensor([0.0, 1.5, 3.0]))
    whole = dataclasses.replace(portrait, occupied=None)
    torch.manual_seed(0)
    pose = torch.randn(3, 6) * 0.1
    skipping, everything = portrait.render(camera, pose), whole.render(camera, pose)
    assert (skipping.mask - everything.mask).abs().max() < 0.06
    assert (skipping.mask - everything.mask).abs().mean() < 0.004


def test_views_one_after_the_other_are_those_of_a_batch(generator):
    """As GPUs draw them. (With occupancy, which empty cells are looked into depends on the number of the ray.)"""
    portrait = dataclasses.replace(SceneRenderer.from_seed(generator, 5), occupied=None)
    camera, pose = camera_label(torch.tensor([0.0, 1.5])), torch.full((2, 6), 0.1)
    together = portrait.render(camera, pose)
    parts = [portrait.render(camera[i : i + 1], pose[i : i + 1]) for i in range(2)]
    joined = joined_outputs(parts)
    for field in dataclasses.fields(RenderOutput):
        a, b = getattr(together, field.name), getattr(joined, field.name)
        assert (a is None and b is None) or torch.allclose(a, b, atol=5e-3), field.name


def test_query_is_empty_outside_of_the_bounds(generator):
    portrait = SceneRenderer.from_seed(generator, 5)
    low, high = portrait.bounds
    outside = torch.stack([low - 0.01, high + 0.01])
    density, _ = portrait.query(outside)
    assert density.max() < 1e-3
    inside, colour = portrait.query(low + (high - low) * torch.rand(200, 3))
    assert inside.max() > 0
    assert 0 <= colour.min() <= colour.max() <= 1


def test_bf16_images_of_an_original_network_are_close():
    torch.manual_seed(1)
    generator = Generator(TINY_ORIGINAL.model).eval().requires_grad_(False)
    camera = camera_label(torch.tensor([0.3]))
    exact, rounded = (SceneRenderer.from_seed(generator, 3, bf16=b).render(camera).image for b in (False, True))
    error = (exact - rounded).square().mean().sqrt() / exact.std()
    assert 1e-5 < error < 0.05
    plain = SceneRenderer.from_seed(generator, 3, bf16=True)
    assert plain.render(camera, plain=True).image.dtype == torch.float32
