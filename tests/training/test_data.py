"""Order of images, mirroring on the way, and plain backgrounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from portrait360.config import PRESETS, TrainingConfig
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera
from portrait360.runtime.distributed import Ranks
from portrait360.training.data import Sampler, TrainingData, composite, shows_face, yaw_repeats
from portrait360.types import DatasetError
from support.fake_portraits import write_fake_dataset
from support.presets import TINY


def recipe(**changes) -> TrainingConfig:
    return dataclasses.replace(TrainingConfig(), **changes)


def test_every_epoch_shows_every_image_once():
    sampler = Sampler(10, 3, mirror=True)
    first, *_ = sampler.take(0, 10)
    second, *_ = sampler.take(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_order_depends_on_position_only():
    whole = Sampler(7, 3, mirror=True, zoom_probability=0.6, zooms=2).take(0, 30)
    parts = [Sampler(7, 3, mirror=True, zoom_probability=0.6, zooms=2).take(s, 5) for s in range(0, 30, 5)]
    for k in range(3):
        assert np.array_equal(whole[k], np.concatenate([p[k] for p in parts]))
    assert 0 < whole[1].sum() < 30
    assert set(whole[2]) == {0, 1, 2}
    assert not np.array_equal(whole[1], whole[2] > 0)
    _, mirror, zoom = Sampler(7, 3, mirror=False).take(0, 30)
    assert mirror.sum() == zoom.sum() == 0


def test_portraits_stand_on_plain_grey():
    images = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    masks[..., :2] = 255
    small, m = composite(images, masks, 0.0, 2)
    assert small[0, 0].tolist() == [[200, 128], [200, 128]]
    assert m[0, 0].tolist() == [[255, 0], [255, 0]]
    whole, m = composite(images, masks, 0.0, 4)
    assert whole.data_ptr() == images.data_ptr()
    assert whole[0, 2].tolist() == [[200, 200, 128, 128]] * 4
    assert torch.equal(m, masks)


def test_batches_carry_the_noisy_labels(tmp_path):
    path = tmp_path / "d.zip"
    write_fake_dataset(path, coarse=True)
    data = TrainingData(path, TINY.model, recipe(mirror=False), seed=0)
    batch = data.batch(0, len(data), Ranks(), torch.device("cpu"))
    order, *_ = data.sampler.take(0, len(data))
    assert torch.equal(batch.coarse_pose, data.body_poses[torch.from_numpy(order)])
    assert batch.image.abs().max() <= 1
    assert data.label_kind == "coarse"


def test_small_images_are_refused(tmp_path):
    path = tmp_path / "d.zip"
    write_fake_dataset(path, coarse=True)
    with pytest.raises(DatasetError, match="needs 64"):
        TrainingData(path, PRESETS["cpu-64"].model, recipe(), seed=0)


def test_only_larger_images_are_zoomed(tmp_path):
    model = TINY.model
    small, large = tmp_path / "small.zip", tmp_path / "large.zip"
    write_fake_dataset(small, resolution=model.resolution, coarse=True)
    write_fake_dataset(large, resolution=2 * model.resolution, coarse=True)
    device = torch.device("cpu")
    whole = TrainingData(small, model, recipe(zoom_probability=1.0), seed=0).batch(0, 6, Ranks(), device)
    zoomed = TrainingData(large, model, recipe(zoom_probability=1.0, zoom_windows=(0.5,)), seed=0).batch(
        0, 6, Ranks(), device
    )
    assert whole.image.shape == zoomed.image.shape == (6, 3, model.resolution, model.resolution)
    torch.testing.assert_close(zoomed.camera[:, 16], 2 * whole.camera[:, 16])
    assert torch.equal(zoomed.camera[:, :16], whole.camera[:, :16])


def test_windows_that_would_be_blurred_are_not_shown(tmp_path):
    model = TINY.model
    path = tmp_path / "large.zip"
    write_fake_dataset(path, resolution=2 * model.resolution, coarse=True)
    windows = recipe(zoom_probability=1.0, zoom_windows=(0.6, 0.41, 0.39))
    data = TrainingData(path, model, windows, seed=0)
    assert data.framing.windows == (0.6, 0.41)
    assert set(data.sampler.take(0, 64)[2].tolist()) <= {1, 2}


def test_faces_are_shown_closer_than_other_images():
    yaws = torch.deg2rad(torch.tensor([0.0, 75.0, -75.0, 90.0, 180.0, -90.0]))
    faces = shows_face(camera_label(yaws))
    assert faces.tolist() == [True, True, True, False, False, False]
    count = 4000
    closest = np.where(np.arange(count) < count // 2, 0.6, 0.0)
    indices, _, levels = Sampler(count, 1, True, zoom_probability=0.5, zooms=3, closest=closest).take(0, count)
    front = indices < count // 2
    shares = [[(levels[rows] == level).mean() for level in range(4)] for rows in (front, ~front)]
    np.testing.assert_allclose(shares, [[0.2, 0.1, 0.1, 0.6], [0.5, 0.25, 0.25, 0.0]], atol=0.03)
    equally = Sampler(count, 1, True, zoom_probability=0.6, zooms=2).take(0, count)[2]
    np.testing.assert_allclose(np.bincount(equally) / count, [0.4, 0.3, 0.3], atol=0.03)
    face_alone = Sampler(count, 1, True, zoom_probability=0.6, zooms=1, closest=closest).take(0, count)[2]
    assert set(face_alone) == {0, 1}


def test_rare_sides_are_shown_as_often_as_common_ones():
    yaws = torch.cat([torch.linspace(-0.2, 0.2, 60), torch.tensor([3.1, -3.1]), torch.full((20,), 1.6)])
    cameras = camera_label(yaws)
    repeats = yaw_repeats(cameras, 50)
    assert repeats.tolist() == [1] * 60 + [30] * 2 + [3] * 20
    assert yaw_repeats(cameras, 4).max() == 4
    assert (yaw_repeats(cameras, 1) == 1).all()
    sampler = Sampler(len(yaws), 0, True, repeats=repeats)
    first, *_ = sampler.take(0, sampler.count)
    assert np.array_equal(np.bincount(first), repeats)
    assert not np.array_equal(first, np.sort(first))


def test_datasets_of_mostly_faces_are_rebalanced(tmp_path):
    path = tmp_path / "d.zip"
    write_fake_dataset(path, coarse=True)
    model = TINY.model
    plain = TrainingData(path, model, recipe(), seed=0)
    data = TrainingData(path, model, recipe(yaw_repeats=9), seed=0)
    assert plain.sampler.count == len(plain) < data.sampler.count
    assert np.array_equal(data.sampler.pool, np.repeat(np.arange(len(data)), yaw_repeats(data.cameras, 9)))


def test_labels_are_drawn_from_images_and_their_mirror_images(tmp_path):
    path = tmp_path / "d.zip"
    write_fake_dataset(path, coarse=True)
    for mirror in (True, False):
        data = TrainingData(path, TINY.model, recipe(mirror=mirror), seed=0)
        torch.manual_seed(0)
        labels = data.labels(200, torch.device("cpu"))
        torch.manual_seed(0)
        assert torch.equal(labels.camera, data.labels(200, torch.device("cpu")).camera)
        known = torch.cat([data.cameras, data.body_poses], dim=1)
        flipped = torch.cat([mirror_camera(data.cameras), mirror_body_pose(data.body_poses)], dim=1)
        drawn = torch.cat([labels.camera, labels.coarse_pose], dim=1)
        as_is, mirrored = ((drawn[:, None] == rows[None]).all(dim=2).any(dim=1) for rows in (known, flipped))
        assert (as_is | mirrored).all()
        assert mirrored.any() == mirror
        assert {tuple(row) for row in drawn[as_is].tolist()} == {tuple(row) for row in known.tolist()}
