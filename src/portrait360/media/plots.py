"""Plain histograms and curves, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Number = float | int | np.integer

PAPER: Colour = (255, 255, 255)
INK: Colour = (40, 44, 52)
FAINT: Colour = (222, 225, 230)
FIRST: Colour = (92, 128, 188)
SECOND: Colour = (222, 120, 30)

TEXT = 15
"""Size of letters, pixels."""
_TITLE = 18


@dataclass(frozen=True)
class Series:
    """Counts in equal bins over the range of a panel; `filled` ones are bars, others an outline."""

    name: str
    counts: Int[ndarray, " bins"]
    colour: Colour
    filled: bool = True


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font needs to be installed."""
    return ImageFont.load_default(size)


def histogram(
    size: tuple[int, int],
    title: str,
    series: Sequence[Series],
    limits: tuple[Number, Number],
    ticks: Sequence[Number],
    unit: str,
) -> Image.Image:
    """One panel: counts over a range, with axes.

    Args:
        size: width and height in pixels.
        title: text above.
        series: what to draw, the first one behind.
        limits: range that the bins cover.
        ticks: values labelled on the horizontal axis.
        unit: name of the horizontal axis.
    """
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 70, 48, size[0] - 22, size[1] - 58
    peak = max(1, *(int(one.counts.max(initial=0)) for one in series))
    step = _round_step(peak)
    full = -(-peak // step) * step

    def x_at(value: Number) -> float:
        return left + float(value - limits[0]) / (limits[1] - limits[0]) * (right - left)

    def y_at(count: Number) -> float:
        return bottom - int(count) / full * (bottom - top)

    for count in range(0, full + 1, step):
        y = y_at(count)
        draw.line([(left, y), (right, y)], FAINT if count else INK)
        draw.text((left - 8, y), str(count), INK, font(TEXT), "rm")
    for one in series:
        _draw_series(draw, one, limits, x_at, y_at)
    for tick in ticks:
        draw.line([(x_at(tick), bottom), (x_at(tick), bottom + 5)], INK)
        draw.text((x_at(tick), bottom + 9), f"{tick:g}", INK, font(TEXT), "mt")
    draw.text(((left + right) / 2, size[1] - 6), unit, INK, font(TEXT), "mb")
    draw.text((left, 12), title, INK, font(_TITLE), "lt")
    if len(series) > 1:
        x = right
        for one in reversed(series):
            x -= draw.textlength(one.name, font(TEXT))
            draw.text((x, 14), one.name, INK, font(TEXT), "lt")
            x -= 20
            draw.rectangle([x, 15, x + 13, 28], one.colour if one.filled else None, one.colour, width=2)
            x -= 16
    return picture


def curves(
    size: tuple[int, int],
    title: str,
    lines: Sequence[tuple[str, Colour, Float[ndarray, "N"], Float[ndarray, "N"]]],
    unit: str,
) -> Image.Image:
    """One panel of lines (name, colour, x, y) over a common horizontal axis; both axes start at 0 or below."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 70, 48, size[0] - 22, size[1] - 58
    wide = max(1e-9, *(float(x.max(initial=0.0)) for _, _, x, _ in lines))
    high = max(1e-9, *(float(y.max(initial=0.0)) for _, _, _, y in lines))
    low = min(0.0, *(float(y.min(initial=0.0)) for _, _, _, y in lines))

    def at(x: Number, y: Number) -> tuple[float, float]:
        return left + float(x) / wide * (right - left), bottom - (float(y) - low) / (high - low) * (bottom - top)

    for value in np.linspace(low, high, 5):
        draw.line([at(0, value), at(wide, value)], FAINT)
        draw.text((left - 8, at(0, value)[1]), f"{value:.3g}", INK, font(TEXT), "rm")
    for value in np.linspace(0.0, wide, 6):
        draw.line([at(value, low), (at(value, low)[0], bottom + 5)], INK)
        draw.text((at(value, low)[0], bottom + 9), f"{value:.3g}", INK, font(TEXT), "mt")
    x_text = right
    for name, colour, x, y in reversed(lines):
        draw.line([at(a, b) for a, b in zip(x, y, strict=True)], colour, width=2)
        x_text -= draw.textlength(name, font(TEXT))
        draw.text((x_text, 14), name, colour, font(TEXT), "lt")
        x_text -= 20
    draw.text(((left + right) / 2, size[1] - 6), unit, INK, font(TEXT), "mb")
    draw.text((left, 12), title, INK, font(_TITLE), "lt")
    return picture


def _draw_series(draw: ImageDraw.ImageDraw, one: Series, limits: tuple[Number, Number], x_at, y_at) -> None:
    edges = np.linspace(*limits, len(one.counts) + 1).tolist()
    if one.filled:
        gap = 1 if x_at(edges[1]) - x_at(edges[0]) > 4 else 0
        for low, high, count in zip(edges, edges[1:], one.counts, strict=False):
            if count:
                draw.rectangle([x_at(low) + gap, y_at(count), x_at(high) - gap, y_at(0)], one.colour)
        return
    points = [(x_at(edges[0]), y_at(0))]
    for low, high, count in zip(edges, edges[1:], one.counts, strict=False):
        points += [(x_at(low), y_at(count)), (x_at(high), y_at(count))]
    draw.line([*points, (x_at(edges[-1]), y_at(0))], one.colour, width=3)


def _round_step(peak: int) -> int:
    """A round distance of 1, 2 or 5 times a power of ten that divides the axis into 3 to 6 parts."""
    step = 1
    factors = (2, 2.5, 2)
    for number in range(60):
        if peak <= step * 5:
            break
        step = int(step * factors[number % 3])
    return step
