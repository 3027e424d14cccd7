"""What a run writes besides checkpoints: a JSON-lines log, TensorBoard scalars and picture sheets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from portrait360.geometry.cameras import camera_label
from portrait360.media.images import to_bytes
from portrait360.media.sheets import grid, save_png
from portrait360.model.generator import Generator, RenderDraws
from portrait360.model.mapping import latent
from portrait360.runtime.files import atomic_write
from portrait360.types import InputError


class RunLog:
    """`log.jsonl`, one line per report, and TensorBoard event files in `tensorboard/`."""

    def __init__(self, run: Path, images: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "training needs the package tensorboard.",
                'Install the extra: pip install "portrait360[train]".',
            ) from error
        self.path = Path(run) / "log.jsonl"
        self.sheets = Path(run) / "sheets"
        self._forget_after(images)
        self._board = SummaryWriter(str(Path(run) / "tensorboard"), purge_step=images)

    def _forget_after(self, images: int) -> None:
        """Drop lines written after the checkpoint that training resumes from."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["images"] <= images:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # a line cut short by a kill
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(kept))

    def scalars(self, images: int, values: dict[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps({"images": images, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, images)

    def sheet(self, images: int, name: str, pixels: np.ndarray) -> None:
        """Save a picture sheet as PNG and in TensorBoard."""
        save_png(self.sheets / f"{name}-{images:010d}.png", pixels)
        self._board.add_image(name, pixels, images, dataformats="HWC")

    def close(self) -> None:
        self._board.close()


# ---- sheets: the same persons from all sides, and re-posed ----

SHEET_POSES_DEGREES = (
    (0, 0, 0, 0, 0, 0), (20, 0, 0, 0, 0, 0), (-20, 0, 0, 0, 0, 0), (0, 20, 0, 0, 0, 0),
    (0, 0, 20, 0, 0, 0), (0, 0, 0, 20, 0, 0), (0, 0, 0, -20, 0, 0), (0, 0, 0, 0, 20, 0),
)  # fmt: skip
"""Neck then head: rest, neck nods down and up, turns, tilts; head nods down and up, turns."""


@torch.no_grad()
def turn_sheet(generator: Generator, seeds: range, psi: float = 0.7) -> UInt8[ndarray, "H W 3"]:
    """One row per seed, eight yaws of 45 degrees from the front."""
    front = camera_label(0.0)
    cameras = camera_label(torch.arange(8) * (math.pi / 4))
    rows, draws = [], RenderDraws(gradients=False)
    for seed in seeds:
        w = generator.map(latent(seed, generator.config.z_dim), front, None, psi)
        scene = generator.scene(w, gradients=False)
        rows.append(to_bytes(generator.render(scene, cameras, draws=draws).image))
    return grid(np.concatenate(rows), len(rows[0]))


@torch.no_grad()
def pose_sheet(generator: Generator, seeds: range, psi: float = 0.7) -> UInt8[ndarray, "H W 3"]:
    """Two rows per seed (front and 45 degrees), one column per pose of `SHEET_POSES_DEGREES`."""
    front = camera_label(0.0)
    poses = torch.tensor(SHEET_POSES_DEGREES) * (math.pi / 180)
    rows, draws = [], RenderDraws(gradients=False)
    for seed in seeds:
        w = generator.map(latent(seed, generator.config.z_dim), front, None, psi)
        scene = generator.scene(w, gradients=False)
        for yaw in (0.0, math.pi / 4):
            camera = camera_label(yaw).expand(len(poses), -1).contiguous()
            rows.append(to_bytes(generator.render(scene, camera, poses, draws=draws).image))
    return grid(np.concatenate(rows), len(rows[0]))
