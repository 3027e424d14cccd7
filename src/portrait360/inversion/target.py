"""What an inversion reproduces: a photo's crop, its mask, its camera and the person's body pose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from portrait360.config import CameraConfig
from portrait360.geometry.cameras import zoom_camera
from portrait360.geometry.conventions import OURS, model_crop


@dataclass(frozen=True)
class Target:
    """One image of a person."""

    image: Float[Tensor, "1 3 H H"]
    """In [-1, 1], on a grey background (0)."""
    mask: Float[Tensor, "1 1 H H"]
    """Share of each pixel that shows the person, 0 to 1."""
    known: Float[Tensor, "1 1 H H"]
    """1 where the image comes from the photo, 0 in the padding of its crop."""
    camera: Float[Tensor, "1 25"]
    """The crop's camera label; of a part that models show (`framed`), the label of the whole."""
    body_pose: Float[Tensor, "1 6"]
    """Radians."""

    def framed(self, model: CameraConfig) -> Target:
        """The part that a model's images show; everything for models of this project's cameras. The camera label stays
        that of the whole, as models are given it (`geometry.conventions.model_camera`)."""
        if model == OURS:
            return self
        centre, share = model_crop(self.camera, model)
        side = max(1, round(float(share) * self.image.shape[-1]))
        image, mask, known = (_square(values, centre[0], side) for values in (self.image, self.mask, self.known))
        return replace(self, image=image, mask=mask, known=known)

    @staticmethod
    def from_arrays(
        image: UInt8[ndarray, "H H 3"],
        mask: UInt8[ndarray, "H H"],
        camera: Float[Tensor, " 25"],
        body_pose: Float[Tensor, " 6"],
        known: Float[ndarray, "H H"] | None = None,
    ) -> Target:
        """The target of an image in sRGB bytes and a mask in bytes; `known` None: everything."""
        opacity = torch.from_numpy(mask.astype(np.float32) / 255.0)[None, None]
        pixels = torch.from_numpy(image.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1)[None]
        inside = torch.ones_like(opacity) if known is None else torch.from_numpy(known.astype(np.float32))[None, None]
        return Target(pixels * opacity, opacity, inside, camera[None].float(), body_pose[None].float())

    def seen_from(self, camera: Float[Tensor, "1 25"], body_pose: Float[Tensor, "1 6"]) -> Target:
        """The same image under a corrected camera and body pose."""
        return replace(self, camera=camera, body_pose=body_pose)

    def window(self, share: float, side: int) -> Target:
        """The centre crop of `share` of the image's side, at `side` pixels, with the camera that sees it."""
        height = self.image.shape[-1]
        margin = round(height * (1.0 - share) / 2.0)
        inside = (..., slice(margin, height - margin), slice(margin, height - margin))
        camera = zoom_camera(self.camera, height / (height - 2 * margin))
        image, mask, known = (resized(values[inside], side) for values in (self.image, self.mask, self.known))
        return Target(image, mask, known, camera, self.body_pose)


def _square(values: Float[Tensor, "1 C H H"], centre: Float[Tensor, " 2"], side: int) -> Float[Tensor, "1 C S S"]:
    """A square of `side` pixels around a place in units of the image's side; beyond the image there is nothing."""
    share = side / values.shape[-1]
    steps = ((torch.arange(side) + 0.5) / side - 0.5) * share
    u, v = (steps + centre[0]) * 2.0 - 1.0, (steps + centre[1]) * 2.0 - 1.0
    places = torch.stack(torch.meshgrid(v, u, indexing="ij")[::-1], dim=-1)[None]
    return F.grid_sample(values, places, align_corners=False)


def resized(values: Float[Tensor, "B C H H"], side: int) -> Float[Tensor, "B C S S"]:
    """Images at another side: averaged down, or interpolated."""
    if values.shape[-1] >= side:
        return F.interpolate(values, size=(side, side), mode="area")
    return F.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)
