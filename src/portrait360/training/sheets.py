"""Picture sheets of a generator: the same people from all sides, and re-posed."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from portrait360.geometry.cameras import camera_label
from portrait360.model.generator import Generator
from portrait360.model.mapping import latent
from portrait360.pictures import to_bytes

SHEET_POSES_DEGREES = (
    (0, 0, 0, 0, 0, 0), (20, 0, 0, 0, 0, 0), (-20, 0, 0, 0, 0, 0), (0, 20, 0, 0, 0, 0),
    (0, 0, 20, 0, 0, 0), (0, 0, 0, 20, 0, 0), (0, 0, 0, -20, 0, 0), (0, 0, 0, 0, 20, 0),
)  # fmt: skip
"""Neck then head: rest, neck nods down and up, turns, tilts; head nods down and up, turns."""


def _grid(rows: list[ndarray]) -> UInt8[ndarray, "H W 3"]:
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


@torch.no_grad()
def turn_sheet(generator: Generator, seeds: range, psi: float = 0.7) -> UInt8[ndarray, "H W 3"]:
    """One row per seed, eight yaws of 45 degrees from the front."""
    front = camera_label(0.0)
    cameras = camera_label(torch.arange(8) * (math.pi / 4))
    rows = []
    for seed in seeds:
        scene = generator.scene(generator.map(latent(seed, generator.config.z_dim), front, None, psi))
        rows.append(to_bytes(generator.render(scene, cameras).image))
    return _grid(rows)


@torch.no_grad()
def pose_sheet(generator: Generator, seeds: range, psi: float = 0.7) -> UInt8[ndarray, "H W 3"]:
    """Two rows per seed (front and 45 degrees), one column per pose of `SHEET_POSES_DEGREES`."""
    front = camera_label(0.0)
    poses = torch.tensor(SHEET_POSES_DEGREES) * (math.pi / 180)
    rows = []
    for seed in seeds:
        scene = generator.scene(generator.map(latent(seed, generator.config.z_dim), front, None, psi))
        for yaw in (0.0, math.pi / 4):
            camera = camera_label(yaw).expand(len(poses), -1).contiguous()
            rows.append(to_bytes(generator.render(scene, camera, poses).image))
    return _grid(rows)
