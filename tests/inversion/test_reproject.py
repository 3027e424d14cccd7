"""The photo's pixels on the portrait."""

from __future__ import annotations

import pytest
import torch

from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label
from portrait360.inversion.regions import CLOTHES, HAIR, SKIN
from portrait360.inversion.reproject import ColourChange, facing, photo_regions
from portrait360.model.appearance import (
    Appearance,
    PhotoResidual,
    coloured,
    look_up_tint,
    packed,
    rounded,
    tint_nodes,
    unpacked,
)
from portrait360.types import RenderOutput
from support.ball_portrait import BALL_CENTRE, BALL_RADIUS, BallPortrait

SIDE = 64


@pytest.fixture(scope="module")
def body():
    return load_body()


def residual(yaw: float = 0.0, colour: float = 0.4, pose: torch.Tensor | None = None) -> PhotoResidual:
    """A photo of the ball portrait that is brighter by `colour`."""
    camera = camera_label(yaw)
    body_pose = torch.zeros(1, 6) if pose is None else pose
    out = BallPortrait().render(camera, body_pose, SIDE)
    there = (out.mask > 0.9).float()
    depth = torch.where(there > 0, out.depth, 10.0)
    return PhotoResidual(camera, body_pose, colour * there.expand(1, 3, -1, -1), there, depth)


def on_ball(direction: list[float]) -> torch.Tensor:
    return torch.tensor([BALL_CENTRE]) + BALL_RADIUS * torch.nn.functional.normalize(torch.tensor([direction]), dim=1)


def test_what_the_photo_saw_gets_its_colour_and_nothing_else(body):
    colour, weight = residual().at(body, torch.cat([on_ball([0.1, 0.1, 1.0]), on_ball([0.0, 0.1, -1.0])]))
    assert float(weight[0]) > 0.95
    torch.testing.assert_close(colour[0], torch.full((3,), 0.4), atol=1e-3, rtol=0)
    assert float(weight[1]) < 0.01


def test_a_turned_head_keeps_the_place_of_its_residual(body):
    """A photo of a turned head and one of a head at rest agree on the canonical face."""
    pose = torch.zeros(1, 6)
    pose[0, 4] = 0.3
    points = on_ball([0.05, 0.05, 1.0])
    straight, turned = (residual(pose=p).at(body, points)[1] for p in (None, pose))
    assert float(straight) > 0.9
    assert float(turned) > 0.9


def test_of_two_photos_the_better_view_counts(body):
    near = residual(0.0, 0.4)
    far = residual(0.0, -0.8)
    far = PhotoResidual(far.camera, far.body_pose, far.colour, far.weight * 0.3, far.depth)
    added = Appearance((near, far)).at(body, on_ball([0.0, 0.0, 1.0]))
    assert float(added.mean()) == pytest.approx(0.4, abs=0.06)
    alone = Appearance((near,)).at(body, on_ball([0.0, 0.0, 1.0]))
    assert float(alone.mean()) == pytest.approx(0.4, abs=0.02)


def test_the_photo_itself_comes_back_at_its_camera(body):
    ball, photo = BallPortrait(), residual(0.3)
    out = ball.render(photo.camera, None, SIDE)
    image = coloured(Appearance((photo,)), body, out, photo.camera, None)
    inner = -torch.nn.functional.max_pool2d(-(out.mask > 0.9).float(), 5, 1, 2) > 0
    difference = (image - out.image)[inner.expand(1, 3, -1, -1)]
    assert float(difference.median()) == pytest.approx(0.4, abs=0.02)
    assert float((image - out.image)[(out.mask < 0.01).expand(1, 3, -1, -1)].abs().max()) == 0.0


def test_larger_images_than_rays_take_residuals_too(body):
    photo = residual()
    out = BallPortrait().render(photo.camera, None, 32)
    large = torch.nn.functional.interpolate(out.image, scale_factor=2.0)
    wide = RenderOutput(image=large, raw=out.raw, mask=out.mask, depth=out.depth)
    assert float((coloured(Appearance((photo,)), body, wide, photo.camera, None) - large).max()) > 0.3


def test_files_keep_a_residual():
    made = residual()
    again = unpacked({name: value.float() for name, value in packed(rounded(made)).items()})
    assert again is not None
    for name, value in vars(rounded(made)).items():
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "shape", "square"])
def test_broken_residuals_are_none(change):
    tensors = packed(residual())
    if change == "missing":
        del tensors["depth"]
    elif change == "shape":
        tensors["camera"] = tensors["camera"][:, :24]
    else:
        tensors["colour"] = tensors["colour"][..., :-1]
    assert unpacked(tensors) is None


def test_surfaces_face_the_camera_in_the_middle_of_a_ball():
    camera = camera_label(0.0)
    out = BallPortrait().render(camera, None, 128)
    cosine = facing(camera, out.depth)[0, 0]
    assert float(cosine[60, 64]) > 0.95
    edge = int((out.mask[0, 0, 60] > 0.5).float().argmax())
    assert float(cosine[60, edge]) < 0.5


def test_colours_change_by_region_and_likeness(body):
    face, back_hair, chest = [0.0, 0.075, 0.12], [0.0, 0.11, -0.1], [0.0, -0.12, 0.1]
    fringe = [0.0, 0.17, 0.08]
    change = ColourChange(
        body,
        torch.tensor([fringe, face, chest]),
        torch.tensor([[0.5] * 3, [0.5] * 3, [-0.5] * 3]),
        torch.tensor([[-0.4] * 3, [0.1] * 3, [0.0] * 3]),
        torch.tensor([HAIR, SKIN, CLOTHES]),
    )
    added = change.at(torch.tensor([back_hair, chest]), torch.tensor([[0.5] * 3, [-0.5] * 3]))
    assert float(added[0].mean()) < -0.05
    assert float(added[1].abs().max()) < 0.02


def test_ears_and_bald_heads_are_skin_by_their_colour():
    skin, dark = [0.5, 0.2, 0.0], [-0.7, -0.7, -0.7]
    colours = torch.tensor([skin, skin, dark, skin, dark])
    regions = torch.tensor([SKIN, SKIN, HAIR, HAIR, CLOTHES])
    assert photo_regions(regions, colours).tolist() == [SKIN, SKIN, HAIR, SKIN, CLOTHES]


def test_the_tint_is_linear_between_its_nodes_and_fades_under_the_photo(body):
    nodes = tint_nodes()
    tint = nodes.permute(3, 0, 1, 2)[None].contiguous()
    points = torch.tensor([[0.01, 0.05, 0.03], [-0.1, -0.2, -0.15]])
    torch.testing.assert_close(look_up_tint(tint, points), points, atol=1e-5, rtol=0)
    dark = torch.full_like(tint, -0.3)
    added = Appearance((residual(),), dark).at(body, torch.cat([on_ball([0, 0, 1.0]), on_ball([0, 0.1, -1.0])]))
    assert float(added[0].mean()) == pytest.approx(0.4, abs=0.05)
    assert float(added[1].mean()) == pytest.approx(-0.3, abs=0.02)
