from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.media.images import to_bytes
from portrait360.media.sheets import grid, save_png


def test_to_bytes_rounds_and_clips():
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, -0.998]).repeat(3, 1)[None, :, None]
    assert to_bytes(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 0]
    assert to_bytes(images).shape == (1, 1, 6, 3)


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    sheet = grid(images, 3)
    assert sheet.shape == (8, 18, 3)
    assert [int(sheet[4 * (i // 3), 6 * (i % 3), 0]) for i in range(5)] == [0, 1, 2, 3, 4]
    assert (sheet[4:, 12:] == 255).all()


def test_gaps_are_white_and_between_images_only():
    sheet = grid(np.zeros((4, 4, 4, 3), np.uint8), 2, gap=2)
    assert sheet.shape == (10, 10, 3)
    assert (sheet[4:6] == 255).all()
    assert (sheet[0, [0, 9]] == 0).all()


def test_labels_get_their_own_strips():
    images = np.zeros((4, 32, 32, 3), np.uint8)
    plain = grid(images, 2)
    sheet = grid(images, 2, row_labels=("first", "second"), column_labels=("a", "b"))
    height, width = sheet.shape[0] - plain.shape[0], sheet.shape[1] - plain.shape[1]
    assert height > 0
    assert width > 0
    assert (sheet[height:, width:] == plain).all()
    assert sheet[:height].min() < 128  # something is written there
    assert sheet[:, :width].min() < 128


@pytest.mark.parametrize(("count", "columns"), [(0, 1), (1, 0)])
def test_a_sheet_needs_images_and_columns(count, columns):
    with pytest.raises(ValueError, match="a sheet needs"):
        grid(np.zeros((count, 2, 2, 3), np.uint8), columns)


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    save_png(tmp_path / "b.png", image)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == image).all()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
