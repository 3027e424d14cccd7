"""What a run looked like: curves from its log, and its sheets over training time.

`python -m tools.training_report RUN --out FOLDER` writes curves.png and progress.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from portrait360.media.plots import FIRST, SECOND, curves
from portrait360.media.sheets import captioned, tiled
from portrait360.runtime.files import atomic_write
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


def draw_curves(log: Path) -> Image.Image:
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
            series.append((name, colour, x, y))
        panels.append(curves((760, 380), title, series, "thousand images"))
    return tiled(panels, 2)


def draw_progress(sheets: Path, most: int = 6) -> Image.Image:
    """Turn sheets of evenly spaced moments (the first two rows of each), newest last."""
    found = sorted(sheets.glob("turn-*.png"))
    if not found:
        raise InputError(f"there are no picture sheets in {sheets}.", "They are drawn while training.")
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))]
    tiles = []
    for path in chosen:
        with Image.open(path) as picture:
            rows = picture.convert("RGB").crop((0, 0, picture.width, picture.width // 4))
        kimg = int(path.stem.split("-")[1]) / 1000
        tile = captioned(np.asarray(rows.resize((picture.width, picture.width))), picture.width, f"{kimg:.0f} kimg")
        strip = tile.crop((0, picture.width, tile.width, tile.height))
        whole = Image.new("RGB", (rows.width, rows.height + strip.height), (255, 255, 255))
        whole.paste(rows, (0, 0))
        whole.paste(strip, (0, rows.height))
        tiles.append(whole)
    return tiled(tiles, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pictures = {
        "curves.png": draw_curves(arguments.run / "log.jsonl"),
        "progress.png": draw_progress(arguments.run / "sheets"),
    }
    for name, picture in pictures.items():
        with atomic_write(arguments.out / name) as temporary:
            picture.save(temporary)


if __name__ == "__main__":
    main()
