"""Masks of crops."""

from __future__ import annotations

import numpy as np
from skimage.data import astronaut

from portrait360.photos.crop import LARGEST_SIDE, Square
from portrait360.photos.matte import (
    FAR,
    GREY,
    Outline,
    SelfieMatte,
    beyond_share,
    guided_filter,
    mirrored_opacity,
    on_grey,
    person_only,
    sharpened,
    wider_opacity,
    without_others,
)


def test_the_guided_filter_equals_its_brute_force():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    values = rng.random((12, 12)).astype(np.float32)
    radius = 2
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114] / 255.0

    def pad(x: np.ndarray) -> np.ndarray:
        return np.pad(x, radius, mode="edge")

    g, v = pad(grey), pad(values.astype(np.float64))
    slope, base = np.zeros((12, 12)), np.zeros((12, 12))
    for y in range(12):
        for x in range(12):
            a, b = g[y : y + 5, x : x + 5], v[y : y + 5, x : x + 5]
            slope[y, x] = ((a * b).mean() - a.mean() * b.mean()) / (a.var() + 1e-3)
            base[y, x] = b.mean() - slope[y, x] * a.mean()
    s, o = pad(slope), pad(base)
    expected = [
        [s[y : y + 5, x : x + 5].mean() * grey[y, x] + o[y : y + 5, x : x + 5].mean() for x in range(12)]
        for y in range(12)
    ]
    np.testing.assert_allclose(guided_filter(image, values, radius), expected, atol=1e-4)


def test_edges_move_to_those_of_the_image():
    """A coarse, shifted outline meets the edge between dark and bright."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 220
    coarse = np.clip((np.arange(64) - 26) / 12.0, 0, 1)[None].repeat(64, axis=0).astype(np.float32)
    refined = sharpened(guided_filter(image, coarse, 6))
    row = refined[32]
    assert row[34] - row[30] > 1.5 * (coarse[32, 34] - coarse[32, 30])


def test_only_the_person_in_the_middle_stays():
    opacity = np.zeros((40, 40), np.float32)
    opacity[10:40, 12:28] = 1.0
    opacity[5:20, 33:40] = 0.9
    opacity[28:32, 0:4] = 0.4  # too faint to be a piece of its own
    own = person_only(opacity, (0.5, 0.5))
    assert own[20, 20] == 1.0
    assert own[10, 36] == 0.0
    assert own[30, 2] == 0.0
    assert (person_only(own, (0.5, 0.5)) == own).all()


def test_an_empty_mask_stays_empty():
    assert person_only(np.zeros((8, 8), np.float32), (0.5, 0.5)).max() == 0.0


def test_a_portrait_is_cut_out():
    mask = SelfieMatte()(astronaut()[:350, 60:410])
    assert mask[125, 160] > 0.95  # the face
    assert mask[330, 150] > 0.95  # the suit
    assert mask[10, 10] < 0.05
    assert mask[20, 340] < 0.05
    assert ((mask > 0.05) & (mask < 0.95)).mean() < 0.1


def red(image: np.ndarray) -> np.ndarray:
    """A matting network by which what is red is a person."""
    return image[..., 0].astype(np.float32) / 255.0


def test_segmented_wider_the_pixels_are_those_of_the_crop():
    sides = []

    def matting(image: np.ndarray) -> np.ndarray:
        sides.append(len(image))
        return red(image)

    photo = np.ascontiguousarray(astronaut())
    for centre, side in (((220.0, 120.0), 150.0), ((20.0, 500.0), 300.5)):
        crop = Square(centre, side).of(photo, 64)
        difference = np.abs(wider_opacity(crop, matting) - red(crop.image))
        assert difference[crop.inside == 1.0].mean() < 0.005
    assert sides == [108, 108]


def test_an_outline_is_segmented_once_for_all_crops_nearby():
    calls = []

    def matting(image: np.ndarray) -> np.ndarray:
        calls.append(len(image))
        wide = ((np.mgrid[: len(image), : len(image)] + 0.5) / len(image) - 0.5) * 1.7
        return (np.abs(wide[1] - 0.1) < 0.25).astype(np.float32) * (wide[0] > -0.3)

    photo = np.zeros((300, 300, 3), np.uint8)
    outline = Outline(Square((150.0, 150.0), 100.0).of(photo, 64), matting)
    same = outline.opacity(Square((150.0, 150.0), 100.0).of(photo, 64)) > 0.5
    # 15 pixels to the left and 20 down; twice as large, everything is half as far from the middle
    moved = outline.opacity(Square((135.0, 170.0), 100.0).of(photo, 64)) > 0.5
    larger = outline.opacity(Square((150.0, 150.0), 160.0).of(photo, 64)) > 0.5
    assert len(calls) == 1
    for shown, (top, left, right) in (
        (same, (0.2, 0.35, 0.85)), (moved, (0.0, 0.5, 1.0)), (larger, (0.3125, 0.40625, 0.71875)),
    ):  # fmt: skip
        rows, columns = np.nonzero(shown)
        found = np.array([rows.min(), columns.min(), columns.max() + 1]) / 64
        np.testing.assert_allclose(found, (top, left, right), atol=0.025)


def test_crops_cannot_be_wider_than_the_largest_one():
    photo = np.zeros((10, 20, 3), np.uint8)
    side = 20.0 * LARGEST_SIDE
    crop = Square((10.0, 5.0), side).of(photo, 32)
    assert wider_opacity(crop, red).shape == (32, 32)
    assert Outline(crop, red).square.side == side


def test_a_mirror_gives_each_pixel_its_own_opacity():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    np.testing.assert_array_equal(mirrored_opacity(image, red), red(image))


def test_a_person_in_front_of_grey():
    image = np.full((2, 2, 3), 28, np.uint8)
    cut = on_grey(image, np.array([[0.0, 1.0], [0.5, 2.0]]))
    assert cut[..., 1].tolist() == [[GREY, 28], [(GREY + 28) // 2, 28]]


# ---- other people in the mask ----


def discs(*places: tuple[float, float, float], side: int = 256) -> np.ndarray:
    """True within circles: centre (right, down) and radius in units of the side."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    return np.any([(x - cx) ** 2 + (y - cy) ** 2 < r**2 for cx, cy, r in places], axis=0)


BODY = (0.4, 0.5, 0.25)
NEIGHBOUR = (0.85, 0.5, 0.24)


def test_a_neighbour_is_cut_out_where_the_mask_is_narrowest():
    both, silhouette = discs(BODY, NEIGHBOUR), discs(BODY, side=128)
    mask = np.where(both, 255, 0).astype(np.uint8)
    assert beyond_share(mask, silhouette) > 0.2
    own = without_others(mask, silhouette) >= 128
    assert (own & discs(BODY)).sum() > 0.97 * discs(BODY).sum()
    assert (own & ~discs(BODY)).sum() < 0.01 * both.sum()
    assert beyond_share((own * 255).astype(np.uint8), silhouette) == 0.0


def test_soft_edges_of_a_neighbour_go_too():
    mask = np.where(discs(BODY, NEIGHBOUR), 255, 0).astype(np.uint8)
    mask = np.maximum(mask, np.where(discs((0.85, 0.5, 0.245)), 90, 0).astype(np.uint8))
    assert without_others(mask, discs(BODY, side=128))[:, 200:].max() == 0


def test_hair_and_clothes_stay():
    wide = discs((0.4, 0.5, 0.25 + FAR - 0.02))
    mask = np.where(wide, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(without_others(mask, discs(BODY, side=128)), mask)
    assert beyond_share(mask, discs(BODY, side=128)) == 0.0


def test_a_mask_that_misses_the_body_is_left_to_other_gates():
    mask = np.where(discs(NEIGHBOUR), 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(without_others(mask, discs((0.2, 0.5, 0.2), side=128)), mask)
