"""Contact sheets: many images on one, with captions or labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from portrait360.media.plots import INK, PAPER, TEXT, font
from portrait360.runtime.files import atomic_write


def grid(
    pictures: UInt8[ndarray, "B H W 3"],
    columns: int,
    *,
    gap: int = 0,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> UInt8[ndarray, "h w 3"]:
    """Lay pictures out row by row, with `gap` white pixels between them.

    Labels need room: column labels add a strip on top, row labels one on the left. Places without a picture
    in the last row stay white.

    Raises:
        ValueError: there is no picture, or `columns` is below 1.
    """
    count, height, width = pictures.shape[:3]
    if count < 1 or columns < 1:
        raise ValueError(f"a sheet needs pictures and columns, not {count} and {columns}")
    rows = -(-count // columns)
    size = max(10, min(height, width) // 10)
    letters = font(size)
    left = 8 + max((int(letters.getlength(label)) for label in row_labels), default=-8)
    top = 2 * size if column_labels else 0
    sheet = np.full((top + rows * (height + gap) - gap, left + columns * (width + gap) - gap, 3), PAPER, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        y = top + (index // columns) * (height + gap)
        x = left + (index % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    if not (row_labels or column_labels):
        return sheet
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for row, label in enumerate(row_labels):
        draw.text((4, top + row * (height + gap) + height // 2), label, fill=INK, font=letters, anchor="lm")
    for column, label in enumerate(column_labels):
        draw.text((left + column * (width + gap) + width // 2, top // 2), label, fill=INK, font=letters, anchor="mm")
    return np.asarray(image).copy()


def tiled(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """`grid` of images of equal size, all in RGB."""
    return Image.fromarray(grid(np.stack([np.asarray(image) for image in images]), columns))


def captioned(image: UInt8[ndarray, "H W 3"], side: int, text: str) -> Image.Image:
    """A picture scaled to `side` with a line of text in a strip below."""
    strip = max(20, side // 8)
    tile = Image.new("RGB", (side, side + strip), PAPER)
    tile.paste(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS), (0, 0))
    ImageDraw.Draw(tile).text((side / 2, side + strip / 2), text, INK, font(min(TEXT, strip - 6)), "mm")
    return tile


def save_png(path: Path, picture: UInt8[ndarray, "H W 3"]) -> None:
    """Write a picture as PNG, atomically. The same pixels give the same bytes."""
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
