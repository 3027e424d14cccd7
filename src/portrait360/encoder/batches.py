"""Batches that the portrait encoder is trained on: persons with several images each, augmented towards photos.

Every batch is a function of the seed and the step's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from portrait360.data.dataset import PortraitDataset
from portrait360.data.sampling import mirrored
from portrait360.encoder.augment import CLUTTERED, PhotoBatch, photo_batch
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.progress import show_progress
from portrait360.types import DatasetError

_CPU = torch.device("cpu")
_ALONE = Ranks()
_AHEAD = 2
"""Batches that each worker prepares ahead."""


@dataclass(frozen=True)
class EncoderTraining:
    """The recipe."""

    steps: int = 6000
    people: int = 32
    """Persons per batch, with two images each."""
    rate: float = 2e-3
    warm_up: int = 300
    weight_decay: float = 1e-2
    temperature: float = 0.1
    seed: int = 0
    save_every: int = 250


@dataclass(frozen=True)
class EncoderData:
    """Images in memory; rows i * views to i * views + views - 1 show one person."""

    images: Tensor
    masks: Tensor
    cameras: Float[Tensor, "N 25"]
    body_poses: Float[Tensor, "N 6"]
    views: int

    @classmethod
    def load(cls, path: Path, resolution: int) -> EncoderData:
        """Read a dataset with exact labels and several images of each person.

        Raises:
            DatasetError: it has one image of each person, or no exact labels.
        """
        data = PortraitDataset(path, labels="exact")
        views = data.meta.get("views_per_subject", 1)
        if not isinstance(views, int) or views < 2 or len(data) % views:
            raise DatasetError(f"{path} does not show each person several times.", "Make it with `views=4`.")
        with show_progress("loading", len(data), "images") as bar:
            images, masks = data.load_arrays(resolution, progress=lambda done, _: bar.advance(done - bar.done))
        return cls(images, masks, data.cameras, data.body_poses, views)

    @classmethod
    def load_all(cls, paths: Sequence[Path], resolution: int) -> EncoderData:
        """Read several datasets of other persons each, as `load` does.

        Raises:
            DatasetError: as for `load`; or there is none, or they show persons differently often.
        """
        if not paths:
            raise DatasetError("no dataset is given.", "Name one that was made with `views`.")
        parts = [cls.load(path, resolution) for path in paths]
        for part, path in zip(parts, paths, strict=True):
            if part.views != parts[0].views:
                raise DatasetError(
                    f"{path} shows each person {part.views} times, {paths[0]} {parts[0].views} times.",
                    "Make all with the same `views`.",
                )
        if len(parts) == 1:  # joining copies all images
            return parts[0]
        images, masks = torch.cat([p.images for p in parts]), torch.cat([p.masks for p in parts])
        cameras, poses = torch.cat([p.cameras for p in parts]), torch.cat([p.body_poses for p in parts])
        return cls(images, masks, cameras, poses, parts[0].views)


def batch_rows(step: int, people: int, data: EncoderData, seed: int) -> Int[Tensor, " B"]:
    """Rows of a step: two images each of so many persons, everyone once per epoch."""
    everyone = len(data.images) // data.views
    steps_per_epoch = max(1, everyone // people)
    epoch, place = divmod(step, steps_per_epoch)
    order = torch.randperm(everyone, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    chosen = order[place * people : (place + 1) * people]
    draws = torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)
    first = torch.randint(data.views, (len(chosen),), generator=draws)
    second = (first + torch.randint(1, data.views, (len(chosen),), generator=draws)) % data.views
    return torch.stack([chosen * data.views + first, chosen * data.views + second], dim=1).flatten()


def batch_of(
    step: int, data: EncoderData, recipe: EncoderTraining, ranks: Ranks = _ALONE
) -> tuple[PhotoBatch, Float[Tensor, "B 6"]]:
    """Images like photos for a step, and their body poses; half of the persons are mirrored. Several processes get
    persons of their own."""
    rows = batch_rows(step, recipe.people, data, recipe.seed).unflatten(0, (-1, 2))
    rows = rows[ranks.rank :: ranks.size].flatten()
    samples = (data.images[rows], data.masks[rows], data.cameras[rows], data.body_poses[rows])
    draws = torch.Generator().manual_seed((recipe.seed + 2) * 1_000_003 + step + ranks.rank * 7_368_787)
    flags = (torch.rand(len(rows) // 2, generator=draws) < 0.5).repeat_interleave(2)
    for sample, other in zip(samples, mirrored(*(sample[flags] for sample in samples)), strict=True):
        sample[flags] = other
    images, masks, cameras, poses = samples
    return photo_batch(images, masks, cameras, draws, CLUTTERED), poses


class _Batches(Dataset[tuple[PhotoBatch, Tensor]]):
    """The batches of `count` steps from `first` on."""

    def __init__(self, first: int, count: int, data: EncoderData, recipe: EncoderTraining, ranks: Ranks) -> None:
        self.first, self.count, self.data, self.recipe, self.ranks = first, count, data, recipe, ranks

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[PhotoBatch, Tensor]:
        return batch_of(self.first + index, self.data, self.recipe, self.ranks)


def batches(
    first: int,
    count: int,
    data: EncoderData,
    recipe: EncoderTraining,
    *,
    workers: int = 0,
    device: torch.device = _CPU,
    ranks: Ranks = _ALONE,
) -> Iterator[tuple[PhotoBatch, Float[Tensor, "B 6"]]]:
    """`batch_of` for `count` steps from `first` on, on a device.

    Args:
        first, count: which steps.
        data, recipe: as for `batch_of`.
        workers: forked processes, of one thread each, that prepare batches ahead; 0: this process prepares each when
            it is asked for. A batch of 2 * 32 images of 128 x 128 takes 17 MB of shared memory (/dev/shm), where two
            for each worker may wait.
        device: where the batches are to be.
        ranks: whose share.
    """
    # Here, or in workers ahead of time
    wanted = _Batches(first, max(0, count), data, recipe, ranks)
    if not workers:
        source = (wanted[index] for index in range(len(wanted)))
    else:
        source = DataLoader(
            wanted,
            batch_size=None,
            num_workers=min(workers, max(1, len(wanted))),
            prefetch_factor=_AHEAD,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork",  # the images are shared
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # so that it draws nothing from torch's own
        )

    # To the device
    for photos, poses in source:
        yield photos.to(device), poses.to(device, non_blocking=True)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
