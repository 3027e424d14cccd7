"""Plots: bars as high as their counts, lines and points where their numbers are."""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image

from portrait360.media.plots import Line, Series, angle_scatter, curves, histogram
from portrait360.media.sheets import FIRST, SECOND


def of_colour(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Where pixels have a colour, antialiased edges aside."""
    return (np.abs(np.asarray(image).astype(int) - colour) <= 3).all(axis=2)


def test_histogram_bars_are_as_high_as_their_counts() -> None:
    counts = np.array([1, 4, 0, 2])
    series = [Series("a", counts, FIRST), Series("b", counts[::-1], SECOND, filled=False)]
    alone = histogram((400, 300), "title", series[:1], (0.0, 4.0), [0.0, 4.0], "unit")
    assert alone.size == (400, 300)
    bars = of_colour(alone, FIRST)
    columns = np.nonzero(bars.any(axis=0))[0]
    width = (columns[-1] - columns[0] + 1) / 4
    height = [bars[:, round(columns[0] + (k + 0.5) * width)].sum() for k in range(4)]
    assert height[2] == 0
    assert abs(height[1] / height[0] - 4) < 0.3
    assert abs(height[3] / height[0] - 2) < 0.2
    both = histogram((400, 300), "title", series, (0.0, 4.0), [0.0, 4.0], "unit")
    assert of_colour(both, SECOND).sum() > 300


def test_curves_rise_from_left_to_right() -> None:
    x = np.linspace(0.0, 5.0, 50)
    image = curves((400, 300), "title", [Line("a", FIRST, x, x), Line("b", SECOND, x, 0.0 * x)], "unit")
    rows, columns = np.nonzero(of_colour(image, FIRST)[60:240, 80:])  # without the legend
    assert np.corrcoef(rows, columns)[0, 1] < -0.9
    assert np.ptp(np.nonzero(of_colour(image, SECOND)[150:])[0]) < 5


def test_points_of_equal_angles_lie_on_the_diagonal() -> None:
    angle = np.linspace(-170.0, 170.0, 40)
    rows, columns = np.nonzero(of_colour(angle_scatter((300, 300), "title", FIRST, angle, angle), FIRST))
    assert np.corrcoef(rows, columns)[0, 1] < -0.999


def test_the_same_numbers_give_the_same_pixels_and_no_global_state_changes() -> None:
    line = Line("a", FIRST, np.arange(5.0), np.arange(5.0))
    settings = dict(matplotlib.rcParams)
    first, again = (curves((200, 150), "title", [line], "unit") for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert dict(matplotlib.rcParams) == settings
