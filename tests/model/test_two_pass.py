"""The compiled two-pass renderer against the published one."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from portrait360.config import RenderConfig
from portrait360.geometry.cameras import camera_label, rays
from portrait360.geometry.deformation import FIELD_SHAPE, apply_field
from portrait360.model.fused import read_density, read_density_plain
from portrait360.model.generator import Generator, RenderDraws
from portrait360.model.rendering import Occupancy, bound_rays, render_original
from portrait360.model.trigrid import Decoder
from portrait360.model.two_pass import can_render_two_pass, cells_for_two_pass, render_two_pass
from support.presets import TINY_ORIGINAL

CONFIG = RenderConfig(samples=14, importance_samples=9)


def scene(config=CONFIG, *, latents=2, views=1, side=9, activation="softplus", contrast=40.0):
    torch.manual_seed(2)
    decoder = Decoder(8, 16, 8, activation).requires_grad_(False)
    decoder.net[2].weight[0] -= decoder.net[2].weight[0].mean()
    decoder.net[2].weight[0] *= contrast
    decoder.net[2].bias[1:].normal_()
    tri_grid = torch.randn(latents, 3, 8, 3, 32, 32)
    camera = camera_label(torch.rand(latents * views) * 6.28, torch.randn(latents * views) * 0.1)
    return decoder, tri_grid, bound_rays(*rays(camera, side), config)


def everywhere(latents: int) -> torch.Tensor:
    return torch.ones(latents, 3, 4, 5, dtype=torch.uint8)


@pytest.mark.parametrize("nodes", [None, FIELD_SHAPE, (9, 5, 12)])
@pytest.mark.parametrize(
    ("config", "case"),
    [
        (CONFIG, {}),
        (CONFIG, {"latents": 2, "views": 3}),
        (CONFIG, {"activation": "lrelu", "side": 8}),
        (dataclasses.replace(CONFIG, importance_samples=0), {}),
        (dataclasses.replace(CONFIG, samples=48, importance_samples=48), {"side": 4}),
        (dataclasses.replace(CONFIG, density_scale=3.0, density_shift=0.5, near=2.4, far=3.1), {}),
    ],
)
def test_equals_the_published_renderer(config, case, nodes):
    decoder, tri_grid, bounded = scene(config, **case)
    field = None if nodes is None else torch.randn(len(bounded.origins), *nodes, 3) * 0.02
    images = len(bounded.origins)
    expected = render_original(
        tri_grid.repeat_interleave(images // len(tri_grid), dim=0), decoder, bounded, config,
        deform=None if field is None else partial(apply_field, field),
    )  # fmt: skip
    found = render_two_pass(tri_grid, decoder, bounded, config, everywhere(len(tri_grid)), field=field, stop=0.0)
    assert expected.opacity.std() > 0.02
    for name in ("features", "opacity", "distance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=6e-4, rtol=1e-4)
        error = (getattr(found, name) - getattr(expected, name)).abs().mean()
        assert error < 1e-5, name


@pytest.mark.parametrize("features", [8, 12, 16])
def test_the_levels_of_a_pyramid_are_averaged(features):
    """Also where the features are no multiple of eight."""
    torch.manual_seed(2)
    config = dataclasses.replace(CONFIG, near=2.385, far=3.12, box_half=(0.35, 0.35, 0.35), crop=0.28)
    decoder = Decoder(features, 16, 8, "softplus").requires_grad_(False)
    decoder.net[2].weight[0] -= decoder.net[2].weight[0].mean()
    decoder.net[2].weight[0] *= 40.0
    levels = tuple(3.0 * torch.randn(2, 3, features, 3, side, side) for side in (8, 16, 32))
    bounded = bound_rays(*rays(camera_label(torch.rand(2) * 6.28), 9), config)
    expected = render_original(levels, decoder, bounded, config)
    found = render_two_pass(levels, decoder, bounded, config, everywhere(2), stop=0.0)
    assert expected.opacity.std() > 0.02
    for name in ("features", "opacity"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=6e-4, rtol=1e-4)
    points = torch.rand(300, 3) * 2.0 - 1.0
    densities = [read(levels, decoder, points, config) for read in (read_density, read_density_plain)]
    torch.testing.assert_close(*densities, atol=1e-4, rtol=1e-4)


def test_ending_rays_early_changes_little():
    decoder, tri_grid, bounded = scene(contrast=600.0)
    exact = render_two_pass(tri_grid, decoder, bounded, CONFIG, everywhere(2), stop=0.0)
    short = render_two_pass(tri_grid, decoder, bounded, CONFIG, everywhere(2))
    assert 0 < (exact.features - short.features).abs().max() < 5e-3


def test_unoccupied_space_is_empty():
    decoder, tri_grid, bounded = scene()
    out = render_two_pass(tri_grid, decoder, bounded, CONFIG, torch.zeros(2, 3, 4, 5, dtype=torch.uint8))
    assert out.features.abs().max() == 0
    assert out.opacity.abs().max() == 0
    step = (CONFIG.far - CONFIG.near) / (CONFIG.samples - 1)
    assert torch.allclose(out.distance, torch.tensor(CONFIG.far + step / 2))


def test_each_portrait_has_its_own_cells():
    decoder, tri_grid, bounded = scene(latents=2, views=2)
    cells = everywhere(2)
    cells[1] = 0
    out = render_two_pass(tri_grid, decoder, bounded, CONFIG, cells)
    assert out.opacity[:2].max() > 0.5
    assert out.opacity[2:].max() == 0


def ball(config: RenderConfig):
    """A decoder and a tri-grid whose density is a ball of radius 0.15 around the origin, with coloured noise."""
    torch.manual_seed(3)
    decoder = Decoder(8, 16, 8, "softplus").requires_grad_(False)
    for layer in (decoder.net[0], decoder.net[2]):
        layer.bias.zero_()
    decoder.net[0].weight[0] = 0.0
    decoder.net[0].weight[0, 0] = 1.0 / decoder.net[0].weight_gain
    decoder.net[2].weight[0] = 0.0
    decoder.net[2].weight[0, 0] = 150.0 / decoder.net[2].weight_gain
    decoder.net[2].bias[0] = -15.0
    tri_grid = torch.randn(1, 3, 8, 3, 64, 64)
    axis = (torch.arange(64) + 0.5) / 64 - 0.5
    square = axis.square() / 0.15**2
    fall = 3.0 * 40.0  # three planes are averaged
    tri_grid[0, 0, 0] = fall * (1.0 / 3.0 - square[None, :, None] - square[None, None])
    tri_grid[0, 1, 0] = fall * (1.0 / 3.0 - square[None, :, None])
    tri_grid[0, 2, 0] = fall / 3.0
    return decoder, tri_grid


def test_only_occupied_cells_of_a_portrait_suffice():
    config = RenderConfig()
    decoder, tri_grid = ball(config)
    cells = cells_for_two_pass(tri_grid, decoder, config)
    assert 0.01 < cells.float().mean() < 0.15
    bounded = bound_rays(*rays(camera_label(torch.tensor([0.4])), 24), config)
    expected = render_original(tri_grid, decoder, bounded, config)
    found = render_two_pass(tri_grid, decoder, bounded, config, cells)
    assert expected.opacity.min() < 0.01
    assert expected.opacity.max() > 0.99
    assert (found.opacity - expected.opacity).square().mean() < 1e-5
    noise = (found.features - expected.features).square().mean() / expected.features.square().mean()
    assert noise < 1e-4


def test_the_generator_takes_it_at_inference_only(monkeypatch):
    generator = Generator(TINY_ORIGINAL.model).eval().requires_grad_(False)
    called = []
    monkeypatch.setattr(
        "portrait360.model.generator.render_two_pass",
        lambda *a, **k: called.append(k["field"] is not None) or render_two_pass(*a, **k),
    )
    scene_ = generator.scene(torch.randn(1, generator.config.w_dim))
    draws = RenderDraws(occupancy=Occupancy(torch.ones(1, 4, 4, 4, dtype=torch.uint8), 0))
    camera, pose = camera_label(torch.tensor([0.2])), torch.tensor([[0.1, 0.2, 0.0, 0.0, 0.1, 0.0]])
    inference = dataclasses.replace(draws, gradients=False)
    generator.render(scene_, camera, pose, draws=draws)
    generator.render(scene_, camera, pose, draws=inference, plain=True)
    generator.render(scene_, camera, pose, draws=RenderDraws(gradients=False))
    assert called == []
    generator.render(scene_, camera, None, draws=inference)
    generator.render(scene_, camera, pose, draws=inference)
    assert called == [False, True]


def test_sizes_that_the_kernel_does_not_take():
    decoder, tri_grid, _ = scene()
    assert can_render_two_pass(tri_grid, decoder, CONFIG)
    assert not can_render_two_pass(tri_grid[:, :, :4], decoder, CONFIG)
    assert not can_render_two_pass(tri_grid, Decoder(8, 24, 8, "softplus"), CONFIG)
    assert not can_render_two_pass(tri_grid, decoder, dataclasses.replace(CONFIG, quadrature="point"))
    assert not can_render_two_pass(tri_grid, decoder, dataclasses.replace(CONFIG, feature_activation="sigmoid"))
    assert not can_render_two_pass(tri_grid, decoder, dataclasses.replace(CONFIG, samples=3))
