"""An evaluation in print and in images: the table, and the sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from portrait360.evaluation.measures import MEASURES, with_spread
from portrait360.evaluation.sampler import GeneratedSamples
from portrait360.evaluation.samples import SampleSet
from portrait360.geometry.cameras import SECTORS, yaw_pitch
from portrait360.media.plots import angle_scatter
from portrait360.media.sheets import FIRST, INK, PAPER, SECOND, TEXT, font, tiled

_ARROWS = {"lower": "lower is better", "higher": "higher is better", "as data": "like the data is best"}
_COLUMNS, _ROWS = 12, 2
_CELL = 96
_PLOT = 406
"""Height of the plots, pixels."""


def table(result: dict[str, Any]) -> str:
    """Measures with their spread over the seeds, and the same of real images, in plain text; then the sectors."""
    # Measures by group.
    found = result["measures"]
    width = max(len(MEASURES[name].title) for name in found) + 2
    lines = [f"{'':{width}}{'model':>19}{'real images':>21}"]
    group = None
    for name, record in found.items():
        about = MEASURES[name]
        if about.group != group:
            group = about.group
            lines.append(group)
        model = with_spread(record["value"], record["spread"])
        floor = "" if record["floor"] is None else with_spread(record["floor"], record["floor_spread"])
        lines.append(f"  {about.title:{width - 2}}{model:>19}{floor:>21}  {about.unit:11}{_ARROWS[about.better]}")

    # Sectors, what is missing, and how much was measured.
    lines.append("median error of the yaw that the encoder predicts, degrees")
    for sector in SECTORS:
        entry = result["sectors"][sector]
        values = [entry["yaw_error"], entry["yaw_error_real"]]
        model, real = ("" if value is None else f"{value:.1f}" for value in values)
        lines.append(f"  {sector:{width - 2}}{model:>11}{'':8}{real:>13}{'':8}  {entry['pictures']} images")
    lines += [f"without {name}: {why}" for name, why in result["missing"].items()]
    about = result["about"]
    lines.append(
        f"{len(about['seeds'])} x {about['pictures']} images, {about['pairs']} pairs, {about['meshes']} meshes;"
        f" {about['weights']['model']}, {about['data']['file']}, {about['seconds']:.0f} s"
    )
    return "\n".join(lines)


def sheet(real: SampleSet, generated: GeneratedSamples) -> Image.Image:
    """Real and generated images, and for both the yaw that the encoder predicts over the true one."""
    # Rows of images, each with a title.
    rows = [
        ("real images", real),
        ("generated, from the camera that they were sampled for", generated.same),
        ("the same portraits from other cameras in other poses", generated.random),
    ]
    width, gap = _COLUMNS * _CELL, 26
    page = Image.new("RGB", (width, len(rows) * (_ROWS * _CELL + gap) + _PLOT), PAPER)
    draw = ImageDraw.Draw(page)
    y = 0
    for title, samples in rows:
        draw.text((4, y + 4), title, INK, font(TEXT))
        page.paste(_first_images(samples), (0, y + gap))
        y += gap + _ROWS * _CELL

    # Predicted over true yaw, degrees.
    plots = (
        ("real: predicted over true yaw", real, FIRST),
        ("generated (other cameras): predicted over rendered yaw", generated.random, SECOND),
    )
    for place, (title, samples, colour) in enumerate(plots):
        true, predicted = yaw_pitch(samples.camera)[0].rad2deg(), samples.encoder_yaw.rad2deg()
        plot = angle_scatter((width // 2, _PLOT), title, colour, true.numpy(), predicted.numpy())
        page.paste(plot, (place * width // 2, y))
    return page


def _first_images(samples: SampleSet) -> Image.Image:
    """The first images of a set, small."""
    shown = samples.pixels[: _COLUMNS * _ROWS].permute(0, 2, 3, 1).numpy()
    return tiled([Image.fromarray(pixels).resize((_CELL, _CELL)) for pixels in np.ascontiguousarray(shown)], _COLUMNS)
