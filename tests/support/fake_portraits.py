"""A source of images that are quick to draw, for the tests of datasets: a disc on a gradient."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from portrait360.data.writer import open_writer
from portrait360.geometry.cameras import camera_label
from portrait360.synthetic.label_noise import coarse_body_poses
from portrait360.types import AssetError


@dataclass(frozen=True)
class FakeSample:
    image: np.ndarray
    mask: np.ndarray
    camera: np.ndarray
    body_pose: np.ndarray
    depth: np.ndarray | None


class FakeSource:
    """Draws from (seed, index) only."""

    def draw(self, seed: int, index: int, resolution: int, depth: bool = False) -> FakeSample:
        rng = np.random.default_rng([seed, index])
        yaw, pitch = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.2)
        pose = rng.normal(0, 0.2, 6).astype(np.float32)
        y, x = (np.mgrid[:resolution, :resolution] + 0.5) / resolution
        centre = rng.uniform(0.35, 0.65, 2)
        inside = np.hypot(x - centre[0], y - centre[1]) < rng.uniform(0.15, 0.3)
        colours = rng.integers(0, 256, (2, 3))
        shade = 0.5 + 0.5 * y[..., None]
        image = np.where(inside[..., None], colours[0], colours[1] * shade).astype(np.uint8)
        far = np.where(inside, 2.7 + 0.1 * x, 0).astype(np.float32) if depth else None
        label = camera_label(torch.tensor([yaw], dtype=torch.float32), float(pitch))[0].numpy()
        return FakeSample(image, inside.astype(np.uint8) * 255, label, pose, far)


class EndlessSource(FakeSource):
    """Draws image 40 until it is killed."""

    def draw(self, seed: int, index: int, resolution: int, depth: bool = False) -> FakeSample:
        while index == 40:
            signal.pause()
        return super().draw(seed, index, resolution, depth)


class FailingSource(FakeSource):
    """Breaks at image 40."""

    def draw(self, seed: int, index: int, resolution: int, depth: bool = False) -> FakeSample:
        if index == 40:
            raise ZeroDivisionError("no such angle")
        return super().draw(seed, index, resolution, depth)


class DyingSource(FakeSource):
    """Is killed at image 40, as by a computer that runs out of memory."""

    def draw(self, seed: int, index: int, resolution: int, depth: bool = False) -> FakeSample:
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(seed, index, resolution, depth)


class MissingAssets(FakeSource):
    def __init__(self) -> None:
        raise AssetError("npm was not found.", "Install Node.js.")


def write_fake_dataset(path: Path, count: int = 6, resolution: int = 32, coarse: bool = False) -> None:
    """A small dataset zip without worker processes."""
    source = FakeSource()
    meta = {"generator": "test", "label_kind": "coarse" if coarse else "exact"}
    with open_writer(path, resolution=resolution, meta=meta) as writer:
        for index in range(count):
            sample = source.draw(1, index, resolution, depth=True)
            writer.add(sample.image, sample.mask, sample.camera, sample.body_pose, sample.depth)
        if coarse:
            writer.set_training_poses(coarse_body_poses(writer.body_poses(), 4.0, seed=1))
