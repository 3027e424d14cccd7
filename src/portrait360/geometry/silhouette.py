"""Where the posed body is in the image of a camera."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from portrait360.geometry.body import BodyTemplate, posed_vertices
from portrait360.geometry.cameras import project
from portrait360.kernels import raster

SIDE = 128
"""Pixels at which silhouettes are drawn."""


def body_silhouette(
    body: BodyTemplate, camera: Float[Tensor, " 25"], body_pose: Float[Tensor, " 6"]
) -> Bool[ndarray, "S S"]:
    """Where the posed body is in the image of a camera: head, neck, and the shoulders as far as it reaches."""
    return body_faces(body, camera, body_pose) >= 0


def body_faces(body: BodyTemplate, camera: Float[Tensor, " 25"], body_pose: Float[Tensor, " 6"]) -> Int[ndarray, "S S"]:
    """Which triangle of the posed body each pixel of a camera's image shows; -1: none."""
    uv, depth = project(camera[None], posed_vertices(body, body_pose[None]))
    screen = np.concatenate([uv[0].numpy() * SIDE, depth[0, :, None].numpy()], axis=1).astype(np.float64)
    faces = np.ascontiguousarray(body.faces.numpy(), np.int32)
    none, plain = np.zeros(len(faces), np.int32), np.zeros(1, np.int32)
    nearest, face = np.full(SIDE * SIDE, np.inf), np.full(SIDE * SIDE, -1, np.int32)
    corners, atlas = np.zeros((len(faces), 3, 2), np.float32), np.zeros((1, 1, 4), np.uint8)
    raster.raster_depth(screen, faces, corners, none, plain, plain, atlas, True, 0, SIDE, nearest, face)
    return face.reshape(SIDE, SIDE)
