"""WebDataset shards: tar files of a dataset's samples, for what does not fit into memory or onto one machine.

::

    shard-000000.tar    per sample 00000012.webp, 00000012.mask.png and 00000012.json {"name", "camera", "body_pose"}
    labels.npy          (N, 31) float32: camera label and body pose of every sample, in the order of the shards
    shards.json         format, resolution, meta.json of the dataset, and every shard's file, count and bytes

Other programs read the tar files alone (https://github.com/webdataset/webdataset). Samples are shuffled once, so that
every shard is a fair part of the whole; shards differ by at most one sample.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from portrait360.data.dataset import PortraitDataset, decode_image, stack_images
from portrait360.data.store import MAX_FILE_BYTES
from portrait360.runtime.files import atomic_folder, write_json
from portrait360.runtime.progress import show_progress
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, DatasetError, InputError

INDEX_FILE, LABELS_FILE = "shards.json", "labels.npy"
FORMAT, FORMAT_VERSION = "portrait360-shards", 1
_HINT = "Make the shards anew (`portrait360 dataset shard`)."


def write_shards(path: Path, out: Path, per_shard: int = 1000, *, progress: bool = True) -> tuple[int, int]:
    """Copy a dataset's samples, bytes unchanged, into shards of at most `per_shard`.

    Returns:
        The numbers of images and of shards.

    Raises:
        DatasetError: the dataset cannot be used, or has no masks.
        InputError: `per_shard` is below 1, `out` holds shards already, or the disk is full.
    """
    # Check the place and open the dataset.
    out = Path(out)
    if per_shard < 1:
        raise InputError(f"`per_shard` must be at least 1, not {per_shard}.", "1000 is a good number.")
    if (out / INDEX_FILE).exists():
        raise InputError(f"{out} already holds shards.", "Choose another folder.")
    dataset = PortraitDataset(path)
    if not dataset.has_masks:
        dataset.encoded(0)  # raises DatasetError

    # Shuffle once, and cut into shards of nearly equal size.
    order = np.random.default_rng(0).permutation(len(dataset))
    parts = np.array_split(order, -(-len(dataset) // per_shard))
    labels = torch.cat([dataset.cameras, dataset.body_poses], dim=1).numpy()[order]
    shards = []

    # Write the shards, then labels and index.
    with atomic_folder(out) as folder, show_progress("packing", len(dataset), "images", visible=progress) as bar:
        for k, part in enumerate(parts):
            file = folder / f"shard-{k:06d}.tar"
            with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
                for index in part:
                    _add_sample(tar, dataset, int(index))
                    bar.advance(1)
            shards.append({"file": file.name, "count": len(part), "bytes": file.stat().st_size})
        np.save(folder / LABELS_FILE, labels.astype(np.float32), allow_pickle=False)
        index = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "resolution": dataset.resolution,
            "meta": dataset.meta,
            "shards": shards,
        }
        write_json(folder / INDEX_FILE, index)
    return len(dataset), len(shards)


def _add_sample(tar: tarfile.TarFile, dataset: PortraitDataset, index: int) -> None:
    (image_suffix, image), (mask_suffix, mask) = dataset.encoded(index)
    label = {
        "name": dataset.name(index),
        "camera": dataset.cameras[index].tolist(),
        "body_pose": dataset.body_poses[index].tolist(),
    }
    key = f"{index:08d}"
    for name, content in (
        (f"{key}{image_suffix}", image),
        (f"{key}.mask{mask_suffix}", mask),
        (f"{key}.json", json.dumps(label).encode()),
    ):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


@dataclass(frozen=True)
class _Shard:
    path: Path
    count: int
    start: int


class PortraitShards:
    """A folder of shards: labels at once, images shard by shard.

    Attributes:
        cameras: (N, 25) float32 camera labels, in the order of the shards.
        body_poses: (N, 6) float32 body poses in radians.
        meta, label_kind, resolution: as of the dataset that was packed.
        shards: file, number of samples and index of the first one, each.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder of shards and check everything except their content.

        Raises:
            DatasetError: no index, an index or labels that are broken, or a shard that is missing or cut off.
        """
        # Read index and labels.
        self.path = Path(path)
        try:
            index = json.loads((self.path / INDEX_FILE).read_text())
            if index["format"] != FORMAT or index["version"] != FORMAT_VERSION:
                raise ValueError("another format")
            self.resolution, self.meta = int(index["resolution"]), dict(index["meta"])
            entries = [(Path(str(e["file"])).name, int(e["count"]), int(e["bytes"])) for e in index["shards"]]
            labels = np.load(self.path / LABELS_FILE, mmap_mode="r", allow_pickle=False)
            if labels.dtype != np.float32 or labels.shape[1:] != (CAMERA_LABEL_SIZE + BODY_POSE_SIZE,):
                raise ValueError("labels of another shape")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DatasetError(f"{self.path} does not hold readable shards: {error}.", _HINT) from error
        if not entries or sum(count for _, count, _ in entries) != len(labels):
            raise DatasetError(f"{self.path} has {len(labels)} labels for another number of samples.", _HINT)

        # Labels as tensors.
        self.label_kind = str(self.meta.get("label_kind", "estimated"))
        self.cameras: Float[Tensor, "N 25"] = torch.from_numpy(np.array(labels[:, :CAMERA_LABEL_SIZE]))
        self.body_poses: Float[Tensor, "N 6"] = torch.from_numpy(np.array(labels[:, CAMERA_LABEL_SIZE:]))

        # Check that every shard is whole.
        self.shards: list[_Shard] = []
        start = 0
        for name, count, size in entries:
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size:
                raise DatasetError(f"{file} is missing or cut off.", _HINT)
            self.shards.append(_Shard(file, count, start))
            start += count

    def __len__(self) -> int:
        return len(self.cameras)

    def load(
        self, shard: int, side: int, workers: int = 2
    ) -> tuple[UInt8[Tensor, "N 3 R R"], UInt8[Tensor, "N 1 R R"]]:
        """Images and masks of one shard, averaged down to `side`.

        Raises:
            DatasetError: the shard is damaged, or an image in it is broken or of another size.
        """
        chosen = self.shards[shard]
        samples = _read_tar(chosen.path)
        if len(samples) != chosen.count:
            raise DatasetError(f"{chosen.path} holds {len(samples)} samples, not {chosen.count}.", _HINT)

        def decode(i: int, kind: str, mode: str) -> Image.Image:
            key, parts = samples[i]
            if set(parts) != {"image", "mask"}:
                raise DatasetError(f"sample {key} in {chosen.path} lacks its image or its mask.", _HINT)
            decoded = decode_image(parts[kind], f"the {kind} of {key} in {chosen.path}", mode, _HINT)
            if decoded.size != (self.resolution, self.resolution):
                raise DatasetError(f"the {kind} of {key} in {chosen.path} has another size.", _HINT)
            return decoded

        image, mask = partial(decode, kind="image", mode="RGB"), partial(decode, kind="mask", mode="L")
        return stack_images(chosen.count, image, mask, side, workers)


def _read_tar(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Samples of a tar in its order: key, and the bytes of its image and mask. Nothing is written to disk."""
    samples: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if not member.isfile() or member.size > MAX_FILE_BYTES:
                    raise DatasetError(f"{path} holds {member.name}, which is no image.", _HINT)
                file = tar.extractfile(member)
                assert file is not None
                parts = samples.setdefault(key, {})
                if suffix != "json":
                    parts["mask" if suffix.startswith("mask.") else "image"] = file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is damaged: {error}.", _HINT) from error
    return list(samples.items())


def is_shards(path: Path) -> bool:
    """Whether a path is a folder of shards."""
    return (Path(path) / INDEX_FILE).is_file()
