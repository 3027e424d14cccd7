"""Photos with a synthetic person in them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

PEOPLE = Path(__file__).parent / "people.zip"
SIDE, LEFT, TOP = 256, 150, 90
"""Of the portrait in the photo."""


def photo(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic person at the lower edge of a larger image, and the true mask."""
    with zipfile.ZipFile(PEOPLE) as archive:
        name = sorted(name for name in archive.namelist() if name.startswith("images/"))[number]
        image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
        mask = Image.open(io.BytesIO(archive.read(name.replace("images/", "masks/").replace(".webp", ".png"))))
        pixels = Image.new("RGB", (600, TOP + SIDE), (90, 110, 130))
        where = Image.new("L", pixels.size)
        pixels.paste(image.resize((SIDE, SIDE)), (LEFT, TOP))
        where.paste(mask.convert("L").resize((SIDE, SIDE)), (LEFT, TOP))
    return np.asarray(pixels), np.asarray(where) / np.float32(255.0)
