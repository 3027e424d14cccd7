"""Images that are reconstructed: their styles and poses, and the crops in which they are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.config import ModelConfig, ReconstructionConfig
from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.cameras import project, yaw_pitch
from portrait360.geometry.deformation import posed_points
from portrait360.model.discriminator import DiscriminatorInput
from portrait360.training.styles import StyleTable

WIDE_SIDE = 2
"""The wide crops' side is the model's divided by this."""


@dataclass(frozen=True)
class Crops:
    """Crops of images, with cameras to match."""

    images: DiscriminatorInput
    camera: Float[Tensor, "B 25"]


@dataclass(frozen=True)
class Targets:
    """What reconstructions of a step are compared with."""

    rows: Int[Tensor, " B"]
    """Of the style table."""
    body_pose: Float[Tensor, "B 6"]
    face: Crops
    wide: Crops


@dataclass
class People:
    """What a run with reconstructions keeps besides its networks."""

    table: StyleTable
    rows: Int[Tensor, " N"]
    """The dataset's image that each style belongs to."""
    body_poses: Float[Tensor, "M 6"]
    """Poses with which all images of the dataset are rendered: those that the first discriminator predicted."""

    def targets(
        self,
        rows: Int[Tensor, " B"],
        kept: tuple[Float[Tensor, "B 3 R R"], Float[Tensor, "B 1 R R"], Float[Tensor, "B 25"]],
        config: ReconstructionConfig,
        side: int,
        random: np.random.Generator,
        body: BodyTemplate,
    ) -> Targets:
        """What reconstructions are compared with.

        Args:
            rows: of the style table.
            kept: their images in [-1, 1], masks and cameras.
            config: how large the crops are.
            side: of face crops, pixels.
            random: draws each crop's size.
            body: tells where the faces are.
        """
        face, wide = (
            torch.from_numpy(random.uniform(*limits, len(rows))) for limits in (config.window, config.wide_window)
        )
        poses = self.body_poses[self.rows[rows]].to(kept[0].device)
        return Targets(
            rows,
            poses,
            crops(*kept, face, side, face_centres(body, kept[2], poses)),
            crops(*kept, wide, side // WIDE_SIDE),
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return self.table.tensors() | {"people/rows": self.rows, "people/body_poses": self.body_poses}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> People:
        """The people of a checkpoint.

        Raises:
            KeyError: the checkpoint has none.
            ValueError: its parts do not fit together.
        """
        table, rows = StyleTable.from_tensors(tensors), tensors["people/rows"]
        if len(rows) != len(table):
            raise ValueError("there are more styles than images, or fewer")
        return cls(table, rows, tensors["people/body_poses"])


def people_rows(cameras: Float[Tensor, "M 25"], config: ReconstructionConfig) -> Int[Tensor, " N"]:
    """The images of a dataset that get styles."""
    facing = yaw_pitch(cameras)[0].abs() <= np.deg2rad(config.yaw)
    return facing.nonzero()[: config.people, 0]


def order(count: int, seed: int, start: int, size: int) -> Int[Tensor, " B"]:
    """Rows at positions start .. start + size of an endless order, in which all rows come before one comes again."""
    places = [divmod(position, count) for position in range(start, start + size)]
    orders = {epoch: np.random.default_rng([seed, 1, epoch]).permutation(count) for epoch, _ in places}
    return torch.tensor([int(orders[epoch][place]) for epoch, place in places])


FACE = (0.0, 0.07, 0.085)
"""The middle of the body template's eyes and mouth."""


def face_centres(
    body: BodyTemplate, cameras: Float[Tensor, "B 25"], poses: Float[Tensor, "B 6"]
) -> Float[Tensor, "B 2"]:
    """Where cameras see the middle of the face (right, down), in units of the image's side."""
    places = posed_points(body, poses, torch.tensor(FACE).to(poses).expand(len(poses), 1, 3))
    return project(cameras, places)[0][:, 0]


def cropped_camera(label: Float[Tensor, "1 25"], left: float, top: float, size: float) -> Float[Tensor, "1 25"]:
    """The label of a square of an image, in units of the image's side."""
    part = label.clone()
    k = part[:, 16:].unflatten(1, (3, 3))
    k[:, 0, 2] -= left
    k[:, 1, 2] -= top
    k[:, :2] /= size
    return part


def crops(
    images: Float[Tensor, "B 3 H H"],
    masks: Float[Tensor, "B 1 H H"],
    cameras: Float[Tensor, "B 25"],
    windows: Float[Tensor, " B"],
    side: int,
    centres: Float[Tensor, "B 2"] | None = None,
) -> Crops:
    """Square crops, each of its own window (side in units of the image's), averaged down to `side` pixels.

    `centres`: where, in units of the image's side (right, down); None: its middle. Crops stay within the image.
    """
    full, shown, seen = images.shape[-1], [], []
    places = [(0.5, 0.5)] * len(images) if centres is None else centres.tolist()
    for image, camera, window, place in zip(
        torch.cat([images, masks], dim=1), cameras, windows.tolist(), places, strict=True
    ):
        size = full - 2 * round(full * (1.0 - window) / 2.0)
        left, top = (min(max(round(full * at - size / 2.0), 0), full - size) for at in place)
        part = image[None, :, top : top + size, left : left + size]
        shown.append(F.interpolate(part, size=(side, side), mode="bilinear", antialias=True, align_corners=False))
        seen.append(cropped_camera(camera[None], left / full, top / full, size / full))
    both = torch.cat(shown)
    return Crops(DiscriminatorInput(both[:, :3], None, both[:, 3:]), torch.cat(seen))


def can_reconstruct(model: ModelConfig) -> bool:
    """Whether rendered colours are the image, on a plain background, whose latents choose from the styles."""
    plain = model.background is None and model.superresolution is None and model.features == 3
    return plain and model.mapping_styles > 0 and model.discriminator.mirror_once
