"""Agreement of two views, on scenes whose distances and colours are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait360.evaluation.consistency import View, ray_distance, reprojection_error
from portrait360.geometry.cameras import cam2world, camera_label, project, rays
from portrait360.types import InputError

Paint = Callable[[Tensor, Tensor], Tensor]
HEAD = ((0.0, 0.0649, 0.0), 0.1)


def glued_to_the_object(points: Tensor, camera: Tensor) -> Tensor:
    return (points * 60.0).sin()


def glued_to_the_camera(points: Tensor, camera: Tensor) -> Tensor:
    place, _ = project(camera, points[None])
    return (torch.cat([place[0], place[0, :, :1]], dim=1) * 40.0).sin()


def balls(yaw: float, side: int, *spheres: tuple, paint: Paint = glued_to_the_object, pitch: float = 0.0) -> View:
    """Spheres ((x, y, z), radius) before a white wall that is no person, seen from an angle in degrees."""
    camera = camera_label(math.radians(yaw), math.radians(pitch))
    origins, directions = rays(camera, side)
    distance = torch.full((side * side,), 10.0)
    for centre, radius in spheres:
        to_centre = torch.tensor(centre) - origins[0]
        along = (to_centre * directions[0]).sum(-1)
        inside = radius**2 - (to_centre**2).sum(-1) + along**2
        distance = torch.where(inside > 0, torch.minimum(distance, along - inside.clamp_min(0).sqrt()), distance)
    person = distance < 10.0
    colour = paint(origins[0] + directions[0] * distance[:, None], camera)
    colour = torch.where(person[:, None], colour, 1.0)
    return View(
        colour.T.reshape(1, 3, side, side),
        person.float().reshape(1, 1, side, side),
        distance.reshape(1, 1, side, side),
        camera,
    )


def wall(yaw: float, side: int) -> View:
    """The plane z = 0.05 up to |x| < 0.1, seen from an angle in degrees."""
    camera = camera_label(math.radians(yaw))
    origins, directions = rays(camera, side)
    distance = (0.05 - origins[0, :, 2]) / directions[0, :, 2]
    points = origins[0] + directions[0] * distance[:, None]
    return View(
        glued_to_the_object(points, camera).T.reshape(1, 3, side, side),
        (points[:, 0].abs() < 0.1).float().reshape(1, 1, side, side),
        distance.reshape(1, 1, side, side),
        camera,
    )


def further(view: View, amount: float) -> View:
    return View(view.image, view.mask, view.distance + amount, view.camera)


@pytest.mark.parametrize("scene", [lambda yaw, side: balls(yaw, side, HEAD), wall])
def test_a_scene_that_is_one_leaves_the_error_of_interpolation(scene):
    colours = []
    for side in (32, 64, 128):
        result = reprojection_error(scene(-10.0, side), scene(10.0, side))
        assert result.agreement == 1.0
        assert result.compared > 0.6
        assert result.depth < 5e-4
        colours.append(float(result.colour))
    assert colours[0] > 2.5 * colours[1] > 2.5 * 2.5 * colours[2]
    assert colours[2] < 1.0


def test_swapping_the_views_of_a_sphere_changes_next_to_nothing():
    left, right = balls(-10.0, 64, HEAD), balls(10.0, 64, HEAD)
    there, back = reprojection_error(left, right), reprojection_error(right, left)
    assert float(there.colour) == pytest.approx(float(back.colour), rel=0.1)
    assert float(there.compared) == pytest.approx(float(back.compared), abs=0.02)
    assert float(there.depth) == pytest.approx(float(back.depth), abs=2e-5)


def test_a_view_confirms_itself():
    view = balls(5.0, 48, HEAD)
    result = reprojection_error(view, view)
    assert result.agreement == 1.0
    assert result.hidden == 0.0
    assert result.colour < 0.2
    assert result.depth < 1e-5


def test_what_is_painted_per_view_is_found():
    true = reprojection_error(balls(-10.0, 64, HEAD), balls(10.0, 64, HEAD))
    painted = reprojection_error(
        balls(-10.0, 64, HEAD, paint=glued_to_the_camera), balls(10.0, 64, HEAD, paint=glued_to_the_camera)
    )
    assert painted.agreement == 1.0  # the shape is one, its paint is not
    assert painted.colour > 30.0
    assert painted.colour > 10.0 * true.colour


def test_a_card_that_follows_the_camera_is_found():
    def card(yaw: float) -> View:
        view = balls(yaw, 64, HEAD, paint=glued_to_the_camera)
        camera = view.camera
        _, directions = rays(camera, 64)
        cosine = (directions * cam2world(camera)[:, None, :3, 2]).sum(-1)
        return View(view.image, view.mask, (2.62 / cosine).reshape(1, 1, 64, 64), camera)

    result = reprojection_error(card(-20.0), card(20.0))
    assert result.agreement < 0.5
    assert result.depth > 0.01


@pytest.mark.parametrize("amount", [-0.06, -0.03, -0.005, 0.005, 0.03, 0.06])
def test_a_shift_of_the_distance_is_the_error_of_depth(amount):
    first, second = balls(-10.0, 64, HEAD), balls(10.0, 64, HEAD)
    result = reprojection_error(first, further(second, amount))
    assert float(result.depth) == pytest.approx(abs(amount), abs=3e-4)
    assert (result.agreement > 0.95) == (abs(amount) < 0.01)
    assert result.compared > 0.5  # that the second view has it all nearer is no excuse


def test_what_is_hidden_is_left_out():
    near = ((0.0, 0.0649, 0.15), 0.04)
    first, second = balls(0.0, 96, HEAD, near), balls(25.0, 96, HEAD, near)
    result = reprojection_error(first, second)
    assert result.hidden > 0.05
    assert result.agreement > 0.98
    assert result.depth < 2e-4
    assert result.colour < 3.0


def test_what_the_second_view_alone_has_hides_nothing():
    ghost = ((0.0, 0.0649, 0.3), 0.06)
    result = reprojection_error(balls(0.0, 96, HEAD), balls(15.0, 96, HEAD, ghost))
    assert result.hidden < 0.02
    assert result.agreement < 0.9


def test_what_the_first_view_has_background_behind_hides_nothing():
    yaw = 20.0
    towards = (0.4 * math.sin(math.radians(yaw)), 0.0649, 0.4 * math.cos(math.radians(yaw)))
    result = reprojection_error(balls(0.0, 96, HEAD), balls(yaw, 96, HEAD, (towards, 0.04)))
    assert result.hidden < 0.01
    assert result.agreement < 0.9


def test_edges_where_the_surface_jumps_are_left_out():
    def soft(view: View) -> View:
        """Pixels that mix what lies before and behind an edge, as rendered ones do."""
        image, mask, distance = (F.avg_pool2d(v, 2) for v in (view.image, view.mask, view.distance))
        return View(image, mask, distance, view.camera)

    near = ((0.0, 0.0649, 0.15), 0.04)
    result = reprojection_error(soft(balls(-10.0, 128, HEAD, near)), soft(balls(10.0, 128, HEAD, near)))
    assert result.agreement > 0.995
    assert 0.3 < result.compared < 0.9


def test_slanting_surfaces_may_be_half_a_pixel_aside():
    amount = 0.015
    steep = reprojection_error(wall(55.0, 32), further(wall(60.0, 32), amount))
    straight = reprojection_error(wall(-2.5, 32), further(wall(2.5, 32), amount))
    assert steep.agreement > 0.95
    assert straight.agreement == 0.0


def test_colours_are_compared_in_levels_of_255():
    def flat(level: float) -> Paint:
        return lambda points, camera: torch.full_like(points, level)

    result = reprojection_error(balls(-10.0, 32, HEAD, paint=flat(0.0)), balls(10.0, 32, HEAD, paint=flat(0.1)))
    assert float(result.colour) == pytest.approx(12.75, abs=0.01)


def test_what_the_second_view_looks_through_disagrees():
    near = ((0.0, 0.0649, 0.15), 0.04)
    result = reprojection_error(balls(0.0, 96, HEAD, near), balls(10.0, 96, HEAD))
    assert 0.6 < result.agreement < 0.95
    aside = ((0.13, 0.0649, 0.0), 0.03)  # there the second view has only background
    result = reprojection_error(balls(0.0, 96, HEAD, aside), balls(10.0, 96, HEAD))
    assert 0.8 < result.agreement < 0.98
    assert result.depth < 2e-4


def test_background_never_counts():
    first, second = balls(-10.0, 64, HEAD), balls(10.0, 64, HEAD)
    clean = reprojection_error(first, second)

    def corrupted(view: View) -> View:
        back = view.mask < 0.5
        noise = torch.rand(view.image.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
        # the nearest distance there is, so that it would hide everything; background has none
        return View(torch.where(back, noise, view.image), view.mask, torch.where(back, 0.0, view.distance), view.camera)

    dirty = reprojection_error(corrupted(first), corrupted(second))
    for name in ("colour", "depth", "agreement", "hidden"):
        assert torch.equal(getattr(dirty, name), getattr(clean, name))
    nobody = View(first.image, torch.zeros_like(first.mask), first.distance, first.camera)
    nothing = reprojection_error(nobody, second)
    assert all(value.isnan().all() for value in vars(nothing).values())


def test_what_leaves_the_frame_is_not_compared():
    aside = camera_label(math.radians(10.0), look_at=(0.3, 0.0649, 0.0))
    second = balls(10.0, 64, HEAD)
    empty = View(torch.ones_like(second.image), torch.zeros_like(second.mask), second.distance, aside)
    result = reprojection_error(balls(0.0, 64, HEAD), empty)
    assert result.compared < 0.05


def test_images_larger_than_the_masks_are_reduced_by_area():
    first, second = balls(-10.0, 64, HEAD), balls(10.0, 64, HEAD)
    large = [View(v.image.repeat_interleave(2, 2).repeat_interleave(2, 3), v.mask, v.distance, v.camera)
             for v in (first, second)]  # fmt: skip
    for name, value in vars(reprojection_error(*large)).items():
        torch.testing.assert_close(value, getattr(reprojection_error(first, second), name))


def test_images_of_a_batch_do_not_mix():
    def pair(middle: float, paint: Paint) -> tuple[View, View]:
        return balls(middle - 8.0, 48, HEAD, paint=paint), balls(middle + 8.0, 48, HEAD, paint=paint)

    pairs = [pair(0.0, glued_to_the_object), pair(90.0, glued_to_the_camera)]
    joined = [
        View(*(torch.cat([getattr(views[k], name) for views in pairs]) for name in vars(pairs[0][0]))) for k in (0, 1)
    ]
    together = reprojection_error(*joined)
    for i, views in enumerate(pairs):
        for name, value in vars(reprojection_error(*views)).items():
            torch.testing.assert_close(getattr(together, name)[i : i + 1], value, rtol=1e-4, atol=1e-5)


def test_depth_along_the_axis_becomes_distance_along_the_ray():
    camera = camera_label(torch.tensor([0.3, -2.0]), torch.tensor([0.1, 0.4]))
    depth = torch.full((2, 1, 16, 16), 2.6)
    depth[:, :, :4] = 0.0
    distance = ray_distance(depth, camera)
    assert (distance[:, :, :4] == 0).all()
    origins, directions = rays(camera, 16)
    _, again = project(camera, origins + directions * distance.flatten(1)[..., None])
    torch.testing.assert_close(again[:, 64:], depth.flatten(1)[:, 64:])
    with pytest.raises(InputError, match="do not go together"):
        ray_distance(depth[:1], camera)


def test_views_that_make_no_sense_are_refused():
    good = balls(0.0, 16, HEAD)
    for change, message in (
        ({"mask": good.mask[..., :8]}, "the mask of a view should have shape"),
        ({"image": good.image[:, :1]}, "the image of a view should have shape"),
        ({"camera": good.camera[:, :16]}, "the camera of a view should have shape"),
        ({"image": good.image[..., :8, :8]}, "an image of 8 pixels does not go"),
        ({"distance": good.distance / 0.0}, "not finite"),
        ({"image": good.image * math.nan}, "not finite"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            View(**{**vars(good), **change})
        assert caught.value.hint
    two = View(*(value.repeat(2, *[1] * (value.dim() - 1)) for value in vars(good).values()))
    with pytest.raises(InputError, match="1 images cannot be compared with 2"):
        reprojection_error(good, two)
