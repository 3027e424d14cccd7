"""Generator: laws of scenes, poses and symmetry."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera
from portrait360.model.generator import Generator, RenderDraws
from support.presets import ALL_PRESETS, TINY
from support.shrunken import shrunken


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(TINY.model).eval()


def make_scene(generator, count=2):
    torch.manual_seed(1)
    camera = camera_label(torch.zeros(count))
    with torch.no_grad():
        return generator.scene(generator.map(torch.randn(count, generator.config.z_dim), camera))


def test_inference_is_deterministic(generator):
    scene = make_scene(generator)
    camera = camera_label(torch.tensor([0.1, 2.0]))
    with torch.no_grad():
        a, b = generator.render(scene, camera), generator.render(scene, camera)
    assert torch.equal(a.image, b.image)


def test_fused_and_plain_images_agree(generator):
    scene = make_scene(generator)
    camera = camera_label(torch.tensor([0.1, 2.0, -1.0, 3.0]))
    pose = torch.randn(4, 6) * 0.15
    with torch.no_grad():
        fast = generator.render(scene, camera, pose)
        slow = generator.render(scene, camera, pose, plain=True)
    torch.testing.assert_close(fast.image, slow.image, atol=5e-3, rtol=0)
    torch.testing.assert_close(fast.mask, slow.mask, atol=2e-3, rtol=0)


def test_zero_pose_is_the_canonical_body(generator):
    scene = make_scene(generator)
    camera = camera_label(torch.tensor([0.3, -2.0]))
    with torch.no_grad():
        a, b = generator.render(scene, camera), generator.render(scene, camera, torch.zeros(2, 6))
    torch.testing.assert_close(a.image, b.image, atol=1e-4, rtol=0)


def test_pose_changes_the_image_and_has_a_gradient(generator):
    scene = make_scene(generator, 1)
    camera = camera_label(0.0)
    pose = torch.zeros(1, 6, requires_grad=True)
    out = generator.render(scene, camera, pose)
    out.image.square().sum().backward()
    assert pose.grad.abs().max() > 0
    with torch.no_grad():
        moved = generator.render(scene, camera, torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 0.0]]))
    assert (moved.image - out.image).abs().max() > 1e-3


def test_views_are_latent_major(generator):
    scene = make_scene(generator, 2)
    camera = camera_label(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    with torch.no_grad():
        both = generator.render(scene, camera)
        first = generator.render(type(scene)(scene.w[:1], scene.tri_grid[:1], scene.background[:1]), camera[:2])
    torch.testing.assert_close(both.image[:2], first.image, atol=1e-5, rtol=0)


def test_conditioning_scale_zero_ignores_camera_and_pose():
    preset = shrunken(PRESETS["cpu-64"])
    generator = Generator(preset.model).eval()
    z = torch.randn(1, 16)
    a = generator.map(z, camera_label(0.0))
    b = generator.map(z, camera_label(2.0), torch.ones(1, 6))
    assert torch.equal(a, b)


def test_truncation_pulls_to_the_average(generator):
    generator.backbone.mapping.w_avg.normal_()
    z, camera = torch.randn(2, 16), camera_label(torch.zeros(2))
    assert torch.equal(generator.map(z, camera, None, 0.0), generator.backbone.mapping.w_avg.expand(2, -1))
    full, half = generator.map(z, camera), generator.map(z, camera, None, 0.5)
    torch.testing.assert_close(half, (full + generator.backbone.mapping.w_avg) / 2)


def test_pose_branch_is_mirror_symmetric(generator):
    z = torch.randn(6, 16)
    camera = camera_label(torch.linspace(-3.0, 3.0, 6), torch.randn(6) * 0.2)
    a = generator.pose_branch(z, camera)
    b = generator.pose_branch(z, mirror_camera(camera))
    torch.testing.assert_close(mirror_body_pose(a), b, atol=1e-5, rtol=1e-4)


def test_query_agrees_with_rendering(generator):
    """Opacity of a ray equals 1 - exp(-integral of the queried density)."""
    scene = make_scene(generator, 1)
    camera = camera_label(0.0)
    config = generator.config.render
    with torch.no_grad():
        low = torch.tensor([0.0, 0.0649, -0.12])
        t = (torch.arange(400) + 0.5) / 400 * 0.28
        points = low + t[:, None] * torch.tensor([0.0, 0.0, 1.0])
        density, colour = generator.query(scene, points[None])
        inside = (points[:, 2] > config.ray_boxes[0][0][2]) & (points[:, 2] < config.ray_boxes[0][1][2])
        expected = 1 - math.exp(-float((density[0, :, 0] * inside).sum()) * 0.28 / 400)
        fine = Generator(generator.config, generator.body).eval()
        fine.load_state_dict(generator.state_dict())
        out = fine.render(scene, camera, resolution=65, plain=True, draws=RenderDraws())
    assert 0 <= colour.min() <= colour.max() <= 1
    assert float(out.mask[0, 0, 32, 32]) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_every_preset_renders_when_shrunken(name):
    preset = shrunken(ALL_PRESETS[name])
    generator = Generator(preset.model).eval()
    with torch.no_grad():
        scene = generator.scene(generator.map(torch.randn(1, 16), camera_label(0.0)))
        pose = torch.randn(1, 6) * 0.1 if preset.model.posable else None
        out = generator.render(scene, camera_label(1.0), pose)
    side = preset.model.raw_resolution
    assert out.image.shape == (1, 3, 32, 32)
    assert out.raw.shape == (1, 3, side, side)
    assert out.mask.shape == out.depth.shape == (1, 1, side, side)
    assert all(torch.isfinite(t).all() for t in (out.image, out.raw, out.mask, out.depth))


def test_tensor_names_follow_the_original():
    """Equations 12.6: names and shapes of the published 512 generator, without its buffers and body model."""
    with torch.device("meta"):
        state = Generator(PRESETS["original-512"].model).state_dict()
    assert state["backbone.synthesis.b4.const"].shape == (512, 4, 4)
    assert state["backbone.synthesis.b256.torgb.weight"].shape == (288, 128, 1, 1)
    assert state["backbone.mapping.fc0.weight"].shape == (512, 1024)
    assert state["superresolution.block0.conv0.weight"].shape == (256, 32, 3, 3)
    assert state["bcg_synthesis.b128.conv1.weight"].shape == (128, 128, 3, 3)
    assert state["decoder.net.2.weight"].shape == (33, 64)
    assert state["pose_branch.net.0.weight"].shape == (128, 537)
    values = sum(v.numel() for k, v in state.items() if not k.endswith(("noise_const", "resample_filter", "w_avg")))
    assert values == 53_816_172
