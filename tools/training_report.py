"""Curves of a training run from its log, and its contact sheets over training time.

python -m tools.training_report RUN --out FOLDER
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from portrait360.media.plots import Line, curves
from portrait360.media.sheets import FIRST, SECOND, captioned, tiled
from portrait360.runtime.files import atomic_write
from portrait360.runtime.script import run_script
from portrait360.types import InputError

_PANELS = (
    ("losses", (("d_loss", FIRST), ("g_loss", SECOND))),
    ("logits", (("real_logit", FIRST), ("fake_logit", SECOND))),
    ("gradient penalty", (("r1", FIRST),)),
    (
        "pose errors: generated (squared), real to coarse labels",
        (("pose_loss", FIRST), ("coarse_error", SECOND)),
    ),
)


def curves_image(log: Path) -> Image.Image:
    """Four panels over images shown.

    Raises:
        InputError: there is no log, or it holds no reports.
    """
    if not log.is_file():
        raise InputError(f"there is no training log at {log}.", "Give the folder of a run.")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    if not lines:
        raise InputError(f"{log} holds no reports yet.", "Wait for the first ones.")
    panels = []
    for title, names in _PANELS:
        series = []
        for name, colour in names:
            known = [(line["images"] / 1000, line[name]) for line in lines if name in line]
            x, y = np.array(known, dtype=np.float64).reshape(-1, 2).T
            series.append(Line(name, colour, x, y))
        panels.append(curves((760, 380), title, series, "thousand images"))
    return tiled(panels, 2)


def progress_image(sheets: Path, most: int = 6) -> Image.Image:
    """The first two rows of evenly spaced sheets, newest last."""
    found = sorted(sheets.glob("turn-*.png"))
    if not found:
        raise InputError(f"there are no image sheets in {sheets}.", "Training writes them.")
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))]
    tiles = []
    for path in chosen:
        with Image.open(path) as image:
            rows = image.convert("RGB").crop((0, 0, image.width, image.width // 4))
        kimg = int(path.stem.split("-")[1]) / 1000
        tiles.append(captioned(np.asarray(rows), rows.width, f"{kimg:.0f} kimg"))
    return tiled(tiles, 1)


def main(run: Annotated[Path, tyro.conf.Positional], out: Path) -> None:
    """Write curves.png and progress.png of a training run into a folder."""
    images = {
        "curves.png": curves_image(run / "log.jsonl"),
        "progress.png": progress_image(run / "sheets"),
    }
    for name, image in images.items():
        with atomic_write(out / name) as temporary:
            image.save(temporary)


if __name__ == "__main__":
    run_script(main)
