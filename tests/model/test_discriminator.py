"""Discriminator: symmetry, conditioning, minibatch statistics, names of the original."""

from __future__ import annotations

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera
from portrait360.model.discriminator import (
    Discriminator,
    DiscriminatorInput,
    concatenate,
    minibatch_std,
    with_pose_path,
)
from portrait360.types import InputError
from support.presets import ALL_PRESETS, TINY, TINY_ORIGINAL


def discriminator_input(count, side=32, raw=16):
    torch.manual_seed(3)
    return DiscriminatorInput(
        torch.randn(count, 3, side, side), torch.randn(count, 3, raw, raw), torch.rand(count, 1, raw, raw)
    )


@pytest.fixture(scope="module")
def discriminator():
    torch.manual_seed(0)
    return Discriminator(TINY.model)


def test_logits_and_poses_are_mirror_symmetric(discriminator):
    x, camera = discriminator_input(4), camera_label(torch.tensor([0.5, -1.0, 2.0, -2.5]))
    logits, pose = discriminator(x, camera)
    mirrored, other = discriminator(x.map(lambda t: t.flip(3)), mirror_camera(camera))
    torch.testing.assert_close(logits, mirrored, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mirror_body_pose(pose), other, atol=1e-5, rtol=1e-4)


def test_one_pass_and_two_pass_pose_agree_on_right_views():
    """The original form (equations 8.8, 8.9) and the one-pass form differ only for left views."""
    torch.manual_seed(0)
    two = Discriminator(TINY_ORIGINAL.model)
    x, camera = discriminator_input(4), camera_label(torch.tensor([-0.5, -1.0, -2.0, -2.5]))
    logits, pose = two(x, camera)
    torch.testing.assert_close(pose, two.predict_pose(x, camera))
    flat = two.trunk(x)
    torch.testing.assert_close(logits, two.b4.score(flat, two.mapping(None, camera, pose)), atol=1e-5, rtol=1e-4)


def test_condition_matters_and_predicted_pose_is_detached(discriminator):
    x, camera = discriminator_input(4), camera_label(torch.tensor([0.5, -1.0, 2.0, -2.5]))
    logits, pose = discriminator(x, camera)
    given, _ = discriminator(x, camera, pose.detach())
    torch.testing.assert_close(logits, given)
    other, _ = discriminator(x, camera, torch.ones(4, 6))
    assert (other - logits).abs().max() > 1e-4
    turned, _ = discriminator(x, camera.roll(1, 0))
    assert (turned - logits).abs().max() > 1e-4
    discriminator.zero_grad()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in discriminator.pose_branch.parameters())


def test_minibatch_std_groups_by_stride():
    """Equations 8.4: sample s belongs to group s mod (N / G)."""
    x = torch.randn(8, 3, 4, 4)
    y = minibatch_std(x, 4)
    assert y.shape == (8, 4, 4, 4)
    for s in range(8):
        group = x[s % 2 :: 2]
        std = ((group - group.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[s, 3], std.expand(4, 4))


def test_minibatch_std_of_one_sample_is_tiny():
    torch.testing.assert_close(minibatch_std(torch.randn(1, 2, 4, 4), 4)[0, 2, 0, 0], torch.tensor(1e-4))


def test_minibatch_std_takes_batches_that_do_not_divide():
    assert minibatch_std(torch.randn(6, 2, 4, 4), 4).shape == (6, 3, 4, 4)


def test_parts_of_a_batch_keep_their_statistics_apart(discriminator):
    """Real and generated images in one pass get the logits of two passes."""
    a, b = discriminator_input(4), discriminator_input(4).map(lambda t: t.flip(0) * 0.5)
    camera = camera_label(torch.tensor([0.5, -1.0, 2.0, -2.5]))
    together, pose = discriminator(concatenate(a, b), camera.repeat(2, 1), parts=2)
    torch.testing.assert_close(together[:4], discriminator(a, camera)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[4:], discriminator(b, camera)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pose[4:], discriminator(b, camera)[1], atol=1e-5, rtol=1e-4)
    mixed, _ = discriminator(concatenate(a, b), camera.repeat(2, 1))
    assert (mixed - together).abs().max() > 1e-6


def test_concatenate_keeps_order():
    a, b = discriminator_input(2), discriminator_input(3)
    both = concatenate(a, b)
    assert torch.equal(both.image[2:], b.image)
    assert torch.equal(both.raw[:2], a.raw)


@pytest.mark.parametrize(("parts", "size"), [(2, 4), (3, 6), (5, 1), (1, 8)])
def test_parts_of_a_batch_have_deviations_of_their_own(parts, size):
    x = torch.randn(parts * size, 3, 4, 4)
    apart = torch.cat([minibatch_std(part, 4) for part in x.chunk(parts)])
    torch.testing.assert_close(minibatch_std(x, 4, parts), apart)


def test_tensor_names_follow_the_original():
    """Equations 12.7: 71 learnable tensors with 49,312,422 values for the 512 network."""
    with torch.device("meta"):
        module = Discriminator(PRESETS["original-512"].model)
    parameters = dict(module.named_parameters())
    assert len(parameters) == 71
    assert sum(p.numel() for p in parameters.values()) == 49_312_422
    assert parameters["b512.fromrgb.weight"].shape == (64, 7, 1, 1)
    assert parameters["b4.conv.weight"].shape == (512, 513, 3, 3)
    assert parameters["pose_branch.net.0.weight"].shape == (2048, 8217)


@pytest.mark.parametrize("preset", ["tiny", "tiny-original"])
def test_a_pose_path_begins_as_the_blocks_that_poses_were_read_through(preset):
    torch.manual_seed(0)
    model = ALL_PRESETS[preset].model
    alone = Discriminator(model)
    x, camera = discriminator_input(4), camera_label(torch.tensor([0.5, -1.0, 2.0, -2.5]))
    apart, larger = with_pose_path(alone, model, 2)
    assert larger.discriminator.pose_blocks == 2
    assert apart.pose_path is not None
    for before, after in zip(alone(x, camera), apart(x, camera), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(apart.predict_pose(x, camera, parts=2), alone.predict_pose(x, camera, parts=2))
    same, model_of_same = with_pose_path(apart, larger, 1)
    assert model_of_same == larger
    assert same is not apart


@pytest.mark.parametrize("preset", ["tiny", "tiny-original"])
def test_a_pose_path_grows_and_says_what_it_said(preset):
    torch.manual_seed(0)
    model = ALL_PRESETS[preset].model
    short, model = with_pose_path(Discriminator(model), model, 1)
    assert short.pose_path is not None
    for parameter in short.pose_path.parameters():  # no longer those for logits
        parameter.add_(torch.randn_like(parameter) * 0.1)
    long, larger = with_pose_path(short, model, 2)
    assert larger.discriminator.pose_blocks == 2
    assert long.pose_path is not None
    assert len(long.pose_path.sides) == 2
    x, camera = discriminator_input(4), camera_label(torch.tensor([0.5, -1.0, 2.0, -2.5]))
    for before, after in zip(short(x, camera), long(x, camera), strict=True):
        assert torch.equal(before, after)


def test_logits_and_poses_have_blocks_of_their_own():
    torch.manual_seed(0)
    model = TINY.model
    d, _ = with_pose_path(Discriminator(model), model, 2)
    d.requires_grad_(True)
    x, camera = discriminator_input(4), camera_label(torch.tensor([0.5, -1.0, 2.0, -2.5]))
    given = torch.zeros(4, 6)
    logits, pose = d(x, camera, given)
    torch.testing.assert_close(pose, d.predict_pose(x, camera))
    logit = {name for name, p in d.named_parameters() if _reaches(logits, p)}
    seen = {name for name, p in d.named_parameters() if _reaches(pose, p)}
    both = set(logit & seen)
    assert both
    assert all(name.startswith("b32.") for name in both)
    assert {name.split(".")[0] for name in seen - both} == {"pose_path", "pose_branch"}
    assert logit | seen == {name for name, _ in d.named_parameters()}
    with torch.no_grad():
        for p in d.pose_path.parameters():
            p.add_(0.1)
    after, moved = d(x, camera, given)
    assert torch.equal(after, logits)
    assert (moved - pose).abs().max() > 1e-4


def _reaches(value, parameter):
    (gradient,) = torch.autograd.grad(value.sum(), parameter, retain_graph=True, allow_unused=True)
    return gradient is not None


def test_one_block_at_least_stays_shared():
    model = TINY.model
    d = Discriminator(model)
    for blocks in (-1, 0, 3):
        with pytest.raises(InputError, match="does not fit tiny"):
            with_pose_path(d, model, blocks)
