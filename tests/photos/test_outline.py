"""People whom mediapipe does not find."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea, coffee

from portrait360.encoder.files import load_encoder
from portrait360.geometry.body import load_body
from portrait360.photos import outline
from portrait360.photos.matte import SelfieMatte
from support.synthetic_person import LEFT, SIDE, TOP, photo


@pytest.fixture(scope="module")
def parts():
    return load_encoder()[0].eval(), load_body()


class Known:
    """A matte that knows the answer, after failing `failures` times."""

    def __init__(self, mask: np.ndarray, failures: int = 0) -> None:
        self.mask, self.failures, self.calls = mask, failures, 0

    def __call__(self, image: np.ndarray, /) -> np.ndarray:
        self.calls += 1
        if self.calls <= self.failures:
            return np.zeros(image.shape[:2], np.float32)
        mask = self.mask[:, ::-1] if self.calls == 2 else self.mask
        return np.asarray(Image.fromarray(mask).resize((image.shape[1], image.shape[0]), Image.Resampling.BOX))


def assert_found(person) -> None:
    assert person is not None
    x, y, side = person.square.numbers
    assert abs(x - (LEFT + SIDE / 2)) < 0.06 * SIDE
    assert abs(y - (TOP + SIDE / 2)) < 0.06 * SIDE
    assert abs(side / SIDE - 1.0) < 0.2
    left, top, right, bottom = person.head_box()
    assert LEFT < left < x < right < LEFT + SIDE
    assert TOP < top < bottom < y + 0.2 * SIDE
    assert person.points is None


@pytest.mark.parametrize("number", range(4))
def test_people_are_found_from_every_side(parts, number):
    image, mask = photo(number)
    matte = Known(mask)
    assert_found(outline.find_by_outline(image, *parts, matte=matte))
    assert matte.calls == 1


@pytest.mark.slow
def test_crops_are_mostly_much_closer(parts):
    photos = [photo(number) for number in range(24)]
    people = [outline.find_by_outline(image, *parts, matte=Known(mask)) for image, mask in photos]
    assert all(person is not None for person in people)
    sides = np.array([person.square.side for person in people if person is not None]) / SIDE - 1.0
    assert np.median(np.abs(sides)) < 0.04
    assert abs(sides.mean()) < 0.03


def test_where_segmentation_fails_its_mirror_image_is_tried(parts):
    image, mask = photo(0)
    assert_found(outline.find_by_outline(image, *parts, matte=Known(mask, failures=1)))
    assert outline.find_by_outline(image, *parts, matte=Known(mask, failures=2)) is None


def test_an_outline_that_the_encoder_does_not_predict_is_refused(parts):
    """A board beside the person's head."""
    image, mask = photo(0)
    wider = mask.copy()
    wider[TOP + 60 : TOP + SIDE, LEFT - 80 : LEFT + 60] = 1.0
    assert outline.find_by_outline(image, *parts, matte=Known(wider)) is None


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MOST_APART", 0.0), ("MOST_RATIO", 0.0), ("MOST_TURN", 0.0), ("LEAST_OVERLAP", 1.0), ("MOST_OFF", 0.0)],
)
def test_each_test_can_fail(parts, monkeypatch, limit, value):
    image, mask = photo(0)
    monkeypatch.setattr(outline, limit, value)
    assert outline.find_by_outline(image, *parts, matte=Known(mask)) is None


def test_somebody_small_is_not_looked_for(parts):
    image, mask = photo(0)
    far = np.zeros((4 * image.shape[0], 4 * image.shape[1], 3), np.uint8)
    where = np.zeros(far.shape[:2], np.float32)
    far[: image.shape[0], : image.shape[1]], where[: image.shape[0], : image.shape[1]] = image, mask
    assert outline.find_by_outline(far, *parts, matte=Known(where)) is None


@pytest.mark.parametrize("image_of", [chelsea, coffee])
def test_cats_and_cups_are_nobody(parts, image_of):
    image = image_of()
    assert outline.find_by_outline(image, *parts, matte=SelfieMatte()) is None
    height, width = image.shape[:2]
    y, x = (np.mgrid[:height, :width] - [[[height / 2]], [[width / 2]]]) / (0.35 * min(height, width))
    disc = (np.hypot(x, y) < 1.0).astype(np.float32)
    assert outline.find_by_outline(image, *parts, matte=Known(disc)) is None


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (900, 2)])
def test_images_of_any_shape_can_be_tried(parts, shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for opacity in (0.0, 1.0):
        assert outline.find_by_outline(image, *parts, matte=Known(np.full(shape, opacity, np.float32))) is None
