"""How much of the fitted body a person's mask leaves uncovered."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor

from portrait360.geometry.body import BodyTemplate, posed_vertices
from portrait360.geometry.cameras import project
from portrait360.kernels import raster

SIDE = 128
"""Pixels at which silhouettes are drawn."""
_RIM = 4
"""Pixels of the silhouette's rim that are left out: people are not the mean body, and fits are off by so much."""


def body_silhouette(
    body: BodyTemplate, camera: Float[Tensor, " 25"], body_pose: Float[Tensor, " 6"]
) -> Bool[ndarray, "S S"]:
    """Where a camera sees the posed body: head, neck, and the shoulders as far as the picture reaches."""
    uv, depth = project(camera[None], posed_vertices(body, body_pose[None]))
    screen = np.concatenate([uv[0].numpy() * SIDE, depth[0, :, None].numpy()], axis=1).astype(np.float64)
    faces = np.ascontiguousarray(body.faces.numpy(), np.int32)
    none, plain = np.zeros(len(faces), np.int32), np.zeros(1, np.int32)
    nearest, face = np.full(SIDE * SIDE, np.inf), np.full(SIDE * SIDE, -1, np.int32)
    corners, atlas = np.zeros((len(faces), 3, 2), np.float32), np.zeros((1, 1, 4), np.uint8)
    raster.raster_depth(screen, faces, corners, none, plain, plain, atlas, True, 0, SIDE, nearest, face)
    return face.reshape(SIDE, SIDE) >= 0


def uncovered_share(
    silhouette: Bool[ndarray, "S S"], mask: UInt8[ndarray, "R R"], inside: Float[ndarray, "R R"]
) -> float:
    """Share of a silhouette, without its rim and as far as the photo reaches, in which the mask has no person.

    Args:
        mask: 255 where the person is.
        inside: 1 where the crop shows the photo, 0 in the padding.
    """
    body = binary_erosion(silhouette, iterations=_RIM, border_value=1) & _shrunk(inside >= 0.5)
    return float((body & ~_shrunk(mask >= 128)).sum() / max(body.sum(), 1))


def _shrunk(where: Bool[ndarray, "R R"]) -> Bool[ndarray, "S S"]:
    picture = Image.fromarray(where.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(picture) >= 128
