"""Mirror samples, and balance how often each viewing direction is sampled."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.geometry.cameras import mirror_body_pose, mirror_camera, yaw_pitch, yaw_sector

YAW_BINS = 36
"""Histograms of yaw have sectors of 10 degrees, from -180 to 180."""
YAW_SECTORS = 12
"""Rare yaws are counted in sectors of 30 degrees, the first centred on the front."""


def mirrored(
    image: Tensor, mask: Tensor, camera: Float[Tensor, "B 25"], body_pose: Float[Tensor, "B 6"]
) -> tuple[Tensor, Tensor, Float[Tensor, "B 25"], Float[Tensor, "B 6"]]:
    """Samples as a mirror shows them: image, mask, camera and body pose change together.

    Args:
        image: (B, 3, H, W) of any type.
        mask: (B, 1, H, W) of any type.
        camera: camera labels.
        body_pose: body poses.
    """
    return image.flip(-1), mask.flip(-1), mirror_camera(camera), mirror_body_pose(body_pose)


def yaw_histogram(cameras: Float[Tensor, "N 25"], bins: int = YAW_BINS) -> Int[Tensor, " bins"]:
    """How many cameras fall into each of `bins` equal sectors of yaw, from -180 to 180 degrees."""
    return torch.bincount(_yaw_sector(cameras, bins), minlength=bins)


def yaw_repeats(cameras: Float[Tensor, "N 25"], most: int) -> Int[np.ndarray, " N"]:
    """How often to show each image so that all yaws come about equally often, at most `most` times.

    In the fullest of `YAW_SECTORS` sectors each image comes once. (What equations 13.3 intends for rear views only.)
    """
    if not len(cameras):
        return np.zeros(0, np.int64)
    sector = yaw_sector(yaw_pitch(cameras)[0], YAW_SECTORS)
    counts = torch.bincount(sector)
    return (counts.max() / counts[sector]).round().clamp(1, most).long().numpy()


def _yaw_sector(cameras: Float[Tensor, "N 25"], bins: int) -> Int[Tensor, " N"]:
    """Sector of the yaw of each camera position around the origin; yaw 0 faces the subject."""
    yaw, _ = yaw_pitch(cameras.double())
    return ((yaw + math.pi) / (2 * math.pi) * bins).long().clamp(0, bins - 1)
