"""Identity warp: what it can and cannot move, and that both renderers read the tri-grid where it says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from portrait360.config import ModelConfig, WarpConfig
from portrait360.geometry.cameras import camera_label
from portrait360.geometry.deformation import FIELD_SHAPE, field_nodes
from portrait360.model.generator import Generator
from portrait360.model.warp import IdentityWarp, grid_nodes
from portrait360.runtime.tensors import from_json, to_json
from support.presets import TINY

CONFIG = WarpConfig(shape=(9, 11, 10), field_shape=FIELD_SHAPE)
MODEL = dataclasses.replace(TINY.model, warp=CONFIG)


def moving_warp(seed: int = 0) -> IdentityWarp:
    torch.manual_seed(seed)
    warp = IdentityWarp(CONFIG, 32)
    with torch.no_grad():
        warp.weight.normal_()
        warp.bias.normal_()
    return warp


def generators() -> tuple[Generator, Generator]:
    """The same networks without and with a warp that moves."""
    torch.manual_seed(0)
    plain, warped = Generator(TINY.model).eval(), Generator(MODEL).eval()
    warped.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        torch.manual_seed(3)
        warped.warp.weight.normal_()
    return plain, warped


def styles(generator: Generator, count: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, generator.config.w_dim)


def test_an_untrained_warp_moves_nothing():
    assert torch.equal(IdentityWarp(CONFIG, 32)(torch.randn(3, 32)), torch.zeros(3, *CONFIG.shape, 3))


def test_displacements_are_linear_in_the_style_with_the_configured_scale():
    warp, (a, b) = moving_warp(), torch.randn(2, 5, 32)
    middle = warp((a + b) / 2)
    torch.testing.assert_close(middle, (warp(a) + warp(b)) / 2, atol=1e-7, rtol=1e-5)
    # unit styles through unit weights and biases: sqrt(2) times the scale, less the rigid part and the fade
    inside = warp(torch.randn(64, 32)).detach()[:, 3:-3, 3:-3, 3:-3]
    assert float(inside.std()) == pytest.approx(math.sqrt(2) * CONFIG.scale, rel=0.1)


def test_displacements_vanish_on_the_faces_of_the_box():
    moved = moving_warp()(torch.randn(2, 32))
    size = moved.abs().amax()
    for axis in (1, 2, 3):
        for side in (0, -1):
            # the rigid part that is taken away is faded as well
            assert moved.select(axis, side).abs().max() < 1e-6 * size


def test_no_style_moves_the_head_rigidly():
    moved = moving_warp()(torch.randn(4, 32)).double()
    nodes = grid_nodes(CONFIG).double()
    arms = nodes - torch.tensor([(low + high) / 2 for low, high in zip(CONFIG.low, CONFIG.high, strict=True)])

    # the fade that the motions are weighted with, from its definition
    fade = torch.ones(CONFIG.shape, dtype=torch.float64)
    for z, y, x in np.ndindex(*CONFIG.shape):
        for place, count in zip((z, y, x), CONFIG.shape, strict=True):
            fade[z, y, x] *= min(1.0, min(place, count - 1 - place) / 2)

    for axis in torch.eye(3, dtype=torch.float64):
        turn = torch.linalg.cross(axis.expand_as(arms), arms) * fade[..., None]
        shift = axis.expand_as(arms) * fade[..., None]
        for motion in (turn, shift):
            along = (moved * motion).sum(dim=(1, 2, 3, 4)).abs()
            assert along.max() < 1e-5 * moved.norm() * motion.norm()


@pytest.mark.parametrize("count", [9, 10])
def test_displacements_are_mirror_images_left_and_right(count):
    torch.manual_seed(0)
    warp = IdentityWarp(dataclasses.replace(CONFIG, shape=(9, 11, count)), 32)
    torch.nn.init.normal_(warp.weight)
    moved = warp(torch.randn(2, 32)).detach()
    assert moved[..., 0].abs().max() > 0
    torch.testing.assert_close(moved.flip(3)[..., 0], -moved[..., 0])
    torch.testing.assert_close(moved.flip(3)[..., 1:], moved[..., 1:])


def test_displace_is_trilinear_and_zero_beyond_the_box():
    warp = moving_warp()
    displacements = warp(torch.randn(1, 32)).detach()
    low, high = (np.array(v) for v in (CONFIG.low, CONFIG.high))
    rng = np.random.default_rng(0)
    points = low + rng.random((50, 3)) * (high - low)
    got = warp.displace(displacements, torch.from_numpy(points).float()[None])[0].numpy()

    values, counts = displacements[0].numpy(), np.array(CONFIG.shape)[::-1]
    place = (points - low) / (high - low) * (counts - 1)
    for p, expected in zip(place, got, strict=True):
        total, cell = np.zeros(3), np.minimum(p.astype(int), counts - 2)
        for corner in np.ndindex(2, 2, 2):
            share = np.prod(np.where(np.array(corner) == 1, p - cell, 1 - (p - cell)))
            x, y, z = cell + corner
            total += share * values[z, y, x]
        np.testing.assert_allclose(expected, total, atol=1e-6)

    outside = torch.tensor([[[0.0, CONFIG.high[1] + 0.02, 0.0], [CONFIG.low[0] - 0.05, 0.0, 0.0]]])
    assert torch.equal(warp.displace(displacements, outside), torch.zeros(1, 2, 3))


def test_a_still_warp_renders_the_same_image():
    plain, _ = generators()
    still = Generator(MODEL).eval()
    still.load_state_dict(plain.state_dict(), strict=False)
    w, camera, pose = styles(plain, 1), camera_label(torch.tensor([0.4])), torch.full((1, 6), 0.1)
    with torch.no_grad():
        for body_pose in (None, pose):
            a = plain.render(plain.scene(w), camera, body_pose)
            b = still.render(still.scene(w), camera, body_pose)
            torch.testing.assert_close(b.raw, a.raw, atol=1e-5, rtol=0)


def test_the_tri_grid_is_read_where_the_warp_says():
    plain, warped = generators()
    w = styles(plain, 2)
    scene, bent = plain.scene(w), warped.scene(w)
    # nodes of the field, where no value lies between others
    points = field_nodes()[8:12, 10:15, 9:12].reshape(1, -1, 3).expand(2, -1, -1)
    with torch.no_grad():
        shifted = points + warped.warp.displace(bent.warp, points)
        assert (shifted - points).norm(dim=-1).max() > 0.003
        for a, b in zip(warped.query(bent, points), plain.query(scene, shifted), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_fused_and_plain_renderers_agree_in_values_and_gradients():
    _, warped = generators()
    camera, pose = camera_label(torch.tensor([0.1, 2.0, -1.0, 3.0])), torch.randn(4, 6) * 0.15
    results = []
    for plain in (False, True):
        warped.zero_grad()
        scene = warped.scene(styles(warped, 2))
        out = warped.render(scene, camera, pose, plain=plain)
        (out.raw.square().mean() + out.mask.square().mean()).backward()
        results.append((out.raw.detach(), warped.warp.weight.grad.clone()))
    (fast, fast_gradient), (slow, slow_gradient) = results
    torch.testing.assert_close(fast, slow, atol=5e-3, rtol=0)
    assert slow_gradient.abs().max() > 0
    similarity = torch.nn.functional.cosine_similarity(fast_gradient.flatten(), slow_gradient.flatten(), dim=0)
    assert similarity > 0.999
    assert (fast_gradient - slow_gradient).norm() < 0.03 * slow_gradient.norm()


def test_every_view_gets_its_own_persons_warp():
    _, warped = generators()
    scene = warped.scene(styles(warped, 2))
    camera = camera_label(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    with torch.no_grad():
        both = warped.render(scene, camera)
        second = type(scene)(scene.w[1:], scene.tri_grid[1:], scene.background[1:], None, scene.warp[1:])
        torch.testing.assert_close(warped.render(second, camera[2:]).raw, both.raw[2:], atol=1e-5, rtol=0)


def test_configs_with_and_without_a_warp_are_read_back():
    for model in (MODEL, TINY.model):
        assert from_json(ModelConfig, to_json(model)) == model
