"""The three faults of the published code: reproduced where a model asks for them, and absent otherwise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from portrait360.config import OriginalBugs
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera
from portrait360.geometry.deformation import carry, transfer
from portrait360.geometry.nearest import nearest_triangles
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.model.generator import Generator, Scene
from portrait360.model.rendering import Rendered
from support.presets import ALL_PRESETS, TINY_ORIGINAL

MODEL = TINY_ORIGINAL.model


def with_bugs(**bugs: bool):
    return dataclasses.replace(MODEL, original_bugs=OriginalBugs(**bugs))


def test_only_published_weights_ask_for_a_fault():
    for name, preset in ALL_PRESETS.items():
        expected = OriginalBugs(camera_unmirrored=name.startswith(("original-", "pyramid-")))
        assert preset.model.original_bugs == expected


# ---- equations 8.8: the camera of mirrored images ----


@pytest.mark.parametrize("mirror_once", [False, True])
@pytest.mark.parametrize("fault", [False, True])
def test_camera_of_the_pose_head(fault, mirror_once):
    torch.manual_seed(0)
    model = with_bugs(camera_unmirrored=fault)
    d = Discriminator(
        dataclasses.replace(model, discriminator=dataclasses.replace(model.discriminator, mirror_once=mirror_once))
    )
    images = DiscriminatorInput(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16), torch.rand(2, 1, 16, 16))
    camera = camera_label(torch.tensor([0.7, -0.7]))  # left, right
    seen = DiscriminatorInput(*(torch.stack([t[0].flip(2), t[1]]) for t in (images.image, images.raw, images.mask)))
    shown = torch.stack([camera[0] if fault else mirror_camera(camera[:1])[0], camera[1]])
    pose = d.pose_branch(d.trunk(seen), shown)
    expected = torch.stack([mirror_body_pose(pose[:1])[0], pose[1]])
    torch.testing.assert_close(d.predict_pose(images, camera), expected)
    torch.testing.assert_close(d(images, camera)[1], expected)


def test_the_law_that_the_unmirrored_camera_breaks():
    """A mirrored view with a mirrored camera shows the mirrored pose: ours; with the fault only nearly."""
    images = DiscriminatorInput(torch.randn(1, 3, 32, 32), torch.randn(1, 3, 16, 16), torch.rand(1, 1, 16, 16))
    camera = camera_label(torch.tensor([0.7]))
    for fault in (False, True):
        torch.manual_seed(0)
        d = Discriminator(with_bugs(camera_unmirrored=fault))
        for layer in d.pose_branch.net:
            torch.nn.init.normal_(layer.weight)
        # the right view of the pair sees the very same images; only the camera can make a difference
        left = d.predict_pose(images, camera)
        right = d.predict_pose(images.map(lambda t: t.flip(3)), mirror_camera(camera))
        difference = (mirror_body_pose(left) - right).abs().max()
        assert (difference > 1e-2) == fault
        assert fault or difference < 1e-5


# ---- equations 7.5: the raw image that super-resolution writes over ----


def composed(model, side: int):
    torch.manual_seed(1)
    generator = Generator(model).eval().requires_grad_(False)
    features = torch.randn(2, side * side, model.features)
    rendered = Rendered(features, torch.rand(2, side * side, 1), torch.ones(2, side * side, 1))
    scene = Scene(torch.randn(2, model.w_dim), torch.zeros(2, 3, 8, 3, 4, 4), torch.randn(2, model.features, 16, 16))
    return generator, scene, generator.compose(scene, rendered, side)


@pytest.mark.parametrize("side", [16, 8])
def test_raw_image_and_super_resolution(side):
    """The fault adds the first block's colours where sides are equal (16), not where a resize came before (8)."""
    _, _, ours = composed(with_bugs(), side)
    generator, scene, theirs = composed(with_bugs(raw_overwritten=True), side)
    assert torch.equal(ours.image, theirs.image)
    torch.testing.assert_close(ours.raw, generator.torgb(ours.features, scene.w))
    if side == 8:
        assert torch.equal(ours.raw, theirs.raw)
        return
    block = generator.superresolution.block0
    x = block.conv1(block.conv0(theirs.features, scene.w, "none"), scene.w, "none")
    torch.testing.assert_close(theirs.raw, ours.raw + block.torgb(x, scene.w), atol=1e-4, rtol=1e-4)
    assert (theirs.raw - ours.raw).abs().max() > 0.1


def test_a_first_block_that_enlarges_leaves_the_raw_image():
    up = dataclasses.replace(MODEL.superresolution, up_first=True, input_resolution=8)
    for fault in (False, True):
        model = dataclasses.replace(with_bugs(raw_overwritten=fault), superresolution=up)
        generator, scene, out = composed(model, 8)
        torch.testing.assert_close(out.raw, generator.torgb(out.features, scene.w))


# ---- equations 6.7: cross products along the wrong axis ----


def literal_cross(a, b, axis):
    """a x b by its three components along `axis`."""
    a0, a1, a2 = a.unbind(axis)
    b0, b1, b2 = b.unbind(axis)
    return torch.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], dim=axis)


def literal_transfer(points, rest, posed, indices, axis):
    """Equations 6.5 for whole arrays [B, N, 3], every cross product along `axis`."""

    def frame(v0, v1, v2):
        y = F.normalize(literal_cross(v1 - v0, v2 - v0, axis), dim=-1)
        x = F.normalize(v1 - v0, dim=-1)
        return x, y, literal_cross(x, y, axis)

    there = torch.stack([posed[b][indices[b]] for b in range(len(points))]).unbind(2)
    here = rest[indices].unbind(2)
    coordinates = [((points - there[0]) * axis_there).sum(-1, keepdim=True) for axis_there in frame(*there)]
    return here[0] + sum(c * axis_here for c, axis_here in zip(coordinates, frame(*here), strict=True))


@pytest.mark.parametrize(
    ("batch", "count", "axis"),
    [(3, 40, 0), (3, 3, 0), (2, 3, 1), (1, 3, 1), (2, 40, 2), (4, 40, 2)],
)
def test_cross_products(batch, count, axis):
    """The fault takes the first axis of size 3: clouds before points before coordinates."""
    torch.manual_seed(2)
    rest = torch.randn(20, 3, 3) * 0.1
    posed = rest + torch.randn(batch, 20, 3, 3) * 0.02
    points = torch.randn(batch, count, 3) * 0.1
    # other triangles for each cloud and each point: equal ones have no cross product along those axes, but noise
    indices = torch.stack([(torch.arange(count) + 7 * b) % 20 for b in range(batch)])
    right = literal_transfer(points, rest, posed, indices, 2)
    wrong = literal_transfer(points, rest, posed, indices, axis)
    distances = torch.zeros(batch, count)
    ours = carry(points, rest, posed, indices, distances, 0.25)
    theirs = carry(points, rest, posed, indices, distances, 0.25, first_axis_of_three=True)
    torch.testing.assert_close(ours, right, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs, wrong, atol=1e-5, rtol=1e-4)
    assert ((theirs - right).abs().max() > 1e-2) == (axis != 2)


@pytest.mark.parametrize("fault", [False, True])
def test_transfer_is_carrying_along_with_the_nearest(fault):
    torch.manual_seed(5)
    rest = torch.randn(20, 3, 3) * 0.1
    posed = rest + torch.randn(3, 20, 3, 3) * 0.02
    points = torch.randn(3, 30, 3) * 0.1
    found = [nearest_triangles(p, t) for p, t in zip(points, posed, strict=True)]
    indices, distances = torch.stack([f[0] for f in found]), torch.stack([f[2] for f in found])
    expected = carry(points, rest, posed, indices, distances, 0.05, first_axis_of_three=fault)
    found = transfer(points, rest, posed, 0.05, first_axis_of_three=fault)
    torch.testing.assert_close(found, expected)
    assert 0.1 < (distances < 0.05).float().mean() < 0.9


def test_given_triangles_and_thickness():
    """`carry` moves along with the triangles it is given, and only points that are nearer than the thickness."""
    torch.manual_seed(3)
    rest = torch.randn(20, 3, 3) * 0.1
    posed = rest[None] + torch.tensor([0.0, 0.3, 0.0])
    points, indices = torch.randn(1, 50, 3), torch.randint(0, 20, (1, 50))
    distances = torch.linspace(0.0, 0.5, 50)[None]
    moved = carry(points, rest, posed, indices, distances, 0.25)
    near = distances < 0.25
    torch.testing.assert_close(moved[near], points[near] - torch.tensor([0.0, 0.3, 0.0]), atol=1e-5, rtol=1e-4)
    assert torch.equal(moved[~near], points[~near])


def test_a_model_with_the_fault_renders_batches_of_three_otherwise():
    """The setting reaches the renderer: three posed images together differ from the same ones alone."""
    pose = torch.tensor([[0.1, 0.2, 0.0, 0.0, 0.3, 0.0]]).repeat(3, 1)
    camera = camera_label(torch.tensor([0.3, -0.5, 3.0]))
    for fault in (False, True):
        torch.manual_seed(4)
        generator = Generator(with_bugs(first_axis_of_three=fault)).eval().requires_grad_(False)
        scene = generator.scene(torch.randn(3, MODEL.w_dim))
        together = generator.render(scene, camera, pose, resolution=6, plain=True)
        alone = [
            generator.render(
                Scene(scene.w[i : i + 1], scene.tri_grid[i : i + 1], scene.background[i : i + 1]),
                camera[i : i + 1], pose[i : i + 1], resolution=6, plain=True,
            ).raw
            for i in range(3)
        ]  # fmt: skip
        assert ((together.raw - torch.cat(alone)).abs().max() > 1e-3) == fault
