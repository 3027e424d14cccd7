"""What a run writes besides checkpoints: a JSON-lines log, TensorBoard scalars and picture sheets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from portrait360.files import atomic_write
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
        with atomic_write(self.sheets / f"{name}-{images:010d}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
        self._board.add_image(name, pixels, images, dataformats="HWC")

    def close(self) -> None:
        self._board.close()
