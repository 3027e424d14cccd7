"""The log of a run: JSON lines, contact sheets, and both for TensorBoard where that is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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


class RunLog:
    """`log.jsonl`, one line per report, `sheets/`, and TensorBoard's files in `tensorboard/`."""

    def __init__(self, run: Path, images: int) -> None:
        """Go on after so many images: later lines are dropped."""
        self.path = Path(run) / "log.jsonl"
        self.sheets = Path(run) / "sheets"
        self._forget_after(images)
        self._board = _tensorboard(Path(run) / "tensorboard", images)

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

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """Append one line; numbers also go to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps({"images": images, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, images)

    def sheet(self, images: int, name: str, pixels: np.ndarray) -> None:
        """Save a contact sheet as PNG and in TensorBoard."""
        save_png(self.sheets / f"{name}-{images:010d}.png", pixels)
        if self._board is not None:
            self._board.add_image(name, pixels, images, dataformats="HWC")

    def close(self) -> None:
        """Finish TensorBoard's files."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, images: int) -> Any:
    """A `SummaryWriter` that goes on after so many images; None, and a line that says so, without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print('note: without tensorboard, the log is log.jsonl alone (pip install "portrait360[train]" installs it).')
        return None
    return SummaryWriter(str(folder), purge_step=images)


# ---- contact sheets: the same portraits from all sides, and re-posed ----

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
