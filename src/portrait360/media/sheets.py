"""Contact sheets: many images on one, with captions or labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from portrait360.runtime.files import atomic_write

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (40, 44, 52)
FAINT: Colour = (222, 225, 230)
FIRST: Colour = (92, 128, 188)
SECOND: Colour = (222, 120, 30)
"""sRGB bytes, of sheets and plots alike."""

TEXT = 15
"""Size of letters, pixels."""


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font needs to be installed."""
    return ImageFont.load_default(size)


def grid(
    images: UInt8[ndarray, "B H W 3"],
    columns: int,
    *,
    gap: int = 0,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> UInt8[ndarray, "h w 3"]:
    """Lay images out row by row, with `gap` white pixels between them.

    Labels need room: column labels add a strip on top, row labels one on the left. Places without an image
    in the last row stay white.

    Raises:
        ValueError: there is no image, or `columns` is below 1.
    """
    # Measure: one cell for each image, and strips for the labels.
    count, height, width = images.shape[:3]
    if count < 1 or columns < 1:
        raise ValueError(f"a sheet needs images and columns, not {count} and {columns}")
    rows = -(-count // columns)
    size = max(10, min(height, width) // 10)
    letters = font(size)
    left = 8 + max((int(letters.getlength(label)) for label in row_labels), default=-8)
    top = 2 * size if column_labels else 0

    # Place the images.
    sheet = np.full((top + rows * (height + gap) - gap, left + columns * (width + gap) - gap, 3), PAPER, dtype=np.uint8)
    for index, image in enumerate(images):
        y = top + (index // columns) * (height + gap)
        x = left + (index % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    if not (row_labels or column_labels):
        return sheet

    # Write the labels into their strips.
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(row_labels):
        draw.text((4, top + row * (height + gap) + height // 2), label, fill=INK, font=letters, anchor="lm")
    for column, label in enumerate(column_labels):
        draw.text((left + column * (width + gap) + width // 2, top // 2), label, fill=INK, font=letters, anchor="mm")
    return np.asarray(canvas).copy()


def tiled(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """`grid` of images of equal size, all in RGB."""
    return Image.fromarray(grid(np.stack([np.asarray(image) for image in images]), columns))


def captioned(image: UInt8[ndarray, "H W 3"], width: int, text: str) -> Image.Image:
    """An image scaled to `width` with a line of text in a strip below."""
    height, strip = round(image.shape[0] * width / image.shape[1]), max(20, width // 8)
    tile = Image.new("RGB", (width, height + strip), PAPER)
    tile.paste(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), (0, 0))
    ImageDraw.Draw(tile).text((width / 2, height + strip / 2), text, INK, font(min(TEXT, strip - 6)), "mm")
    return tile


def save_png(path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
    """Write an image as PNG, atomically. The same pixels give the same bytes."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG")
