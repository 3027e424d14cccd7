"""Plots as images: histograms, curves and scattered points, by matplotlib without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray
from PIL import Image

from portrait360.media.sheets import FAINT, INK, Colour

Number = float | int | np.integer

_DPI = 100
_TITLE, _TEXT = 11, 9
"""Sizes of letters, points."""


@dataclass(frozen=True)
class Series:
    """Counts in equal bins over the range of a histogram; `filled` ones are bars, others an outline."""

    name: str
    counts: Int[ndarray, " bins"]
    colour: Colour
    filled: bool = True


@dataclass(frozen=True)
class Line:
    """A line through points."""

    name: str
    colour: Colour
    x: Float[ndarray, " N"]
    y: Float[ndarray, " N"]


def histogram(
    size: tuple[int, int],
    title: str,
    series: Sequence[Series],
    limits: tuple[Number, Number],
    ticks: Sequence[Number],
    unit: str,
) -> Image.Image:
    """Counts over a range.

    Args:
        size: width and height in pixels.
        title: text above.
        series: what to plot, the first one behind.
        limits: range that the bins cover.
        ticks: values labelled on the horizontal axis.
        unit: name of the horizontal axis.
    """
    # Bars and outlines.
    figure, axes = _panel(size, title, unit)
    for one in series:
        edges = np.linspace(float(limits[0]), float(limits[1]), len(one.counts) + 1)
        width = 0.0 if one.filled else 2.0
        axes.stairs(one.counts, edges, fill=one.filled, label=one.name, color=_share(one.colour), linewidth=width)

    # Axes over the whole range, whole numbers upwards.
    axes.set_xlim(float(limits[0]), float(limits[1]))
    axes.set_ylim(bottom=0)
    axes.set_xticks([float(tick) for tick in ticks])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(series) > 1:
        axes.legend(fontsize=_TEXT, frameon=False)
    return _rendered(figure)


def curves(size: tuple[int, int], title: str, lines: Sequence[Line], unit: str) -> Image.Image:
    """Lines over a common horizontal axis; `size` in pixels, `unit` names the axis."""
    figure, axes = _panel(size, title, unit)
    for line in lines:
        axes.plot(line.x, line.y, color=_share(line.colour), linewidth=1.5, label=line.name)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(fontsize=_TEXT, frameon=False)
    return _rendered(figure)


def angle_scatter(
    size: tuple[int, int], title: str, colour: Colour, x: Float[ndarray, " N"], y: Float[ndarray, " N"]
) -> Image.Image:
    """Points of two angles in degrees, both axes from -180 to 180; `size` in pixels."""
    figure, axes = _panel(size, title, "degrees")
    axes.plot(x, y, ".", color=_share(colour), markersize=3)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([-180, -90, 0, 90, 180])
    axes.set_xlim(-180, 180)
    axes.set_ylim(-180, 180)
    return _rendered(figure)


def _panel(size: tuple[int, int], title: str, unit: str) -> tuple[Figure, Axes]:
    """A figure of `size` pixels with one pair of axes."""
    figure = Figure((size[0] / _DPI, size[1] / _DPI), _DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=_TITLE, color=_share(INK))
    axes.set_xlabel(unit, fontsize=_TEXT)
    axes.tick_params(labelsize=_TEXT)
    axes.grid(color=_share(FAINT))
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _rendered(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _share(colour: Colour) -> tuple[float, float, float]:
    """A colour of bytes as matplotlib has it, in [0, 1]."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255
