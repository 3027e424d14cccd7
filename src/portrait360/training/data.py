"""The training images in memory, and the order in which they are shown."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from portrait360.config import ModelConfig, TrainingConfig
from portrait360.data.dataset import PortraitDataset
from portrait360.data.sampling import yaw_repeats
from portrait360.geometry.cameras import mirror_body_pose, mirror_camera, yaw_pitch
from portrait360.model.generator import select
from portrait360.poses.windows import LEAST_DETAIL
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.progress import show_progress
from portrait360.training.augment import mirror_some, zoom_some
from portrait360.training.passes import Batch, Labels
from portrait360.types import DatasetError

FACE_YAW = 80.0
"""Degrees to either side of the front from where a face shows more than its outline."""


class Sampler:
    """Shuffled order as a pure function of position: epoch e is a permutation drawn from (seed, e).

    Resuming needs no state: position n always names the same image, mirrored or not and zoomed alike.

    Args:
        count: number of images.
        seed: of the order.
        mirror: whether half of the images are mirrored.
        zoom_probability: share of images that are zoomed, apart from `closest`.
        zooms: number of zoom levels.
        closest: probability per image of the closest zoom; `zoom_probability` then stands for the other levels.
        repeats: how often each image comes in an epoch.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        mirror: bool,
        zoom_probability: float = 0.0,
        zooms: int = 1,
        closest: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
    ) -> None:
        self.seed, self.mirror = seed, mirror
        self.zoom_probability, self.zooms = zoom_probability, zooms
        self.pool = np.repeat(np.arange(count), 1 if repeats is None else repeats)
        self.count = len(self.pool)
        self.closest = np.zeros(count) if closest is None else closest
        self._others = zooms if closest is None or zooms == 1 else zooms - 1
        self._epoch = -1
        self._order = self._levels = np.empty(0, np.int64)
        self._flags = np.empty(0, bool)

    def _enter(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        self._order = self.pool[rng.permutation(self.count)]
        mirror, zoom = rng.random((2, self.count))
        self._flags = mirror < (0.5 if self.mirror else 0.0)
        level = 1 + np.floor(zoom * self._others / max(self.zoom_probability, 1e-9)).astype(np.int64)
        levels = np.where(zoom < self.zoom_probability, level, 0)
        self._levels = np.where(rng.random(self.count) < self.closest[self._order], self.zooms, levels)
        self._epoch = epoch

    def take(self, start: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices, mirror flags and zoom levels (0 = whole, 1 to `zooms`) of positions start .. start + size."""
        rows = []
        for position in range(start, start + size):
            epoch, offset = divmod(position, self.count)
            if epoch != self._epoch:
                self._enter(epoch)
            rows.append((self._order[offset], self._flags[offset], self._levels[offset]))
        indices, flags, levels = zip(*rows, strict=True)
        return np.array(indices), np.array(flags), np.array(levels)


def composite(images: Tensor, masks: Tensor, grey: float, side: int) -> tuple[Tensor, Tensor]:
    """Put portraits on a plain grey background and average down to `side`, in uint8, a slice at a time.

    What is at that side already is changed in place: whole datasets in memory have no room for a second copy.
    """
    n, _, full, _ = images.shape
    small, small_masks = images, masks
    if full != side:
        small, small_masks = (torch.empty(n, c, side, side, dtype=torch.uint8) for c in (3, 1))
    for i in range(0, n, 256):
        m = masks[i : i + 256].float() / 255.0
        x = images[i : i + 256].float() * m + (1.0 - m) * (grey * 127.5 + 127.5)
        if full != side:
            x, m = (F.interpolate(v, size=(side, side), mode="area") for v in (x, m))
        small[i : i + 256] = x.add(0.5).clamp(0, 255).to(torch.uint8)
        small_masks[i : i + 256] = m.mul(255.0).add(0.5).clamp(0, 255).to(torch.uint8)
    return small, small_masks


def shows_face(cameras: Float[Tensor, "N 25"]) -> Bool[Tensor, " N"]:
    """Whether a camera stands within `FACE_YAW` of the front."""
    return yaw_pitch(cameras)[0].abs() < math.radians(FACE_YAW)


class Framing:
    """How a dataset's images become batches of a model: the side at which they are kept, plain backgrounds, zooming.

    Raises:
        DatasetError: the images are smaller than the model's.
    """

    def __init__(self, path: Path, resolution: int, model: ModelConfig, training: TrainingConfig) -> None:
        if resolution < model.resolution:
            raise DatasetError(
                f"{path} has images of {resolution} pixels; {model.name} needs {model.resolution}.",
                "Render the dataset at a higher resolution, or choose a smaller preset.",
            )
        self.model, self.training = model, training
        self.zooms = training.zoom_probability > 0 and resolution * training.zoom_windows[0] >= model.resolution
        self.windows = tuple(w for w in training.zoom_windows if resolution * w >= LEAST_DETAIL * model.resolution)
        self.kept = resolution if self.zooms else model.resolution
        self.loaded = resolution if model.background is None else self.kept
        """Side at which images are decoded: backgrounds are taken out before averaging down."""

    def prepare(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Images of side `loaded` as they are kept in memory."""
        if self.model.background is None:
            return composite(images, masks, self.model.plain_background, self.kept)
        return images, masks

    def sampler(self, cameras: Float[Tensor, "N 25"], seed: int) -> Sampler:
        """The order in which images with these cameras are shown."""
        training = self.training
        closest = training.face_zoom_probability * shows_face(cameras).numpy()
        return Sampler(
            len(cameras),
            seed,
            training.mirror,
            training.zoom_probability if self.zooms else 0.0,
            len(self.windows),
            closest if self.zooms and training.face_zoom_probability else None,
            yaw_repeats(cameras, training.yaw_repeats),
        )

    def batch(
        self,
        images: UInt8[Tensor, "B 3 R R"],
        masks: UInt8[Tensor, "B 1 R R"],
        cameras: Float[Tensor, "B 25"],
        body_poses: Float[Tensor, "B 6"],
        mirror: Bool[Tensor, " B"],
        zoom: Int[Tensor, " B"],
        device: torch.device,
    ) -> Batch:
        """Kept images as a training step takes them; `mirror` and `zoom` on the CPU."""
        images, masks, cameras, body_poses = (v.to(device) for v in (images, masks, cameras, body_poses))
        floats = images.float() / 127.5 - 1.0, masks.float() / 255.0
        image, mask, camera = zoom_some(zoom, *floats, cameras, self.windows, self.model.resolution)
        image, mask, camera, pose = mirror_some(mirror.to(device), image, mask, camera, body_poses)
        return Batch(image, mask, camera, pose)


def random_labels(
    cameras: Float[Tensor, "N 25"], body_poses: Float[Tensor, "N 6"], size: int, mirror: bool, device: torch.device
) -> Labels:
    """Labels of images drawn at random, half of them mirrored (10.1); uses torch's random state."""
    i = torch.randint(len(cameras), (size,))
    flip = torch.rand(size) < (0.5 if mirror else 0.0)
    camera, pose = cameras[i], body_poses[i]
    camera, pose = select(flip, mirror_camera(camera), camera), select(flip, mirror_body_pose(pose), pose)
    return Labels(camera.to(device), pose.to(device))


def fingerprint(cameras: Float[Tensor, "N 25"], body_poses: Float[Tensor, "N 6"]) -> str:
    """Changes with any label and with the order of the images."""
    labels = torch.cat([cameras, body_poses], dim=1).numpy().tobytes()
    return hashlib.sha256(labels).hexdigest()[:16]


def _have_room(size: int, device: torch.device) -> bool:
    """Whether so many bytes fit into half of a GPU's free memory."""
    return size <= torch.cuda.mem_get_info(device)[0] // 2


class TrainingData:
    """All images of a dataset as bytes in memory, a GPU's if they fit.

    They are kept at the model's resolution, or at their own for zooming in.
    """

    def __init__(
        self,
        path: Path,
        model: ModelConfig,
        training: TrainingConfig,
        seed: int,
        *,
        device: torch.device | None = None,
        progress: bool = False,
    ) -> None:
        """Read a dataset.

        Args:
            path: a zip or a folder.
            model, training: how its images are shown.
            seed: of the order.
            device: a GPU whose memory is to hold the images, if half of what is free there has room for them.
            progress: whether to show it.

        Raises:
            DatasetError: it cannot be used.
        """
        # Decode
        dataset = PortraitDataset(path)
        self.framing = Framing(path, dataset.resolution, model, training)
        if len(dataset) < 1:
            raise DatasetError(f"{path} holds no images.", "Make a dataset with `portrait360 dataset synth`.")
        with show_progress("loading", len(dataset), "images", visible=progress) as bar:
            images, masks = dataset.load_arrays(
                self.framing.loaded, progress=lambda done, _: bar.advance(done - bar.done)
            )

        # Keep as they are shown, on the GPU if it has room
        images, masks = self.framing.prepare(images, masks)
        if device is not None and device.type == "cuda" and _have_room(images.nbytes + masks.nbytes, device):
            images, masks = images.to(device), masks.to(device)
        self.images, self.masks = images, masks

        # Labels and order
        self.cameras, self.body_poses = dataset.cameras, dataset.body_poses
        self.shown_poses = self.body_poses
        """Poses that come with batches: the labels, or those that take their place."""
        self.label_kind = str(dataset.meta.get("label_kind", "unknown"))
        self.sampler = self.framing.sampler(self.cameras, seed)
        self.fingerprint = fingerprint(self.cameras, self.body_poses)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, images: int, size: int, ranks: Ranks, device: torch.device) -> Batch:
        """What this process shows after `images` images of the shuffled, mirrored order; `size`: its share."""
        i, mirror, zoom = (torch.from_numpy(v) for v in self.sampler.take(images + ranks.rank * size, size))
        there = i.to(self.images.device)
        return self.framing.batch(
            self.images[there], self.masks[there], self.cameras[i], self.shown_poses[i], mirror, zoom, device
        )

    def kept(
        self, rows: Int[Tensor, " B"], device: torch.device
    ) -> tuple[Float[Tensor, "B 3 R R"], Float[Tensor, "B 1 R R"], Float[Tensor, "B 25"]]:
        """Images in [-1, 1], masks and cameras at the side at which they are kept."""
        there = rows.to(self.images.device)
        image, mask = self.images[there].to(device).float() / 127.5 - 1.0, self.masks[there].to(device).float() / 255.0
        return image, mask, self.cameras[rows].to(device)

    def labels(self, size: int, device: torch.device) -> Labels:
        """See `random_labels`."""
        return random_labels(self.cameras, self.body_poses, size, self.sampler.mirror, device)
