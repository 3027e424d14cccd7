"""Synthetic portraits as photos, with what is true of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from portrait360.photos.crop import Square
from portrait360.photos.folder import find_photos
from portrait360.types import DatasetError, InputError
from tools import synthetic_photos
from tools.synthetic_photos import read_truth, render_photo


def test_the_true_crop_of_a_photo_is_the_portrait(source):
    """Drawn wide and cropped, or drawn at once: the same person in the same place (the exposure may differ)."""
    photo = render_photo(source, 5, 2)
    side = 128
    rgb = np.repeat(photo.mask[..., None], 3, axis=2)
    mask = Square(photo.centre, photo.side).of(rgb, side).image[..., 0]
    drawn = source.draw(5, 2, side)
    np.testing.assert_array_equal(photo.camera, drawn.camera)
    np.testing.assert_array_equal(photo.body_pose, drawn.body_pose)
    a, b = mask > 127, drawn.mask > 127
    assert (a & b).sum() / (a | b).sum() > 0.97


def test_photos_differ_in_size_and_place(source):
    photos = [render_photo(source, 5, index) for index in range(3)]
    assert len({photo.side for photo in photos}) == 3
    for photo in photos:
        height, width = photo.image.shape[:2]
        assert 0 < photo.centre[0] < width
        assert 0 < photo.centre[1] < height
        assert photo.side < min(width, height) * 1.01


def test_a_folder_is_drawn_and_read_and_goes_on_after_a_stop(tmp_path, source, monkeypatch):
    monkeypatch.setattr(synthetic_photos, "PortraitSource", lambda: source)
    synthetic_photos.main(tmp_path / "p", count=2, seed=5)
    first = (tmp_path / "p" / "000001.png").read_bytes()
    truth = read_truth(tmp_path / "p")
    assert sorted(truth) == ["000000.png", "000001.png"]
    assert [file.name for file in find_photos(tmp_path / "p")] == ["000000.png", "000001.png"]
    expected = render_photo(source, 5, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p" / "000001.png")), expected.image)
    assert truth["000001.png"] == json.loads(json.dumps(expected.truth()))
    synthetic_photos.main(tmp_path / "p", count=3, seed=5)
    assert (tmp_path / "p" / "000001.png").read_bytes() == first
    assert len(read_truth(tmp_path / "p")) == 3


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match="--count"):
        synthetic_photos.main(tmp_path, count=0)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_truth(tmp_path)
