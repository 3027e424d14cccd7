"""Training from shards: every process its own images, each once per epoch, the same at every resume."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.config import PRESETS, TrainingConfig
from portrait360.data.dataset import PortraitDataset
from portrait360.data.shards import PortraitShards, write_shards
from portrait360.runtime.distributed import Ranks
from portrait360.training.checkpoints import checkpoints, load_checkpoint
from portrait360.training.data import TrainingData
from portrait360.training.loop import train
from portrait360.training.streaming import MIXED_SHARDS, StreamingData
from portrait360.types import DatasetError
from support.fake_portraits import write_fake_dataset
from support.presets import TINY

CPU = torch.device("cpu")
MODEL = TINY.model


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_fake_dataset(folder / "d.zip", count=22, coarse=True)
    write_shards(folder / "d.zip", folder / "s", per_shard=3, progress=False)
    return folder / "d.zip", folder / "s"


def recipe(**changes):
    return dataclasses.replace(TrainingConfig(), mirror=False, **changes)


def labels_of(batch):
    return [tuple(row) for row in torch.cat([batch.camera, batch.coarse_pose], dim=1).tolist()]


def shown(data, ranks, steps, share=2, start=0):
    return [data.batch(start + k * share * ranks.size, share, ranks, CPU) for k in range(steps)]


def test_images_come_with_their_labels(packed):
    whole, data = TrainingData(packed[0], MODEL, recipe(), 0), StreamingData(packed[1], MODEL, recipe(), 0)
    rows = torch.cat([whole.cameras, whole.body_poses], dim=1)
    for batch in shown(data, Ranks(), 6):
        for i, label in enumerate(labels_of(batch)):
            (index,) = (rows == torch.tensor(label)).all(dim=1).nonzero()[:, 0].tolist()
            assert torch.equal(batch.image[i], whole.images[index].float() / 127.5 - 1.0)
            assert torch.equal(batch.mask[i], whole.masks[index].float() / 255.0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_deals_every_image_to_one_process_once(packed, size):
    shards = PortraitShards(packed[1])
    per_shard = min(s.count for s in shards.shards)
    own = len(shards.shards) // size
    epochs = []
    for epoch in range(2):
        labels = []
        for rank in range(size):
            data, ranks = StreamingData(packed[1], MODEL, recipe(), 0), Ranks(rank, size)
            for k in range(own * per_shard):
                batch = data.batch((epoch * own * per_shard + k) * size, 1, ranks, CPU)
                labels += labels_of(batch)
        assert len(labels) == len(set(labels)) == size * own * per_shard
        epochs.append(labels)
    assert epochs[0] != epochs[1]


def test_order_depends_on_position_only(packed):
    steps = 3 * len(PortraitDataset(packed[0])) // 4
    options = recipe(yaw_repeats=3)
    whole = shown(StreamingData(packed[1], MODEL, options, 5), Ranks(1, 2), steps)
    for start in (0, 7, steps - 1):
        resumed = StreamingData(packed[1], MODEL, options, 5).batch(start * 4, 2, Ranks(1, 2), CPU)
        assert labels_of(resumed) == labels_of(whole[start])
        assert torch.equal(resumed.image, whole[start].image)
    other = shown(StreamingData(packed[1], MODEL, options, 6), Ranks(1, 2), steps)
    assert [labels_of(b) for b in other] != [labels_of(b) for b in whole]


def test_few_shards_are_in_memory(packed):
    data = StreamingData(packed[1], MODEL, recipe(), 0)
    for batch in shown(data, Ranks(), 30):
        assert batch.image.shape[0] == 2
        assert data.groups_in_memory <= 3
    assert MIXED_SHARDS * data.per_shard < len(data)


def test_more_processes_than_shards_are_refused(packed, tmp_path):
    write_shards(packed[0], tmp_path / "one", per_shard=1000, progress=False)
    with pytest.raises(DatasetError, match="1 shard for 2 processes"):
        StreamingData(tmp_path / "one", MODEL, recipe(), 0).batch(0, 2, Ranks(0, 2), CPU)


def test_images_that_are_too_small_are_refused(packed):
    with pytest.raises(DatasetError, match="needs 64"):
        StreamingData(packed[1], PRESETS["cpu-64"].model, recipe(), 0)


def test_a_run_from_shards_resumes_exactly(packed, tmp_path):
    train(packed[1], "tiny", tmp_path / "whole", kimg=0.016, quiet=True)
    train(packed[1], "tiny", tmp_path / "parts", kimg=0.008, quiet=True)
    train(packed[1], "tiny", tmp_path / "parts", resume=True, kimg=0.016, quiet=True)
    whole = load_checkpoint(checkpoints(tmp_path / "whole")[-1]).tensors
    last = load_checkpoint(checkpoints(tmp_path / "parts")[-1])
    parts = last.tensors
    assert last.images == 16
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_damaged_shard_ends_the_run_with_a_sentence(packed, tmp_path):
    write_shards(packed[0], tmp_path / "s", per_shard=3, progress=False)
    for file in (tmp_path / "s").glob("*.tar"):
        file.write_bytes(b"\x01" * file.stat().st_size)
    with pytest.raises(DatasetError, match="damaged"):
        train(tmp_path / "s", "tiny", tmp_path / "run", kimg=0.016, quiet=True)
