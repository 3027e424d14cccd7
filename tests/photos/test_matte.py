"""Masks of crops."""

from __future__ import annotations

import numpy as np
from skimage.data import astronaut

from portrait360.photos.matte import SelfieMatte, guided_filter, person_only, sharpened


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


def test_edges_move_to_those_of_the_picture():
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
