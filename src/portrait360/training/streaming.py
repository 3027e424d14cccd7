"""Training images from shards (`portrait360.data.shards`): each process reads its own, a few at a time.

The order is a pure function of position, as in memory: resuming needs no state. In epoch e the shards are shuffled and
dealt out to the processes; each takes its shards in groups, and shows a group's images in a shuffled order while the
next group is read. With another number of processes the order is another one.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from portrait360.config import ModelConfig, TrainingConfig
from portrait360.data.shards import PortraitShards
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.words import counted
from portrait360.training.data import Framing, fingerprint, random_labels
from portrait360.training.passes import Batch, Labels
from portrait360.types import DatasetError

MIXED_SHARDS = 2
"""Shards whose images are shuffled together; twice as many are in memory while the next group is read."""


class _Group(NamedTuple):
    """Images in memory, in the order in which they are shown."""

    images: Tensor
    masks: Tensor
    cameras: Tensor
    body_poses: Tensor
    mirror: Tensor
    zoom: Tensor


class StreamingData:
    """The interface of `TrainingData`, with the images on disk.

    An epoch shows of every shard as many images as the smallest has, others each time; shards that cannot be dealt
    out evenly wait for another epoch.
    """

    def __init__(self, path: Path, model: ModelConfig, training: TrainingConfig, seed: int) -> None:
        """Open the shards.

        Raises:
            DatasetError: the shards cannot be used, or their images are smaller than the model's.
        """
        self.shards = PortraitShards(path)
        self.framing = Framing(path, self.shards.resolution, model, training)
        self.seed, self.mirror = seed, training.mirror
        self.cameras, self.body_poses = self.shards.cameras, self.shards.body_poses
        self.label_kind = self.shards.label_kind
        self.fingerprint = fingerprint(self.cameras, self.body_poses)
        self.per_shard = min(shard.count for shard in self.shards.shards)
        self._readers = ThreadPoolExecutor(1, "shards")
        self._groups: dict[tuple[Ranks, int], Future[_Group]] = {}

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def groups_in_memory(self) -> int:
        """Groups of shards that are in memory, or being read."""
        return len(self._groups)

    def batch(self, images: int, size: int, ranks: Ranks, device: torch.device) -> Batch:
        """What this process shows after `images` images of all processes; `size`: its share of the batch.

        Raises:
            DatasetError: a shard is damaged, or there are fewer shards than processes.
        """
        rows: dict[int, list[int]] = {}
        for k in range(size):
            number, row = self._place(images // ranks.size + k, ranks)
            rows.setdefault(number, []).append(row)
        pieces = [[v[some] for v in self._group_later(n, ranks).result()] for n, some in rows.items()]
        self._forget(min(rows), ranks)
        self._group_later(max(rows) + 1, ranks)
        image, mask, camera, pose, mirror, zoom = (torch.cat(column) for column in zip(*pieces, strict=True))
        return self.framing.batch(image, mask, camera, pose, mirror, zoom, device)

    def labels(self, size: int, device: torch.device) -> Labels:
        """See `random_labels`."""
        return random_labels(self.cameras, self.body_poses, size, self.mirror, device)

    # ---- where a position lies ----

    def _own(self, ranks: Ranks) -> int:
        """Shards that a process shows in an epoch."""
        own = len(self.shards.shards) // ranks.size
        if own < 1:
            raise DatasetError(
                f"{self.shards.path} has {counted(len(self.shards.shards), 'shard')} for {ranks.size} processes.",
                "Make more, smaller ones (`portrait360 dataset shard --per-shard N`).",
            )
        return own

    def _groups_per_epoch(self, ranks: Ranks) -> int:
        return -(-self._own(ranks) // MIXED_SHARDS)

    def _place(self, position: int, ranks: Ranks) -> tuple[int, int]:
        """Number of the group, counted over all epochs, and the row in it."""
        epoch, rest = divmod(position, self._own(ranks) * self.per_shard)
        group, row = divmod(rest, MIXED_SHARDS * self.per_shard)
        return epoch * self._groups_per_epoch(ranks) + group, row

    def _shards_of(self, number: int, ranks: Ranks) -> tuple[int, list[int]]:
        """Epoch and shards of a group."""
        epoch, group = divmod(number, self._groups_per_epoch(ranks))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards.shards))
        mine = order[ranks.rank :: ranks.size][: self._own(ranks)]
        return epoch, mine[group * MIXED_SHARDS : (group + 1) * MIXED_SHARDS].tolist()

    # ---- groups ----

    def _group_later(self, number: int, ranks: Ranks) -> Future[_Group]:
        """The group, being read from now on."""
        key = (ranks, number)
        if key not in self._groups:
            self._groups[key] = self._readers.submit(self._read, number, ranks)
        return self._groups[key]

    def _forget(self, before: int, ranks: Ranks) -> None:
        """Drop all groups but those from `before` on."""
        wanted = {(ranks, before + k) for k in range(3)}
        for key in [k for k in self._groups if k not in wanted]:
            self._groups.pop(key).cancel()

    def _read(self, number: int, ranks: Ranks) -> _Group:
        epoch, chosen = self._shards_of(number, ranks)
        loaded = [self.framing.prepare(*self.shards.load(shard, self.framing.loaded)) for shard in chosen]
        rows = [self.shards.shards[shard] for shard in chosen]
        index = torch.cat([torch.arange(shard.start, shard.start + shard.count) for shard in rows])
        cameras, poses = self.cameras[index], self.body_poses[index]
        key = np.random.SeedSequence([self.seed, epoch, ranks.rank, number]).generate_state(1)
        sampler = self.framing.sampler(cameras, int(key[0]))
        order, mirror, zoom = (torch.from_numpy(v) for v in sampler.take(0, len(chosen) * self.per_shard))
        images, masks = (torch.cat(parts)[order] for parts in zip(*loaded, strict=True))
        return _Group(images, masks, cameras[order], poses[order], mirror, zoom)
