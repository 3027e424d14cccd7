"""Arrays and images in a page: what goes in comes out, as exactly as their bits allow."""

from __future__ import annotations

import numpy as np
import pytest

from portrait360.viewer.blobs import array_blob, decode_tiles, encode_tiles, from_tiles, read_array, rows_blob, tiles


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32])
def test_arrays_come_back_as_they_were(kind):
    values = (np.random.default_rng(0).standard_normal((3, 4, 5)) * 100).astype(kind)
    back = read_array(array_blob(values))
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="float64"):
        array_blob(np.zeros(3))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("shape", [(5, 7), (3, 1), (4, 2, 3, 3)])
def test_rows_come_back_within_half_a_step(bits, shape):
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    values *= np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))  # one row of zeros, others of every size
    back = read_array(rows_blob(values, bits))
    assert back.shape == values.shape
    step = np.abs(values).reshape(shape[0], -1).max(axis=1) / (2 ** (bits - 1) - 1)
    error = np.abs(back - values).reshape(shape[0], -1).max(axis=1)
    assert (error <= 0.5001 * step + 1e-12).all()


def test_steps_can_be_as_coarse_as_wanted():
    values = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    fine, coarse = (rows_blob(values, 8, step) for step in (0.0, 0.25))
    assert np.allclose(read_array(coarse) % 0.25, 0.0)
    assert np.abs(read_array(coarse) - values).max() <= 0.1251
    assert len(coarse["data"]) < len(fine["data"])


def test_tiles_and_back():
    channels = np.random.default_rng(2).integers(0, 256, (10, 4, 4), np.uint8)
    image = tiles(channels, 3)
    assert image.shape == (16, 12)
    assert np.array_equal(image[:4, 4:8], channels[1])
    assert np.array_equal(from_tiles(image, 3, 10), channels)


def test_the_best_quality_within_the_limit_is_taken():
    y, x = np.mgrid[:128, :128]
    image = (127.5 + 60 * np.sin(x / 5) + 60 * np.cos(y / 7)).astype(np.uint8)
    image += np.random.default_rng(3).integers(0, 8, image.shape, np.uint8)
    errors, sizes = [], []
    for limit in (1 << 20, 3000, 1000):
        data = encode_tiles(image, limit)
        sizes.append(len(data))
        errors.append(np.abs(decode_tiles(data).astype(float) - image).mean())
    assert sizes[1] <= 3000
    assert sizes[0] > sizes[1] > sizes[2]
    assert errors[0] < errors[1] < errors[2]
