"""Crops of photos: true inside, soft outside."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from portrait360.photos.crop import Square
from portrait360.photos.records import PhotoError


def cut(photo: np.ndarray, centre: tuple[float, float], side: float, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a crop, and how much of each the photo covers."""
    crop = Square(centre, side).of(photo, resolution)
    return crop.image, crop.inside


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth coloured image, as a function of places in pixels."""
    red = 128 + 60 * np.sin(x / 7) + 40 * np.cos(y / 9)
    green = 128 + 90 * np.sin((x + y) / 11)
    blue = 128 + 80 * np.cos(x / 10) * np.sin(y / 8)
    return np.stack([red, green, blue], axis=-1)


def places(width: int, height: int, start: tuple[float, float] = (0.0, 0.0), step: float = 1.0):
    """Centres of pixels, right and down."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return start[0] + x * step, start[1] + y * step


def smooth_photo(width: int = 300, height: int = 240) -> np.ndarray:
    return np.rint(smooth(*places(width, height))).astype(np.uint8)


def textured_photo(width: int = 200, height: int = 160) -> np.ndarray:
    random = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(random).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("side", [37.3, 64.0, 100.7, 131.0, 190.9, 230.0])
@pytest.mark.parametrize("centre", [(150.0, 120.0), (147.3, 118.81)])
def test_every_pixel_shows_what_is_at_its_place(centre, side):
    """At any scale and any part of a pixel: the label of a crop is true."""
    crop, inside = cut(smooth_photo(), centre, side, 64)
    start = (centre[0] - side / 2, centre[1] - side / 2)
    expected = smooth(*places(64, 64, start, side / 64))
    assert inside.min() == 1.0
    assert np.abs(crop - expected).max() < 6.0
    for axis, step in enumerate(((0.1, 0.0), (0.0, 0.1))):
        moved = smooth(*places(64, 64, (start[0] + step[0], start[1] + step[1]), side / 64))
        slope = (moved - expected) / 0.1
        shift = ((crop - expected) * slope).sum() / (slope**2).sum()
        assert abs(shift) < 0.03, axis  # pixels of the photo


@pytest.mark.parametrize(("side", "resolution"), [(40.5, 96), (64.0, 64), (90.3, 64), (150.2, 40), (199.0, 16)])
def test_a_ramp_stays_a_ramp(side, resolution):
    across = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    for photo, axis in ((across, 1), (across.transpose(1, 0, 2), 0)):
        crop, _ = cut(np.ascontiguousarray(photo), (128.3, 127.6), side, resolution)
        start = (128.3, 127.6)[1 - axis] - side / 2
        ramp = start + (np.arange(resolution) + 0.5) * side / resolution - 0.5  # pixel j covers [j, j + 1)
        found = crop[..., 0].mean(axis=1 - axis)
        assert np.abs(found - ramp).max() <= 1.0  # whole levels in, whole levels out
        assert np.polyfit(ramp, found, 1)[0] == pytest.approx(1.0, rel=0.01)


def test_whole_pixels_are_copied():
    photo = textured_photo()
    crop, inside = cut(photo, (80.0, 70.0), 64.0, 64)
    np.testing.assert_array_equal(crop, photo[38:102, 48:112])
    assert inside.min() == 1.0


def test_an_image_pasted_into_a_photo_comes_back():
    known = np.asarray(Image.fromarray(textured_photo()).crop((0, 0, 128, 128)))
    photo = np.full((500, 600, 3), 90, np.uint8)
    photo[100:356, 200:456] = np.asarray(Image.fromarray(known).resize((256, 256), Image.Resampling.BICUBIC))
    crop, _ = cut(photo, (328.0, 228.0), 256.0, 128)
    assert np.abs(crop[2:-2, 2:-2].astype(float) - known[2:-2, 2:-2]).mean() < 2.0


def test_moving_by_half_a_pixel_moves_the_image_by_that():
    photo = textured_photo()
    here = cut(photo, (80.0, 70.0), 64.0, 64)[0].astype(float)
    there = cut(photo, (80.5, 70.0), 64.0, 64)[0].astype(float)
    between = (here[:, 2:-2] + here[:, 3:-1]) / 2
    assert np.abs(there[:, 2:-2] - between).mean() < 0.25 * np.abs(here[:, 2:-2] - between).mean()


# ---- beyond the photo ----


def test_inside_tells_how_much_of_each_pixel_is_photo():
    side, resolution = 100.0, 40  # pixels of 2.5
    _, inside = cut(textured_photo(), (46.0, 100.0), side, resolution)
    assert inside.dtype == np.float32
    np.testing.assert_array_equal(inside[:, 0], 0.0)
    np.testing.assert_allclose(inside[5, 1], 0.4, atol=1e-5)  # the photo begins 1.6 pixels from the left
    np.testing.assert_array_equal(inside[:, 2:], 1.0)
    _, inside = cut(textured_photo(), (100.0, 80.0), 400.0, 50)
    np.testing.assert_allclose(inside.mean(), 200 * 160 / 400**2, rtol=1e-5)


@pytest.mark.parametrize("side", [90.0, 170.0, 420.0, 790.0])
@pytest.mark.parametrize("centre", [(100.0, 80.0), (10.0, 5.5), (199.0, 159.0), (-20.0, 80.0)])
def test_a_photo_of_one_colour_stays_that(centre, side):
    photo = np.broadcast_to(np.array([10, 127, 250], np.uint8), (160, 200, 3))
    crop, _ = cut(np.ascontiguousarray(photo), centre, side, 48)
    np.testing.assert_array_equal(crop, np.broadcast_to(photo[0, 0], crop.shape))


@pytest.mark.parametrize("side", [120.0, 260.0, 700.0])
def test_the_border_shows_no_step(side):
    photo = textured_photo()
    crop, inside = cut(photo, (0.0, 80.0), side, 96)
    steps = np.abs(np.diff(crop.astype(float), axis=1)).mean(axis=(0, 2))
    border = 47  # the photo begins between columns 47 and 48
    assert inside[48, border] == 0.0 < inside[48, border + 1]
    assert steps[border] <= 1.1 * max(steps[border - 2 : border].max(), steps[border + 1 : border + 3].max())


def test_padding_is_mirrored_then_blurred_then_one_colour():
    photo = textured_photo()
    crop, inside = cut(photo, (0.0, 80.0), 100.0, 100)
    crop = crop.astype(float)
    mirror = crop[:, 50:][:, ::-1]
    np.testing.assert_allclose(crop[:, 49], mirror[:, 49], atol=2.0)
    detail = np.abs(np.diff(crop, axis=0)).mean(axis=(0, 2))
    assert detail[40] < 0.8 * detail[60]
    assert detail[20] < 0.5 * detail[40]
    np.testing.assert_array_equal(crop[:, :14], np.broadcast_to(crop[0, 0], (100, 14, 3)))
    np.testing.assert_allclose(crop[0, 0], np.median(crop[inside > 0.5], axis=0), atol=1.0)


def test_the_part_within_the_photo_is_untouched():
    photo = textured_photo()
    crop, inside = cut(photo, (20.0, 10.0), 100.0, 100)
    np.testing.assert_array_equal(crop[inside == 1.0].reshape(60, 70, 3), photo[:60, :70])


def test_missing_more_than_the_photo_mirrors_again_and_again():
    photo = textured_photo(40, 32)
    crop, inside = cut(photo, (20.0, 16.0), 160.0, 160)
    assert crop.shape == (160, 160, 3)
    np.testing.assert_array_equal(crop[inside == 1.0].reshape(32, 40, 3), photo)
    assert np.abs(np.diff(crop.astype(float), axis=1)).max() <= np.abs(np.diff(photo.astype(float), axis=1)).max()


def test_a_photo_of_one_pixel():
    crop, inside = cut(np.full((1, 1, 3), 77, np.uint8), (0.5, 0.5), 4.0, 8)
    assert (crop == 77).all()
    assert inside.sum() == 4.0


@pytest.mark.parametrize(
    ("centre", "side"),
    [
        ((100.0, 80.0), 801.0),
        ((100.0, 80.0), 0.0),
        ((100.0, 80.0), -5.0),
        ((float("nan"), 80.0), 50.0),
        ((100.0, float("inf")), 50.0),
        ((100.0, 80.0), float("nan")),
        ((-30.0, 80.0), 50.0),
        ((100.0, 190.0), 50.0),
    ],
)
def test_crops_that_make_no_sense(centre, side):
    with pytest.raises(PhotoError) as caught:
        cut(textured_photo(), centre, side, 32)
    assert caught.value.reason == "bad fit"


def test_a_small_crop_of_a_large_photo_touches_little():
    photo = np.zeros((4096, 4096, 3), np.uint8)
    cut(photo, (2000.0, 2000.0), 200.0, 256)
    begin = time.process_time()
    for _ in range(5):
        cut(photo, (2000.0, 2000.0), 200.0, 256)
    small = time.process_time() - begin
    begin = time.process_time()
    np.asarray(Image.fromarray(photo).resize((256, 256), Image.Resampling.LANCZOS))
    assert small < 2.0 * (time.process_time() - begin)


def test_points_of_a_square_come_back():
    square, points = Square((30.0, -4.5), 12.5), np.random.default_rng(0).normal(0, 40, (5, 2))
    np.testing.assert_allclose(square.points(square.shares(points)), points, atol=1e-12)
    np.testing.assert_allclose(square.shares(np.array([[23.75, -10.75], [36.25, 1.75]])), [[0, 0], [1, 1]])
    assert square.moved(np.array([0.5, 0.0]), 2.0) == Square((36.25, -4.5), 25.0)
