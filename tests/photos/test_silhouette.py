"""How much of the body a mask leaves uncovered."""

from __future__ import annotations

import numpy as np
import pytest

from portrait360.geometry.silhouette import SIDE
from portrait360.photos.matte import uncovered_share


def test_shares_of_a_square():
    silhouette = np.zeros((SIDE, SIDE), bool)
    silhouette[24:104, 24:104] = True  # without its rim 72 x 72
    inside = np.ones((2 * SIDE, 2 * SIDE), np.float32)
    mask = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
    assert uncovered_share(silhouette, mask, inside) == 1.0
    mask[: 2 * 64] = 255
    assert uncovered_share(silhouette, mask, inside) == pytest.approx(0.5)
    inside[2 * 82 :] = 0.0  # what is beyond the photo's edge does not count
    assert uncovered_share(silhouette, mask, inside) == pytest.approx((82 - 64) / (82 - 28))
    mask[:] = 255
    assert uncovered_share(silhouette, mask, inside) == 0.0


def test_the_rim_does_not_count():
    silhouette = np.zeros((SIDE, SIDE), bool)
    silhouette[24:, 24:104] = True
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[28:, 28:100] = 255
    assert uncovered_share(silhouette, mask, np.ones((SIDE, SIDE), np.float32)) == 0.0


def test_no_body_in_the_image_is_covered():
    nobody = np.zeros((SIDE, SIDE), bool)
    assert uncovered_share(nobody, np.zeros((64, 64), np.uint8), np.ones((64, 64), np.float32)) == 0.0
