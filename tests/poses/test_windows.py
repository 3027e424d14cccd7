"""What a discriminator sees of real images and of their centre crops."""

from __future__ import annotations

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.geometry.cameras import camera_label, zoom_camera
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.poses.calibration import PoseCalibration
from portrait360.poses.windows import centre_crop, network_images, window_poses, windows_with_detail
from portrait360.training.augment import zoom_some
from portrait360.training.data import composite
from support.presets import ALL_PRESETS


def some_images(count: int, side: int):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)
    masks = torch.randint(0, 256, (count, 1, side, side), generator=g, dtype=torch.uint8)
    return images, masks, camera_label(torch.linspace(-2.5, 2.5, count))


def test_centre_crops_are_in_the_middle():
    image = torch.arange(100.0).reshape(1, 1, 10, 10)
    assert torch.equal(centre_crop(image, 0.6)[0, 0], image[0, 0, 2:8, 2:8])
    assert torch.equal(centre_crop(image, 1.0), image)


@pytest.mark.parametrize("preset", ["cpu-64", "portrait-256"])
def test_parts_are_seen_as_in_training(preset):
    """Windows of images that training keeps in memory, and of the same images as files have them."""
    model = ALL_PRESETS[preset].model
    windows, full = (1.0, 0.6, 0.42), 2 * model.resolution
    images, masks, cameras = some_images(4, full)
    floats = images / 127.5 - 1.0, masks / 255.0
    kept = composite(images, masks, model.plain_background, full) if model.background is None else (images, masks)
    for level, window in enumerate(windows):
        levels = torch.full((4,), level)
        image, mask, camera = zoom_some(
            levels, kept[0] / 127.5 - 1.0, kept[1] / 255.0, cameras, windows[1:], model.resolution
        )
        shown = network_images(model, *floats, window)
        torch.testing.assert_close(shown.image, image, atol=0.01, rtol=0)  # kept in bytes
        assert shown.mask.shape[-1] == model.raw_resolution
        if model.raw_resolution == model.resolution:
            torch.testing.assert_close(shown.mask, mask, atol=0.01, rtol=0)
        if level:
            torch.testing.assert_close(camera, zoom_camera(cameras, full / centre_crop(floats[0], window).shape[-1]))


def test_each_part_is_what_the_discriminator_says_of_it_alone():
    model = PRESETS["cpu-64"].model
    torch.manual_seed(0)
    network = Discriminator(model).eval()
    images, masks, cameras = some_images(4, 128)
    image, mask = images / 127.5 - 1.0, masks / 255.0
    found = window_poses(network, model, image, mask, cameras, (1.0, 0.5))
    assert found.shape == (4, 2, 6)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-5
    with torch.no_grad():
        for i in range(4):
            one = slice(i, i + 1)
            shown = network_images(model, image[one], mask[one])
            whole = network.predict_pose(DiscriminatorInput(shown.image, None, shown.mask), cameras[one])
            torch.testing.assert_close(found[one, 0], whole, atol=1e-6, rtol=0)
            part = network_images(model, image[one], mask[one], 0.5)
            torch.testing.assert_close(
                found[one, 1], network.predict_pose(part, zoom_camera(cameras[one], 2.0)), atol=1e-6, rtol=0
            )
    grey = composite(images, masks, model.plain_background, 128)[0] / 127.5 - 1.0
    again = window_poses(network, model, grey, mask, cameras, (1.0, 0.5), on_grey=True)
    torch.testing.assert_close(again, found, atol=2e-3, rtol=0)


def test_parts_without_detail_are_left_out():
    model = PRESETS["cpu-64"].model
    known = PoseCalibration((1.0, 0.6, 0.42, 0.27), ())
    assert windows_with_detail(None, 256, model) == (1.0,)
    counts = [len(windows_with_detail(known, side, model)) for side in (32, 64, 85, 86, 128, 256)]
    assert counts == [1, 1, 1, 2, 3, 4]
